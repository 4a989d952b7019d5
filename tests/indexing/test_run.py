import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import IndexConfig, VerifyConfig
from pipeline.errors import IncompleteError, InputError, LeaseHeldError
from pipeline.indexing import publish
from pipeline.indexing.queries import PROMPTS
from pipeline.indexing.run import build
from pipeline.lease import Lease
from pipeline.searching.index import open_index
from pipeline.store import Store
from pipeline.table import TableRecord, table_folder
from pipeline.upkeep.verify import verify
from tests.indexing.conftest import made_up_vectors, write_table

pytestmark = pytest.mark.usefixtures("local_ray")


def test_flat_is_exact_and_the_second_build_has_nothing_to_do(store: Store, vectors: np.ndarray):
    card = build(IndexConfig(store=store.url))
    assert (card.factory, card.ntotal, card.d, card.recall_at_10) == ("Flat", 2000, 32, {"image": 1.0})
    assert publish.read_current(store, "t") == card.version
    before = store.files("indexes")
    assert build(IndexConfig(store=store.url)) == card
    assert {name for name in store.files("indexes") if "/lease/" not in name} == {
        name for name in before if "/lease/" not in name
    }
    opened = open_index(store, "t")
    scores, ids = opened.search(vectors[:5], 1)
    assert ids[:, 0].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-5)
    assert opened.row_ids[0].as_py() == "row-1"  # row 0 is a reject
    assert opened.number_of("row-1") == 0
    assert opened.number_of("row-0") is None
    assert opened.place_of(0)[0].unit == "u-000000"


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_a_lossy_index_reaches_its_target_and_says_so(
    request: pytest.FixtureRequest, tmp_path: Path, vectors: np.ndarray, place: str
):
    url = str(tmp_path / "s") if place == "disk" else f"{request.getfixturevalue('s3')}/index-store"
    store = write_table(url, "t", vectors, 150)
    card = build(IndexConfig(store=url, factory="IVF32,SQ8", recall_target=0.97, partials=4))
    assert card.recall_at_10["image"] >= 0.97
    assert card.nprobe in [point["nprobe"] for point in card.recall_curve]
    version = f"indexes/t/{card.version}"
    stored = store.files(version)
    parts = [f"{base:012d}" for base in (0, 540, 1080, 1620)]  # whole units of 150 rows, less rejects
    own = {f"vectors-{part}.npy" for part in parts} | {f"row_ids-{part}.parquet" for part in parts}
    others = {"index.faiss", "trained.faiss", "units.parquet", "truth.npz", "recall.png"}
    assert set(stored) == {"card.json", *others, *own}
    assert {path: stored[path.removeprefix(f"{card.version}/")] for path in card.sha256} == card.bytes
    opened = open_index(store, "t")
    xq = made_up_vectors(200, 32, seed=5)
    _, ids = opened.search(xq, 10)
    exact = np.argsort(-(xq @ vectors.T), axis=1)[:, :10]
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids, exact, strict=True)])
    assert found >= card.recall_at_10["image"] - 0.05


def test_recall_by_text_is_measured_and_tuned_for(store: Store, tmp_path: Path):
    texts = made_up_vectors(100, 32, seed=9) + 2.0 * made_up_vectors(1, 32, seed=10)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    asked = []

    def encode(record: TableRecord, prompts: Sequence[str]) -> np.ndarray:
        asked.append((record.d, tuple(prompts)))
        return texts

    alone = build(IndexConfig(store=store.url, factory="IVF32,SQ8"))
    card = build(IndexConfig(store=store.url, factory="IVF32,SQ8"), None, encode)
    assert asked == [(32, PROMPTS)]
    assert card.version != alone.version
    assert (alone.queries, card.queries) == ({"image": 1000}, {"image": 1000, "text": 66})
    assert card.recall_at_10["text"] >= 0.95
    assert card.recall_at_10["image"] >= 0.95
    assert card.recall_at_10 == {kind: values["10"] for kind, values in card.recall.items()}
    assert card.recall["text"].keys() == {"1", "10", "100"}
    assert build(IndexConfig(store=store.url, factory="IVF32,SQ8"), None, encode) == card
    assert len(asked) == 1  # nothing to do, nothing to encode
    pq.write_table(pa.table({"vector": texts.tolist()}), tmp_path / "texts.parquet")
    given = IndexConfig(store=store.url, factory="IVF32,SQ8", text_queries=str(tmp_path / "texts.parquet"))
    assert build(given).recall_at_10 == card.recall_at_10
    assert build(IndexConfig(store=store.url, text_queries="none"), None, encode).queries == {
        "image": 1000
    }  # of 1500, a third chose
    assert len(asked) == 1


def test_an_index_below_its_target_is_not_published(store: Store):
    first = build(IndexConfig(store=store.url))
    with pytest.raises(IncompleteError, match=r"below recall_target 0\.99"):
        build(IndexConfig(store=store.url, factory="IVF4,PQ1", recall_target=0.99))
    assert publish.read_current(store, "t") == first.version


@pytest.mark.parametrize("factory", ["Flat", "IVF16,SQ8"])
def test_one_flipped_bit_in_any_file_of_a_version_is_found_before_it_is_read(store: Store, factory: str):
    """Searching reads all of them but the training, the truth and the plot, which an update and people read."""
    card = build(IndexConfig(store=store.url, factory=factory, partials=2))
    read_by_search = [name for name in card.sha256 if not name.endswith(("trained.faiss", "truth.npz", "recall.png"))]
    assert len(read_by_search) == (4 if factory == "Flat" else 6)
    for name in card.sha256:
        path = Path(store.path(f"indexes/t/{name}"))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
        assert [fault.kind for fault in verify(VerifyConfig(store=store.url)).faults if name in fault.path] == [
            "damaged"
        ]
        if name in read_by_search:
            with pytest.raises(IncompleteError, match=f"{name} is damaged"):
                open_index(store, "t")
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    card_path = Path(store.path(f"indexes/t/{card.version}/card.json"))
    content = bytearray(card_path.read_bytes())
    content[len(content) // 2] ^= 4
    card_path.write_bytes(content)
    with pytest.raises(InputError, match=r"card\.json is damaged"):
        open_index(store, "t")


def test_a_card_that_lies_about_the_index_is_refused(store: Store):
    card = build(IndexConfig(store=store.url))
    path = f"indexes/t/{card.version}/card.json"
    store.replace(path, json.dumps({**store.read_json(path), "ntotal": 1999}).encode())
    with pytest.raises(IncompleteError, match="the card says d 32, ntotal 1999 of 2000"):
        open_index(store, "t")


def test_a_damaged_table_is_never_indexed(store: Store):
    path = next(Path(store.path(f"{table_folder('t')}/data")).rglob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(IncompleteError, match="is damaged"):
        build(IndexConfig(store=store.url))
    assert publish.read_current(store, "t") is None


def test_a_table_without_vectors_and_an_unpublished_index_are_input_errors(tmp_path: Path):
    with pytest.raises(InputError, match="it has no tables"):
        build(IndexConfig(store=str(tmp_path)))
    store = write_table(str(tmp_path), "t", made_up_vectors(3, 8), 10)
    with pytest.raises(InputError, match="no index is published"):
        open_index(store, "t")
    with pytest.raises(InputError, match="graphs cannot be merged"):
        build(IndexConfig(store=str(tmp_path), factory="HNSW32"))
    with pytest.raises(InputError, match="wanted at least 16 vectors to train on, got 3"):
        build(IndexConfig(store=str(tmp_path), factory="IVF16,SQ8"))
    with pytest.raises(InputError, match="does not make it for 8 dimensions"):
        build(IndexConfig(store=str(tmp_path), factory="IVF2,PQ3"))


@pytest.mark.parametrize("n", [1, 2])
def test_the_smallest_tables_are_indexed(tmp_path: Path, n: int):
    store = write_table(str(tmp_path), "t", made_up_vectors(n, 8), 10)
    card = build(IndexConfig(store=store.url))
    assert (card.ntotal, card.recall_at_10["image"]) == (n, 1.0)
    _, ids = open_index(store, "t").search(made_up_vectors(n, 8), 10)
    assert ids.shape == (n, n)


def test_two_builds_of_one_table_exclude_each_other(store: Store):
    with Lease(store, "indexes/t"), pytest.raises(LeaseHeldError):
        build(IndexConfig(store=store.url))


def test_what_a_build_that_died_left_behind_is_removed_by_the_next(store: Store):
    first = build(IndexConfig(store=store.url))
    for path in ("20200101T000000Z-dead/partials/00000/vectors.npy", ".scratch-abc/version/index.faiss"):
        store.create(f"indexes/t/{path}", b"x")
    second = build(IndexConfig(store=store.url, factory="IVF16,SQ8"))
    versions = {path.split("/")[0] for path in store.files("indexes/t")}
    assert versions == {first.version, second.version, "CURRENT", "lease"}


def test_a_build_that_died_goes_on_from_its_training_and_its_partials(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    caplog.set_level("INFO", logger="pipeline")  # whatever tests before have left
    given = IndexConfig(store=store.url, factory="IVF16,SQ8", partials=4)
    monkeypatch.setattr("pipeline.indexing.build.verify", die)
    with pytest.raises(KeyboardInterrupt):
        build(given)
    monkeypatch.undo()
    built = {path: size for path, size in store.files("indexes/t").items() if path.startswith(".build-")}
    assert {Path(path).name for path in built} >= {"trained.faiss", "receipt.json", "lists.faiss", "vectors.npy"}
    assert sum(path.endswith("receipt.json") for path in built) == 4
    lists = sorted(path for path in built if path.endswith("lists.faiss"))
    damaged = Path(store.path(f"indexes/t/{lists[2]}"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    store.remove(f"indexes/t/{Path(lists[0]).parent}/receipt.json")  # it died before this one was whole
    monkeypatch.setattr("pipeline.indexing.build.train", die)  # once was enough
    with pytest.raises(IncompleteError, match=r"lists\.faiss is damaged"):
        build(given)
    card = build(given)
    assert re.findall(r"partials_done=\d to_fill=\d", caplog.text) == [
        "partials_done=0 to_fill=4",
        "partials_done=3 to_fill=1",
        "partials_done=3 to_fill=1",
    ]
    assert card.recall_at_10["image"] >= 0.95
    assert {path.split("/")[0] for path in store.files("indexes/t")} == {card.version, "CURRENT", "lease"}


def test_a_key_that_drops_dimensions_is_ranked_again_by_whole_vectors(store: Store, vectors: np.ndarray):
    card = build(IndexConfig(store=store.url, factory="PCA16,IVF16,Flat", recall_target=0.8))
    assert card.rerank == 4
    scores, ids = open_index(store, "t").search(vectors[:20], 10)
    whole = np.einsum("qd,qkd->qk", vectors[:20], vectors[ids])
    np.testing.assert_allclose(scores, whole, atol=2e-3)  # not the inner products of what PCA left
