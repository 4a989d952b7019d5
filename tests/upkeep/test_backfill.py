"""Nightly runs over a source that grows, changes and shrinks; what each encodes, keeps, removes and says of itself."""

import json
import os
import re
import shutil
import time
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.config import BackfillConfig, IndexOptions, SourceConfig, VacuumConfig, VerifyConfig
from pipeline.errors import IncompleteError, InputError, LeaseHeldError
from pipeline.lease import Lease
from pipeline.runs import earlier_runs
from pipeline.serving.service import QueryError, Service
from pipeline.store import Store
from pipeline.table import read_receipts, table_folder
from pipeline.upkeep.backfill import backfill, embed_only
from pipeline.upkeep.vacuum import vacuum
from pipeline.upkeep.verify import verify
from tests.conftest import DEMO_MODEL, encoded, write_shard

pytestmark = pytest.mark.usefixtures("local_ray")

ROWS = 8  # of each shard


def config(corpus: Path, **fields: object) -> BackfillConfig:
    source = {"name": "s", "path": str(corpus), "key_column": "key", "removed_shards": "remove"}
    source |= fields.pop("source", {})
    given = {"store": str(corpus.parent / "store"), "table": "t", "model": str(DEMO_MODEL), "unit_rows": 100}
    given["index"] = IndexOptions(text_queries="none")  # importing torch for them takes five seconds
    return BackfillConfig(**{**given, "source": SourceConfig(**source), **fields})


def shard(corpus: Path, number: int, changed: tuple[int, ...] = ()) -> Path:
    """Write a shard of eight pictures, some of them other than before."""
    images: list[bytes | None] = [encoded(ROWS * number + i + (10_000 if i in changed else 0)) for i in range(ROWS)]
    return write_shard(corpus / f"{number:02d}.parquet", ROWS * number, images)


def keys_in(store: Path) -> list[str]:
    return sorted(ds.dataset(store / table_folder("t") / "data", partitioning="hive").to_table()["_row_id"].to_pylist())


def keys(*shards: int) -> list[str]:
    return sorted(f"row-{row:05d}" for number in shards for row in range(ROWS * number, ROWS * number + ROWS))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for number in range(10):
        shard(tmp_path / "corpus", number)
    return tmp_path / "corpus"


def test_a_source_that_grows_changes_and_shrinks(corpus: Path):
    for number in range(10, 50):
        shard(corpus, number)
    store = corpus.parent / "store"
    report, card = backfill(config(corpus))
    assert (report.embedded, report.rows_now, report.reused_now, card.ntotal) == (400, 400, 0, 400)
    before = Service(str(store), "t")
    assert before.vector_of_row("row-00075") is not None

    shard(corpus, 7, changed=(2, 5))
    (corpus / "09.parquet").unlink()
    shard(corpus, 50)
    report, card = backfill(config(corpus))
    assert (report.rows_now, report.reused_now) == (16, 6)  # two of the rewritten shard and eight new ones are encoded
    assert card.ntotal == 400
    assert keys_in(store) == keys(*range(9), *range(10, 51))
    after = Service(str(store), "t")
    assert after.snapshot.version != before.snapshot.version
    for row in range(72, 80):
        with pytest.raises(QueryError):
            after.vector_of_row(f"row-{row:05d}")
        hits = after.search(after.embed_image(encoded(row)), 400).hits
        assert f"row-{row:05d}" not in {hit.id for hit in hits}
    (hit,) = after.search(after.embed_image(encoded(58 + 10_000)), 1).hits
    assert (hit.id, hit.score > 0.99) == ("row-00058", True)
    (hit,) = after.search(after.embed_image(encoded(59)), 1).hits
    assert (hit.id, hit.score > 0.99) == ("row-00059", True)  # taken over, and right
    assert before.refresh()
    assert before.snapshot.version == after.snapshot.version
    assert verify(VerifyConfig(store=str(store))).faults == ()
    assert vacuum(VacuumConfig(store=str(store), dry_run=True)) == []

    files = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    started = time.monotonic()
    report, again = backfill(config(corpus))
    seconds = time.monotonic() - started
    assert (report.rows_now, again.version) == (0, card.version)
    assert seconds < 5
    changed = {path for path in store.rglob("*") if path.is_file() and files.get(path) != path.stat().st_mtime_ns}
    assert {path.parent.name for path in changed} - {run.id for run in earlier_runs(Store(str(store)), "t")} == {
        "lease"
    }


@pytest.mark.usefixtures("light_encoder")
def test_every_run_leaves_a_record_of_itself_that_adds_up(corpus: Path):
    store = Store(str(corpus.parent / "store"))
    (corpus / "03.parquet").write_bytes((corpus / "03.parquet").read_bytes()[:200])
    with pytest.raises(IncompleteError, match=r"1 shards cannot be read and are left out, as .*03\.parquet"):
        backfill(config(corpus, source={"bad_shards": "skip"}))
    shard(corpus, 3)
    backfill(config(corpus, source={"bad_shards": "skip"}))
    second, first = earlier_runs(store, "t")
    assert (first.exit_status, second.exit_status, second.message) == (3, 0, None)
    assert [Path(url).name for url in first.source["unreadable"]] == ["03.parquet"]
    assert first.counts == {"rows_in": 72, "embedded": 72, "rejected": 0, "reasons": {}}
    assert first.index["ntotal"] == 72  # what can be read is indexed all the same
    assert (second.source["new"], second.counts["embedded"], second.now["rows"]) == (1, 80, 8)
    assert second.now["reused"] == 0
    assert set(second.stages) == {"plan", "embed", "index", "clear"}
    assert sum(second.stages.values()) <= second.seconds + 0.1
    assert second.config["unit_rows"] == 100
    assert {"ray", "torch", "open_clip_torch", "pyarrow"} <= second.versions.keys()
    assert second.model["sha256"] == json.loads(store.read("embeddings/t/table.json"))["model_sha256"]
    shards = store.read_json(second.source["snapshot"])["shards"]
    assert shards["fingerprint"] == [
        f"{path.stat().st_size}:{path.stat().st_mtime}" for path in sorted(corpus.iterdir())
    ]
    page = store.read(f"runs/{second.id}/report.html").decode()
    assert first.id in page
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)


@pytest.mark.usefixtures("light_encoder")
def test_a_copied_shard_is_as_it_was_where_contents_are_asked_for(corpus: Path):
    fields = {"source": {"fingerprint": "content"}}
    first, _ = backfill(config(corpus, **fields))
    shutil.copy(corpus / "04.parquet", corpus / "copy")
    os.replace(corpus / "copy", corpus / "04.parquet")  # another time of modification
    report, _ = backfill(config(corpus, **fields))
    assert (first.rows_now, report.rows_now) == (80, 0)
    shard(corpus, 4, changed=(0,))
    report, _ = backfill(config(corpus, **fields))
    assert (report.rows_now, report.reused_now) == (8, 7)


@pytest.mark.usefixtures("light_encoder")
def test_unchanged_shards_are_never_read_again(corpus: Path):
    given = config(corpus, source={"fingerprint": "listing"})
    backfill(given)
    for path in sorted(corpus.iterdir())[1:]:  # as listed, and not to be read; the first one's footer has the columns
        times = path.stat()
        path.write_bytes(bytes(times.st_size))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    shard(corpus, 10)
    report, card = backfill(given)
    assert (report.rows_now, card.ntotal) == (8, 88)
    write_shard(corpus / "11.parquet", 5, [encoded(1)])
    with pytest.raises(
        InputError, match=r"'row-00005' is at row 5 of .*/data/.*, as the table has .*/00\.parquet and ag"
    ):
        backfill(given)


@pytest.mark.usefixtures("light_encoder")
def test_units_whose_files_went_missing_are_embedded_again(corpus: Path):
    backfill(config(corpus))
    data = corpus.parent / "store" / table_folder("t") / "data"
    next(data.rglob("*.parquet")).unlink()
    shard(corpus, 10)
    report, card = backfill(config(corpus))
    assert (report.rows_now, report.rows_in, card.ntotal) == (16, 88, 88)
    assert keys_in(corpus.parent / "store") == keys(*range(11))


@pytest.mark.usefixtures("light_encoder")
def test_rows_of_removed_shards_stay_where_nothing_else_is_asked(corpus: Path):
    fields = {"source": {"removed_shards": "retain"}}
    backfill(config(corpus, **fields))
    (corpus / "09.parquet").unlink()
    report, card = backfill(config(corpus, **fields))
    assert (report.rows_in, card.ntotal, len(keys_in(corpus.parent / "store"))) == (72, 80, 80)


@pytest.mark.usefixtures("light_encoder")
def test_a_damaged_page_costs_its_unit_and_is_named(corpus: Path):
    content = bytearray((corpus / "05.parquet").read_bytes())
    group = pq.ParquetFile(corpus / "05.parquet").metadata.row_group(0)
    place = next(i for i in range(group.num_columns) if group.column(i).path_in_schema == "image")
    start = group.column(place).data_page_offset
    content[start : start + 40] = bytes(40)  # the header of a page
    (corpus / "05.parquet").write_bytes(content)
    with pytest.raises(IncompleteError, match=r"05\.parquet cannot be read from row 0 on"):
        backfill(config(corpus))
    with pytest.raises(IncompleteError, match=r"1 units cannot be read .* 05-00000000-.*from row 0 on"):
        backfill(config(corpus, source={"bad_shards": "skip"}))
    assert keys_in(corpus.parent / "store") == keys(*range(5), *range(6, 10))
    shard(corpus, 5)
    report, card = backfill(config(corpus))
    assert (report.rows_in, report.rows_now, card.ntotal) == (80, 8, 80)


@pytest.mark.usefixtures("light_encoder")
def test_budgets_end_a_run_that_the_next_goes_on_from(corpus: Path):
    with pytest.raises(IncompleteError, match="8 units have no receipt"):
        backfill(config(corpus, max_rows=20))
    assert len(keys_in(corpus.parent / "store")) == 16  # whole units
    with pytest.raises(IncompleteError, match=r"stage \w+: the deadline of 1 s has passed"):
        backfill(config(corpus, deadline=timedelta(seconds=1)))
    report, card = backfill(config(corpus))
    assert (report.rows_in, card.ntotal) == (80, 80)


@pytest.mark.usefixtures("light_encoder")
def test_rejects_of_chosen_reasons_are_tried_again(tmp_path: Path):
    pictures = tmp_path / "corpus" / "pictures"
    pictures.mkdir(parents=True)
    for i in range(6):
        (pictures / f"{i}.jpg").write_bytes(encoded(i))
    (pictures / "6.jpg").write_bytes(b"text")
    names = [f"pictures/{i}.jpg" for i in range(8)]  # of 7 there is none
    pq.write_table(pa.table({"key": names, "image": names}), tmp_path / "corpus" / "a.parquet", row_group_size=4)
    given = config(tmp_path / "corpus", max_reject_fraction=0.5, unit_rows=4)
    report, card = backfill(given)
    assert (report.reasons, card.ntotal) == ({"fetch_not_found": 1, "not_an_image": 1}, 6)
    (pictures / "7.jpg").write_bytes(encoded(7))
    (pictures / "6.jpg").write_bytes(encoded(6))
    report = embed_only(given, "jobs.redrive", ("fetch_not_found",))
    assert (report.rows_now, report.reused_now, report.embedded) == (4, 2, 8)  # the whole unit is looked at again
    assert report.reasons == {}
    report, card = backfill(given)
    assert (report.rows_now, card.ntotal) == (0, 8)
    assert verify(VerifyConfig(store=given.store)).faults == ()


@pytest.mark.usefixtures("light_encoder")
def test_a_row_takes_the_place_of_an_elder_with_its_key_that_is_gone(tmp_path: Path):
    corpus = tmp_path / "corpus"
    write_shard(corpus / "a.parquet", 0, [encoded(i) for i in range(8)])
    write_shard(corpus / "b.parquet", 4, [encoded(100 + i) for i in range(8)])  # the first four keys are a's
    given = config(corpus, source={"duplicate_keys": "first"}, max_reject_fraction=1.0)
    report, _ = backfill(given)
    assert (report.embedded, report.reasons) == (12, {"duplicate_key": 4})
    write_shard(corpus / "a.parquet", 0, [encoded(i) for i in range(4)])
    report, _ = backfill(given)
    assert (report.embedded, report.reasons) == (12, {})
    assert report.reused_now == 8  # a's four and b's four; the four that were left out are encoded
    (corpus / "a.parquet").unlink()
    report, card = backfill(given)
    assert (report.rows_in, card.ntotal) == (8, 8)


@pytest.mark.usefixtures("light_encoder")
def test_a_row_whose_elder_is_gone_is_wanted_even_after_a_run_that_did_not_get_so_far(tmp_path: Path):
    corpus = tmp_path / "corpus"
    write_shard(corpus / "a.parquet", 0, [encoded(i) for i in range(8)])
    write_shard(corpus / "b.parquet", 4, [encoded(100 + i) for i in range(8)])
    given = config(corpus, source={"duplicate_keys": "first"}, max_reject_fraction=1.0)
    backfill(given)
    write_shard(corpus / "a.parquet", 0, [encoded(i) for i in range(4)])
    with pytest.raises(IncompleteError, match="1 units have no receipt, as b-"):
        backfill(given.model_copy(update={"max_rows": 4}))
    write_shard(corpus / "0.parquet", 8, [encoded(200)])  # the key of a row that b has, and comes before it
    report, card = backfill(given)
    assert (report.embedded, report.reasons, card.ntotal) == (12, {"duplicate_key": 1}, 12)
    assert keys_in(tmp_path / "store") == [f"row-{row:05d}" for row in range(12)]


@pytest.mark.usefixtures("light_encoder")
def test_keys_of_rows_that_the_table_has_from_elsewhere_count(corpus: Path):
    fields = {"source": {"removed_shards": "retain"}}
    backfill(config(corpus, **fields))
    (corpus / "09.parquet").rename(corpus / "renamed.parquet")
    with pytest.raises(InputError, match=r"'row-00072' is at row 0 of .*/data/.* and again at row 0 of .*renamed"):
        backfill(config(corpus, **fields))
    report, card = backfill(config(corpus))  # which removes
    assert (report.rows_now, card.ntotal) == (8, 80)
    for number in range(6):
        (corpus / f"{number:02d}.parquet").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"6 of 10 shards .* more than source\.max_removed_fraction 0\.5"):
        backfill(config(corpus))
    report, card = backfill(config(corpus, source={"max_removed_fraction": 1.0}))
    assert (report.rows_in, card.ntotal) == (32, 32)


def test_a_second_run_names_the_first_and_does_nothing(corpus: Path):
    store = Store(str(corpus.parent / "store"))
    with Lease(store, table_folder("t")), pytest.raises(LeaseHeldError, match="held by process"):
        backfill(config(corpus))
    assert read_receipts(store, table_folder("t")) == {}
    assert store.files("runs") == {}
