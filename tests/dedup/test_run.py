import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray

from pipeline.config import DedupConfig
from pipeline.dedup.record import Duplicates
from pipeline.dedup.run import find_duplicates
from pipeline.errors import InputError, LeaseHeldError
from pipeline.lease import Lease
from pipeline.schema import DUPLICATE_EDGES_SCHEMA, DUPLICATE_GROUPS_SCHEMA
from pipeline.store import Store
from tests.conftest import ROOT, encoded, write_shard
from tests.dedup.conftest import groups_of, made_table, vectors_table
from tests.indexing.conftest import made_up_vectors

pytestmark = pytest.mark.usefixtures("local_ray")

EXACT = {frozenset(f"row-{i:05d}" for i in (seed, 40 + seed, 45 + seed)) for seed in range(5)}
LARGER = {frozenset((f"row-{5 + i:05d}", f"row-{51 + i:05d}")) for i in range(5)}
MIRRORED = {frozenset((f"row-{10 + i:05d}", f"row-{56 + i:05d}")) for i in range(5)}


@pytest.fixture(scope="module")
def table(local_ray: None, copies: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    with pytest.MonkeyPatch.context() as patch:
        light(patch)
        return made_table(copies, tmp_path_factory.mktemp("dedup") / "s")


def light(patch: pytest.MonkeyPatch) -> None:
    from functools import partial

    from pipeline.embedding.dataflow import dataflow
    from tests.light import LightEncode

    patch.setattr("pipeline.embedding.run.dataflow", partial(dataflow, encode=LightEncode))


def find(store: Store, **options: object) -> Duplicates:
    return find_duplicates(DedupConfig(store=store.url, **options))


def edges_of(store: Store, card: Duplicates) -> pa.Table:
    parts = [pq.read_table(store.path(f"{card.folder}/{name}")) for name in card.sha256 if name.startswith("edges/")]
    return pa.concat_tables(parts)


def test_copies_are_found_and_the_largest_is_kept(table: Store):
    card = find(table)
    found = groups_of(table, card.folder)
    assert set(found) == EXACT | LARGER | MIRRORED
    assert all(found[group] == min(group) for group in EXACT)  # of equals the first
    assert all(found[group] == max(group) for group in LARGER)
    assert card.rows == 60 == card.alone + card.grouped
    assert card.groups == card.keepers == 15
    assert card.grouped == card.keepers + card.dropped == 35
    edges = edges_of(table, card)
    assert edges.schema == DUPLICATE_EDGES_SCHEMA
    assert edges.num_rows == len({(row["row_id_a"], row["row_id_b"], row["stage"]) for row in edges.to_pylist()})
    joining = edges.filter(edges["joins"])
    assert {name: pc.sum(pc.equal(joining["stage"], name)).as_py() for name in card.edges} == card.edges
    rows = pq.read_table(table.path(f"{card.folder}/groups.parquet"))
    assert rows.schema == DUPLICATE_GROUPS_SCHEMA
    stages = dict(zip(rows["_row_id"].to_pylist(), rows["stages"].to_pylist(), strict=True))
    assert stages["row-00040"] == ["exact"]
    assert "perceptual" in stages["row-00010"]
    assert not table.files(f"{card.folder}/work")


def test_the_second_run_does_nothing_and_other_parameters_are_another_run(table: Store):
    card = find(table)
    before = {name: Path(table.path(f"{card.folder}/{name}")).stat().st_mtime_ns for name in table.files(card.folder)}
    assert find(table) == card
    after = {name: Path(table.path(f"{card.folder}/{name}")).stat().st_mtime_ns for name in table.files(card.folder)}
    assert after == before
    assert find(table, threshold=0.9).id != card.id


@pytest.mark.parametrize("name", ["groups.parquet", "edges/part-00000.parquet", "report.html", "card.json"])
def test_what_was_damaged_since_is_made_again(table: Store, name: str):
    card = find(table)
    path = Path(table.path(f"{card.folder}/{name}"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    again = find(table)
    assert again.id == card.id
    assert again.sha256["groups.parquet"] == card.sha256["groups.parquet"]
    assert groups_of(table, again.folder) == groups_of(table, card.folder)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [("first", min), ("column:number", max), ("column:label", lambda group: max(group, key=by_label))],
)
def test_the_keeper_is_the_one_that_the_rule_says(table: Store, keep: str, expected):
    found = groups_of(table, find(table, keep=keep).folder)
    assert found == {group: expected(group) for group in EXACT | LARGER | MIRRORED}


def by_label(row_id: str) -> tuple[str, int]:
    number = int(row_id.removeprefix("row-"))
    return ("cat", "dog", "")[number % 3], -number  # nulls last, of equals the first


@pytest.mark.parametrize(
    ("stages", "wanted"),
    [
        (("exact",), EXACT),
        (("perceptual",), EXACT | LARGER | MIRRORED),
        (("exact", "perceptual"), EXACT | LARGER | MIRRORED),
    ],
)
def test_each_stage_can_be_left_out(table: Store, stages: tuple[str, ...], wanted: set):
    card = find(table, stages=stages)
    assert set(groups_of(table, card.folder)) == wanted
    assert list(card.edges) == [stage for stage in ("exact", "embedding", "perceptual") if stage in stages]
    assert card.recall is None


def test_the_result_does_not_depend_on_how_the_work_is_cut(table: Store, monkeypatch: pytest.MonkeyPatch):
    whole = find(table)
    first = (groups_of(table, whole.folder), edges_of(table, whole))
    table.remove(f"{whole.folder}/card.json")
    for place, rows in {"contents.PIECE_ROWS": 20, "looks.PIECE_ROWS": 20, "keepers.PIECE_ROWS": 20}.items():
        monkeypatch.setattr(f"pipeline.dedup.{place}", rows)
    monkeypatch.setattr("pipeline.dedup.near.BLOCK_ROWS", 9)
    monkeypatch.setattr("pipeline.dedup.perceptual.PIECE_PAIRS", 5)
    cut = find(table)
    assert groups_of(table, cut.folder) == first[0]
    assert edges_of(table, cut).drop_columns("similarity") == first[1].drop_columns("similarity")
    np.testing.assert_allclose(edges_of(table, cut)["similarity"], first[1]["similarity"], atol=1e-5)


@pytest.mark.usefixtures("light_encoder")
def test_pictures_are_taken_from_thumbnails_where_the_table_keeps_them(copies: Path, tmp_path: Path):
    store = made_table(copies, tmp_path / "s", preprocess={"thumbnail_px": 64})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.dedup.looks.originals", None)
        assert set(groups_of(store, find(store, keep="first").folder)) == EXACT | LARGER | MIRRORED


@pytest.mark.usefixtures("light_encoder")
def test_an_object_store_gets_the_same_as_a_disk(copies: Path, s3: str, table: Store):
    store = made_table(copies, f"{s3}/duplicates")
    card = find(store)
    assert set(store.files(card.folder)) == {*card.sha256, "card.json"}
    rows = pq.read_table(store.path(f"{card.folder}/groups.parquet"), filesystem=store.filesystem)
    assert rows.to_pylist() == pq.read_table(table.path(f"{find(table).folder}/groups.parquet")).to_pylist()
    assert find(store) == card


@pytest.mark.usefixtures("light_encoder")
def test_what_the_source_has_no_more_is_counted_and_a_table_that_grew_is_refused(tmp_path: Path):
    corpus = tmp_path / "corpus"
    for number in range(2):
        write_shard(corpus / f"{number}.parquet", 20 * number, [encoded(i % 10) for i in range(20)], group_rows=10)
    store = made_table(corpus, tmp_path / "s")
    (corpus / "1.parquet").unlink()
    card = find(store, stages=("perceptual",), keep="largest")
    assert card.counts["pictures_unseen"] == 20
    assert (card.groups, card.grouped) == (10, 20)
    write_shard(corpus / "1.parquet", 40, [encoded(i) for i in range(20)], group_rows=10)
    from pipeline.embedding.run import embed
    from tests.embedding.test_run import config

    embed(config(corpus, tmp_path / "s", source={"keep_columns": ("number", "label")}))
    with pytest.raises(InputError, match=r"changed since its index was built; run python -m jobs\.build_index"):
        find(store)


def test_only_one_run_looks_for_the_duplicates_of_a_table(table: Store):
    with Lease(table, "duplicates/t"), pytest.raises(LeaseHeldError):
        find(table)


def test_a_column_that_was_not_kept_is_refused(table: Store):
    with pytest.raises(InputError, match="no column 'size' was kept of the source; kept columns: number, label"):
        find(table, keep="column:size")


@pytest.mark.parametrize("rows", [1, 500])
def test_a_table_whose_rows_are_all_equal_is_one_group(tmp_path: Path, rows: int):
    store = vectors_table(tmp_path / "s", np.repeat(made_up_vectors(1, 32), rows, axis=0))
    card = find(store, stages=("embedding",), keep="first")
    assert (card.groups, card.grouped, card.dropped) == ((0, 0, 0) if rows == 1 else (1, 500, 499))
    assert card.alone == rows - card.grouped


def test_the_report_shows_groups_above_and_pairs_below_and_escapes_names(table: Store):
    card = find(table, threshold=0.97, look_below=0.1, confirm_below=0.0)
    page = table.read(f"{card.folder}/report.html").decode()
    assert "<script" not in page
    assert page.count('<article class="set"') > 5
    assert page.count('src="data:image/jpeg;base64,') > 10
    for part in ("summary", "similarity", "thresholds", "embedding", "perceptual", "stages"):
        assert f'id="{part}"' in page
    thresholds = [one["threshold"] for one in card.thresholds]
    assert thresholds == sorted(thresholds)
    assert [one["rows"] for one in card.thresholds if one["threshold"] == 0.97] == [card.grouped]
    assert all(one["dropped"] == one["rows"] - one["groups"] for one in card.thresholds)


# In the order that a run gets to them: where its process is killed, as the function is entered.
PLACES = [
    "pipeline.dedup.edges.near_vectors",
    "pipeline.dedup.edges.confirmed",
    "pipeline.dedup.run.keepers",
    "pipeline.dedup.record.put",
    "pipeline.dedup.record.write_card",
]
JOB = """
import os, signal, sys
from unittest import mock
from jobs.dedup import run
from jobs.launch import launch
from pipeline.config import DedupConfig

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

place = sys.argv.pop(1)
with mock.patch(place, die):
    sys.exit(launch(DedupConfig, run, "jobs.dedup"))
"""


def test_a_run_killed_in_any_stage_is_finished_by_the_same_command(table: Store):
    wanted = groups_of(table, find(table).folder)
    address = ray.get_runtime_context().gcs_address  # the driver dies, its cluster lives: as with `ray job submit`

    def ended(place: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", JOB, place, "--store", table.url, "--threshold", "0.951"]
        environment = {**os.environ, "RAY_ADDRESS": address}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    for place in PLACES:
        assert ended(place).returncode == -signal.SIGKILL, place
    last = ended("pipeline.dedup.near.visiting")  # which a table this small does not call
    assert last.returncode == 0, last.stderr[-2000:]
    assert "to_make=1" not in last.stderr  # what has its receipt is not made again
    assert last.stderr.count("done=1 to_make=0") == 7
    assert "rows 60 = alone 25 + in groups 35" in last.stdout
    newest = max(Path(table.url).glob("duplicates/t/*/card.json"), key=lambda path: path.stat().st_mtime)
    folder = str(newest.parent.relative_to(table.url))
    assert groups_of(table, folder) == wanted
    assert set(table.files(folder)) == {*json.loads(newest.read_text())["sha256"], "card.json"}
