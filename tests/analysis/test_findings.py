import io
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.analysis import findings, headers
from pipeline.analysis.findings import Findings, find
from pipeline.analysis.headers import Header, read_headers
from pipeline.config import EmbedConfig, SourceConfig
from pipeline.embedding.run import embed
from pipeline.model import Limits
from pipeline.store import Store
from pipeline.table import read_receipts, table_folder
from tests.conftest import DEMO_MODEL, encoded, png_header

NO_COUNTS = {"counts": {}, "source": {}}
HOSTILE = "<script>alert(1)</script>"


def the_table(store: Store) -> str:
    [name] = store.folders("embeddings")
    return name


def found_in(url: Path | str, seed: int = 0) -> Findings:
    store = Store(str(url))
    return find(store, the_table(store), NO_COUNTS, seed)


@pytest.fixture(scope="module")
def demo_findings(demo_store: str) -> Findings:
    return found_in(demo_store)


@pytest.fixture(scope="module")
def referenced(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and the source whose paths it was made of: keys that come twice, a file that is not there."""
    folder = tmp_path_factory.mktemp("referenced")
    (folder / "source").mkdir()
    for i in range(12):
        (folder / "source" / f"{i}.jpg").write_bytes(encoded(i, 40 + i, 30))
    (folder / "source" / "red.png").write_bytes(png_of("red"))
    keys = [*(f"row-{i}" for i in range(12)), "row-3", HOSTILE]
    paths = [*(f"{i}.jpg" for i in range(12)), "red.png", "<img src=x onerror=alert(1)>.jpg"]
    pq.write_table(pa.table({"key": keys, "image": paths}), folder / "source" / "s.parquet", row_group_size=5)
    embed(
        EmbedConfig(
            store=str(folder / "store"),
            model=str(DEMO_MODEL),
            source=SourceConfig(name="s", path=str(folder / "source"), key_column="key", duplicate_keys="first"),
            unit_rows=5,
            max_reject_fraction=1.0,
        )
    )
    return folder


@pytest.fixture
def changeable(referenced: Path, tmp_path: Path) -> Path:
    """The same store, of a source that a test may spoil: at the same place, put back afterwards."""
    shutil.copytree(referenced / "source", tmp_path / "source")
    yield referenced
    shutil.rmtree(referenced / "source")
    shutil.copytree(tmp_path / "source", referenced / "source")


def png_of(colour: str) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (60, 60), colour).save(written, "PNG")
    return written.getvalue()


def test_the_same_seed_finds_the_same_and_another_does_not(demo_store: str, demo_findings: Findings):
    assert found_in(demo_store) == demo_findings
    assert found_in(demo_store, 1).random_scores != demo_findings.random_scores


def test_headers_say_what_the_source_holds(demo_rows: list[dict], demo_findings: Findings):
    assert len(demo_findings.pictures) >= 150
    assert demo_findings.problems == ()
    wanted = Counter()
    for row in demo_rows:
        try:
            with Image.open(io.BytesIO(row["image"] or b"")) as image:
                wanted[len(row["image"]), image.format, *image.size] += 1
        except OSError:
            wanted[None if row["image"] is None else len(row["image"]), None, 0, 0] += 1
    assert not Counter((one.bytes, one.format, one.width, one.height) for one in demo_findings.pictures) - wanted


def test_norms_and_best_scores_of_a_table_that_is_drawn_whole_are_the_exact_ones(
    demo_store: str, demo_findings: Findings
):
    store = Store(demo_store)
    rows = ds.dataset(f"{demo_store}/{table_folder(the_table(store))}/data").to_table()
    vectors = np.stack(rows["vector"].to_numpy()).astype(np.float64)
    assert len(demo_findings.norms) == len(vectors)
    assert np.allclose(sorted(demo_findings.norms), sorted(np.linalg.norm(vectors, axis=1)), atol=1e-12)
    best = [max(v @ w for j, w in enumerate(vectors) if j != i) for i, v in enumerate(vectors)]
    assert np.allclose(sorted(demo_findings.best_scores), sorted(best), atol=1e-5)
    pairs = zip(demo_findings.random_scores, demo_findings.best_scores, strict=True)
    assert all(one <= other + 1e-6 for one, other in pairs)


def test_rejects_are_the_tables_own_and_say_why_they_have_no_picture(demo_rows: list[dict], demo_findings: Findings):
    assert set(demo_findings.rejects) == {"null", "truncated", "not_an_image"}
    for reason, rejects in demo_findings.rejects.items():
        assert 1 <= len(rejects) <= 4
        for one in rejects:
            assert demo_rows[one.row]["key"] == one.row_id
            assert int(one.row_id.removeprefix("figure-")) % 40 == 0
            assert one.thumbnail is None
            assert (one.why_none == "there are no bytes") is (reason == "null")
    assert all("This is a text file" in one.why_none for one in demo_findings.rejects["not_an_image"])


def test_a_reject_that_the_source_still_has_gets_its_own_picture(referenced: Path):
    found = found_in(referenced / "store")
    [duplicate], [missing] = found.rejects["duplicate_key"], found.rejects["fetch_not_found"]
    assert duplicate.row_id == "row-3"
    assert np.abs(np.asarray(Image.open(io.BytesIO(duplicate.thumbnail))).mean((0, 1)) - (255, 0, 0)).max() < 3
    assert (missing.row_id, missing.thumbnail, missing.why_none) == (HOSTILE, None, "it could not be fetched")
    assert Counter(one.format for one in found.pictures) == {"JPEG": 12, "PNG": 1, None: 1}


def test_a_row_that_the_source_replaced_is_not_shown_in_its_place(changeable: Path):
    shard = changeable / "source" / "s.parquet"
    rows = pq.read_table(shard)
    pq.write_table(rows.set_column(0, "key", [pa.array([f"new-{i}" for i in range(14)])]), shard, row_group_size=5)
    [duplicate] = found_in(changeable / "store").rejects["duplicate_key"]
    assert duplicate.thumbnail is None
    assert "another row" in duplicate.why_none


@pytest.mark.parametrize("spoil", ["gone", "garbage", "other columns", "fewer rows"])
def test_a_source_that_cannot_be_read_leaves_the_rest(changeable: Path, spoil: str):
    shard = changeable / "source" / "s.parquet"
    if spoil == "gone":
        shard.unlink()
    elif spoil == "garbage":
        shard.write_bytes(b"PAR1 no longer PAR1")
    else:
        names = ("key", "image") if spoil == "fewer rows" else ("a", "b")
        pq.write_table(pa.table({name: ["row-0"] for name in names}), shard)
    found = found_in(changeable / "store")
    assert len(found.norms) == 12
    [duplicate] = found.rejects["duplicate_key"]
    assert duplicate.thumbnail is None
    assert duplicate.why_none
    if spoil != "fewer rows":
        assert found.pictures == ()
        assert any(str(shard) in problem or "image" in problem for problem in found.problems)


def test_a_shard_that_the_run_could_not_read_is_left_alone(referenced: Path):
    store, shard = Store(str(referenced / "store")), referenced / "source" / "s.parquet"
    found = find(store, the_table(store), {"counts": {}, "source": {"unreadable": {str(shard): "no magic"}}})
    assert (found.pictures, found.problems) == ((), ())
    assert found.rejects["duplicate_key"][0].why_none == "its shard cannot be read"


def test_what_is_read_has_bounds_however_many_units_there_are(referenced: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(findings, "UNITS", 2)
    monkeypatch.setattr(findings, "IMAGES", 4)
    monkeypatch.setattr(findings, "VECTORS", 6)
    found = found_in(referenced / "store")
    assert (found.picture_units, found.vector_files) == (2, 2)
    assert len(found.pictures) <= 4
    assert len(found.norms) <= 6


def test_no_time_left_is_said(referenced: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(findings, "SOURCE_S", -1.0)
    found = found_in(referenced / "store")
    assert found.pictures == ()
    assert any("for time" in problem for problem in found.problems)
    assert "no time" in found.rejects["duplicate_key"][0].why_none


def test_a_damaged_file_is_named_and_the_others_are_measured(referenced: Path, tmp_path: Path):
    shutil.copytree(referenced / "store", tmp_path / "store")
    store = Store(str(tmp_path / "store"))
    folder = table_folder(the_table(store))
    receipt = max(read_receipts(store, folder).values(), key=lambda one: one.embedded)
    (tmp_path / "store" / folder / receipt.data[0].path).write_bytes(b"nothing")
    found = found_in(tmp_path / "store")
    assert len(found.norms) == 12 - receipt.data[0].rows
    assert any(receipt.data[0].path in problem for problem in found.problems)


def test_a_table_that_is_not_there_or_has_damaged_receipts_gives_nothing(referenced: Path, tmp_path: Path):
    assert find(Store(str(tmp_path / "empty")), "none", NO_COUNTS) == Findings()
    shutil.copytree(referenced / "store", tmp_path / "store")
    next((tmp_path / "store" / "embeddings").glob("*/receipts/*.json")).write_text("{")
    found = found_in(tmp_path / "store")
    assert found == Findings(problems=found.problems)
    assert "damaged" in found.problems[0]


def test_headers_are_read_whatever_else_is_in_the_file():
    images = [encoded(1, 81, 61), b"no picture", b"", png_header(60_000, 50_000), encoded(2, 33, 44, "WEBP")]
    assert read_headers(images, Limits()) == [
        Header("JPEG", 81, 61), None, None, Header("PNG", 60_000, 50_000), Header("WEBP", 33, 44),
    ]  # fmt: skip
    assert read_headers([], Limits()) == []
    assert read_headers([encoded(1)], Limits(formats=("PNG",))) == [None]


def test_an_image_that_ends_the_process_costs_itself(monkeypatch: pytest.MonkeyPatch):
    started = []

    def dies_of_bad(images: list[bytes], limits: Limits) -> list[Header]:
        started.append(len(images))
        good = images[: images.index(b"bad")] if b"bad" in images else images
        return [Header("PNG", int(image), 1) for image in good]

    monkeypatch.setattr(headers, "_said_of", dies_of_bad)
    assert read_headers([b"1", b"bad", b"3"], Limits()) == [Header("PNG", 1, 1), None, Header("PNG", 3, 1)]
    started.clear()
    assert read_headers([b"bad"] * 100, Limits()) == [None] * 100
    assert len(started) == headers.MAX_DEATHS


LIES = [b"", b"[", b"null", b"7", b'["EXE", 1, 1]', b'["PNG", -1, 1]', b'["PNG", 1.5, 1]', b'["PNG", true, 1]', b"{}"]
LIES += [b'["PNG", 1]', b'[["PNG"], 1, 1]', b'["PNG", 99999999999, 1]', b'"PNG"', b"\xff", b"[" * 100_000]


@pytest.mark.parametrize("line", LIES, ids=lambda line: repr(line[:20]))
def test_a_process_that_was_taken_over_is_not_believed(line: bytes):
    assert headers._header(line, Limits()) is None


def test_a_process_that_never_starts_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(headers.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="never was ready, exit status 1"):
        read_headers([encoded(1)], Limits())
