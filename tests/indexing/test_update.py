import logging
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import IndexConfig, PublishConfig, RollbackConfig, VacuumConfig
from pipeline.errors import IncompleteError, InputError
from pipeline.indexing import publish
from pipeline.indexing.exact import NO_ID
from pipeline.indexing.publish import Card
from pipeline.indexing.run import build, compact
from pipeline.searching.index import OpenIndex, open_index
from pipeline.store import Store
from pipeline.table import read_receipts, receipt_path, table_folder
from pipeline.upkeep.vacuum import vacuum
from pipeline.upkeep.versions import publish_version, roll_back
from tests.indexing.conftest import made_up_vectors, write_table

pytestmark = pytest.mark.usefixtures("local_ray")

ROWS = made_up_vectors(4000, 32)
BASE = {"factory": "IVF32,SQ8", "queries": 300, "partials": 4}


@pytest.fixture
def based(tmp_path: Path) -> tuple[Store, Card]:
    store = write_table(str(tmp_path / "store"), "t", ROWS[:2000], 100)
    write_table(store.url, "t", ROWS[2000:3000], 100, shard="b")
    return store, build(IndexConfig(store=store.url, **BASE))


def remove_units(store: Store, *units: str) -> None:
    for unit in units:
        store.remove(receipt_path(table_folder("t"), unit))


def live_vectors(store: Store) -> dict[str, np.ndarray]:
    """What a stranger reads out of the table: vectors by row id."""
    opened = open_index(store, "t")
    live = opened.index.live
    ids = np.arange(opened.card.end) if live is None else live.ids
    return {opened.row_ids[int(n)].as_py(): opened.vector(int(n)) for n in ids}


def found(opened: OpenIndex, xq: np.ndarray, k: int = 10, **asked: object) -> list[list[str]]:
    _, ids = opened.search(xq, k, **asked)
    return [[opened.row_ids[int(n)].as_py() for n in row if n != NO_ID] for row in ids]


def filled_since(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "partials_done" in record.getMessage()]


def test_new_rows_are_found_and_removed_ones_never_without_building_anew(
    based: tuple[Store, Card], caplog: pytest.LogCaptureFixture
):
    store, first = based
    write_table(store.url, "t", ROWS[3000:3108], 100, shard="c")
    remove_units(store, "u-000300", "b-u-000000")
    caplog.set_level(logging.INFO, logger="pipeline")
    card = build(IndexConfig(store=store.url, **BASE))
    assert filled_since(caplog) == ["index=t partials_done=0 to_fill=1"]
    assert (card.base, card.training) == (first.version, first.training)
    assert (card.ntotal, card.end, first.end) == (3000 + 108 - 180, 3108, 3000)
    assert card.only(publish.INDEX) == first.only(publish.INDEX)
    assert card.recall_at_10["image"] >= 0.95
    opened = open_index(store, "t")
    new = ROWS[3000:3108]
    assert [rows[0] for rows in found(opened, new[:50], 1)] == [f"c-row-{n}" for n in range(1, 60) if n % 10][:50]
    gone = {f"row-{n}" for n in range(300, 400)} | {f"b-row-{n}" for n in range(100)}
    for asked in ({"nprobe": 1}, {"nprobe": 32}, {"exact": True}, {}):
        for k in (1, 10, 2928):
            assert not gone & {row for rows in found(opened, ROWS[::50], k, **asked) for row in rows}
    assert opened.number_of("row-301") is None
    assert opened.number_of("row-501") is not None
    assert opened.place_of(opened.number_of("c-row-101"))[0].unit == "c-u-000100"
    assert set(live_vectors(store)) == {row for rows in found(opened, ROWS[:1], 2928, exact=True) for row in rows}
    assert build(IndexConfig(store=store.url, **BASE)) == card  # nothing to do


def test_a_changed_index_answers_as_one_that_is_built_anew(based: tuple[Store, Card]):
    store, _ = based
    write_table(store.url, "t", ROWS[3000:3150], 100, shard="c")
    remove_units(store, "u-000300")
    changed = build(IndexConfig(store=store.url, **BASE))
    xq = made_up_vectors(200, 32, seed=5)
    ours, ours_everywhere = found(open_index(store, "t"), xq), found(open_index(store, "t"), xq, nprobe=32)
    anew = build(IndexConfig(store=store.url, rebuild=True, **BASE))
    assert (anew.base, anew.end, anew.ntotal) == (anew.version, changed.ntotal, changed.ntotal)
    theirs, everywhere = found(open_index(store, "t"), xq), found(open_index(store, "t"), xq, nprobe=32)
    exact = found(open_index(store, "t"), xq, exact=True)

    def recall(answers: list[list[str]]) -> float:
        return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(answers, exact, strict=True)]))

    assert abs(recall(ours) - recall(theirs)) < 0.03
    assert min(recall(ours_everywhere), recall(everywhere)) > 0.995
    stated = changed.recall_at_10["image"]
    assert abs(recall(ours) - stated) < 0.05


def test_rows_of_the_delta_may_go_and_more_may_come(based: tuple[Store, Card]):
    store, first = based
    write_table(store.url, "t", ROWS[3000:3090], 100, shard="c")
    build(IndexConfig(store=store.url, **BASE))
    remove_units(store, "c-u-000000")
    write_table(store.url, "t", ROWS[3090:3180], 100, shard="d")
    card = build(IndexConfig(store=store.url, **BASE))
    assert (card.base, card.ntotal, card.end) == (first.version, 3090, 3180)
    opened = open_index(store, "t")
    assert found(opened, ROWS[3090:3091], 1) == [["d-row-1"]]
    everything = {row for rows in found(opened, ROWS[:1], 3090, exact=True) for row in rows}
    assert len(everything) == 3090
    assert not any(row.startswith("c-") for row in everything)
    # A shard that was embedded anew: its rows keep their names, and get new ids.
    remove_units(store, "u-000000")
    write_table(store.url, "t", ROWS[3500:3590], 100, shard="a")
    card = build(IndexConfig(store=store.url, **BASE))
    opened = open_index(store, "t")
    assert found(opened, ROWS[3500:3501], 1) == [["row-1"]]
    assert opened.number_of("row-1") >= 3180


def test_much_that_changed_is_written_as_one_and_more_is_built_anew(based: tuple[Store, Card]):
    store, first = based
    write_table(store.url, "t", ROWS[3000:3270], 100, shard="c")
    remove_units(store, "u-000300", "u-000400")
    card = build(IndexConfig(store=store.url, **BASE))
    assert publish.DELTA not in card.files  # 450 of 3270: more than a tenth
    assert (card.base, card.training) == (card.version, first.training)
    opened = open_index(store, "t")
    assert opened.index.whole.ntotal == card.ntotal == 3090
    assert found(opened, ROWS[3000:3001], 1) == [["c-row-1"]]
    write_table(store.url, "t", ROWS[3270:3900], 100, shard="d")
    card = build(IndexConfig(store=store.url, **BASE))
    assert card.trained_on == card.ntotal == card.end == 3720  # trained again
    remove_units(store, "u-000500")
    card = build(IndexConfig(store=store.url, **{**BASE, "rebuild_after": 0.0}))
    assert card.trained_on == card.end == 3630


def test_compacting_writes_lists_as_one_without_what_is_gone(based: tuple[Store, Card]):
    store, first = based
    write_table(store.url, "t", ROWS[3000:3090], 100, shard="c")
    remove_units(store, "u-000300")
    changed = build(IndexConfig(store=store.url, **BASE))
    assert publish.DELTA in changed.files
    xq = made_up_vectors(100, 32, seed=5)
    before = found(open_index(store, "t"), xq, nprobe=8)
    card = compact(IndexConfig(store=store.url, **BASE))
    assert publish.DELTA not in card.files
    opened = open_index(store, "t")
    assert opened.index.whole.ntotal == card.ntotal == changed.ntotal == 3000
    assert found(opened, xq, nprobe=8) == before
    assert build(IndexConfig(store=store.url, **BASE)) == card  # built from the same
    remove_units(store, "u-000400")
    card = build(IndexConfig(store=store.url, **BASE))
    assert (card.base_rows, card.ntotal, card.training) == (3090, 2910, first.training)


def test_files_that_a_version_goes_on_from_outlive_the_version_they_came_with(based: tuple[Store, Card]):
    store, first = based
    old = open_index(store, "t")
    xq = ROWS[:20]
    expected = found(old, xq)
    for shard, start in (("c", 3000), ("d", 3090)):
        write_table(store.url, "t", ROWS[start : start + 90], 100, shard=shard)
        card = build(IndexConfig(store=store.url, **BASE))
    vacuum(VacuumConfig(store=store.url, table="t", keep_versions=1))
    assert publish.versions(store, "t") == [card.version]
    assert found(open_index(store, "t"), ROWS[3090:3091], 1) == [["d-row-1"]]
    left = {path for path in store.files("indexes/t") if not path.startswith("lease/")}
    assert left == {"CURRENT", f"{card.version}/card.json", *card.sha256}
    assert any(path.startswith(first.version) for path in left)
    build(IndexConfig(store=store.url, rebuild=True, **BASE))
    vacuum(VacuumConfig(store=store.url, table="t", keep_versions=1))
    assert not any(path.startswith(first.version) for path in store.files("indexes/t"))
    assert found(old, xq) == expected  # who has a version open is never cut off


def test_rolling_back_is_a_swap_that_no_build_undoes(based: tuple[Store, Card]):
    store, first = based
    write_table(store.url, "t", ROWS[3000:3090], 100, shard="c")
    second = build(IndexConfig(store=store.url, **BASE))
    assert roll_back(RollbackConfig(store=store.url)) == first
    assert publish.read_current(store, "t") == first.version
    with pytest.raises(IncompleteError, match=rf"withdrawn.*--version {second.version}"):
        build(IndexConfig(store=store.url, **BASE))
    with pytest.raises(InputError, match="no older version"):
        roll_back(RollbackConfig(store=store.url))
    assert publish_version(PublishConfig(store=store.url, version=second.version)) == second
    assert build(IndexConfig(store=store.url, **BASE)) == second
    with pytest.raises(InputError, match="no such index version"):
        publish_version(PublishConfig(store=store.url, version="20200101T000000Z-0"))


def test_a_damaged_file_of_the_version_before_is_named_and_nothing_is_published(based: tuple[Store, Card]):
    store, first = based
    path = Path(store.path(f"indexes/t/{first.only(publish.TRAINED)}"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    write_table(store.url, "t", ROWS[3000:3090], 100, shard="c")
    with pytest.raises(IncompleteError, match=r"trained\.faiss is damaged"):
        build(IndexConfig(store=store.url, **BASE))
    assert publish.read_current(store, "t") == first.version


def test_rows_that_do_not_fit_the_training_are_told_of(based: tuple[Store, Card]):
    store, _ = based
    strangers = np.random.default_rng(3).standard_normal((180, 32))  # where the others have next to nothing
    strangers /= np.linalg.norm(strangers, axis=1, keepdims=True)
    write_table(store.url, "t", strangers.astype(np.float32), 100, shard="c")
    card = build(IndexConfig(store=store.url, **BASE))
    assert card.drift["nearness_added"] < card.drift["nearness"]
    assert "--rebuild" in str(card.advice)
    assert card.recall_at_10["image"] >= 0.95


def test_an_update_over_s3_copies_what_it_keeps(s3: str):
    store = write_table(f"{s3}/updated", "t", ROWS[:2000], 100)
    first = build(IndexConfig(store=store.url, **BASE))
    write_table(store.url, "t", ROWS[2000:2090], 100, shard="b")
    card = build(IndexConfig(store=store.url, **BASE))
    assert card.base == first.version
    assert found(open_index(store, "t"), ROWS[2000:2001], 1) == [["b-row-1"]]
    assert not any("/.build-" in f"/{path}" for path in store.files("indexes/t"))
    assert len(read_receipts(store, table_folder("t"))) == 24
