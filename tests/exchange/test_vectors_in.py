"""Vectors that were made elsewhere are a table like any other: indexed, searched, verified, vacuumed, gone on with."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.config import ImportConfig, IndexConfig, StatusConfig, VacuumConfig, VerifyConfig, checked
from pipeline.errors import IncompleteError, InputError, LeaseHeldError
from pipeline.exchange.rows import rows_of
from pipeline.exchange.take_in import TakeIn
from pipeline.exchange.vectors_in import import_embeddings
from pipeline.indexing.run import build
from pipeline.lease import Lease
from pipeline.store import Store
from pipeline.table import read_receipts, read_record, table_folder
from pipeline.upkeep.status import status
from pipeline.upkeep.vacuum import vacuum
from pipeline.upkeep.verify import verify
from tests.conftest import DEMO_MODEL

D = 8


def vectors(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, D)) * 7


def write(path: Path, rows: list, first: int = 0, kind: pa.DataType | None = None, group_rows: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = range(first, first + len(rows))
    columns = {
        "_row_id": pa.array([f"row-{number:03d}" for number in numbers], pa.string()),
        "vector": pa.array([None if row is None else list(row) for row in rows], kind or pa.list_(pa.float32())),
        "caption": pa.array([f"picture {number}" for number in numbers], pa.string()),
        "number": pa.array(numbers, pa.int32()),
    }
    pq.write_table(pa.table(columns), path, row_group_size=group_rows)


def config(folder: Path, store: str | None = None, **fields: object) -> ImportConfig:
    source = {"name": "far", "path": str(folder / "*.parquet"), "keep_columns": ("caption",)}
    given = {"store": store or str(folder / "store"), "dimensions": D, "unit_rows": 30, **fields}
    return checked(ImportConfig, {**given, "source": {**source, **fields.get("source", {})}})


def test_rows_are_normalised_kept_and_counted(tmp_path: Path):
    given = list(vectors(100))
    given[3], given[4], given[5] = None, np.zeros(D), np.full(D, np.inf)
    write(tmp_path / "a.parquet", given[:60])
    write(tmp_path / "b.parquet", given[60:], 60)
    made = import_embeddings(config(tmp_path))
    assert (made.rows, made.embedded, made.rejected) == (100, 97, {"null": 1, "zero_vector": 2})
    assert made.table == f"far__{made.space}"
    store = Store(str(tmp_path / "store"))
    found = pa.Table.from_batches(rows_of(store, made.table).batches()).to_pylist()
    good = [number for number in range(100) if number not in (3, 4, 5)]
    assert [row["_row_id"] for row in found] == [f"row-{number:03d}" for number in good]
    assert [row["caption"] for row in found] == [f"picture {number}" for number in good]
    wanted = np.stack([given[number] for number in good]).astype(np.float32)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert np.allclose([row["vector"] for row in found], wanted, atol=1e-6)
    rejects = pipeline.connect(store.url).rejects(made.table).to_pylist()
    assert [(row["row"], row["reason"]) for row in rejects] == [(3, "null"), (4, "zero_vector"), (5, "zero_vector")]


@pytest.mark.usefixtures("local_ray")
def test_indexing_search_status_verify_and_vacuum_take_it_as_it_is(tmp_path: Path):
    given = vectors(200)
    write(tmp_path / "a.parquet", list(given))
    made = import_embeddings(config(tmp_path))
    store = str(tmp_path / "store")
    card = build(IndexConfig(store=store, text_queries="none"))
    assert (card.ntotal, card.space, card.d) == (200, made.space, D)
    unit = (given / np.linalg.norm(given, axis=1, keepdims=True)).astype(np.float32)
    with pipeline.connect(store) as db:
        found = db.search("far", query=unit[17], k=5).select("_row_id", "caption").run()
        order = np.argsort(-(unit @ unit[17]))[:5]
        assert found["_row_id"].to_pylist() == [f"row-{number:03d}" for number in order]
        assert found["caption"].to_pylist() == [f"picture {number}" for number in order]
        assert db.search("far", row_id="row-017", k=3).filter("number > 100").run().num_rows == 3
        with pytest.raises(InputError, match="no checkpoint is known of these vectors"):
            db.search("far", text="a red star").run()
        with pytest.raises(InputError, match="no checkpoint is known of these vectors"):
            db.search("far", image=b"picture").run()
        assert db.describe(made.table)["embedded"] == 200
    assert verify(VerifyConfig(store=store)).faults == ()
    assert [waste.path for waste in vacuum(VacuumConfig(store=store))] == []
    standing = status(StatusConfig(store=store))
    assert (standing.units_pending, standing.rows_done, standing.index["has_all_rows"]) == (0, 200, True)


def test_a_second_import_does_nothing_and_a_new_shard_is_taken_in(tmp_path: Path):
    write(tmp_path / "a.parquet", list(vectors(50)))
    first = import_embeddings(config(tmp_path))
    store = Store(str(tmp_path / "store"))
    receipts = read_receipts(store, table_folder(first.table))
    import_embeddings(config(tmp_path))
    assert read_receipts(store, table_folder(first.table)) == receipts
    write(tmp_path / "b.parquet", list(vectors(20, 1)), 50)
    assert import_embeddings(config(tmp_path)).embedded == 70
    write(tmp_path / "a.parquet", list(vectors(30, 2)))
    assert import_embeddings(config(tmp_path)).embedded == 50
    assert verify(VerifyConfig(store=store.url)).faults == ()


def test_an_interrupted_import_goes_on_with_the_same_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "a.parquet", list(vectors(200)))
    call, done = TakeIn.__call__, []

    def dies(step: TakeIn, unit):
        if unit.first_row >= 120:
            raise RuntimeError("the machine is gone")
        done.append(unit.id)
        return call(step, unit)

    monkeypatch.setattr(TakeIn, "__call__", dies)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        import_embeddings(config(tmp_path, table="t"))
    store = Store(str(tmp_path / "store"))
    before = read_receipts(store, table_folder("t"))
    assert 0 < len(before) <= 6

    def counted(step: TakeIn, unit):
        assert unit.id not in before
        return call(step, unit)

    monkeypatch.setattr(TakeIn, "__call__", counted)
    assert import_embeddings(config(tmp_path, table="t")).embedded == 200
    after = read_receipts(store, table_folder("t"))
    assert all(after[unit] == receipt for unit, receipt in before.items())
    assert verify(VerifyConfig(store=store.url)).faults == ()


def test_another_writer_is_refused(tmp_path: Path):
    write(tmp_path / "a.parquet", list(vectors(5)))
    with Lease(Store(str(tmp_path / "store")), table_folder("t")), pytest.raises(LeaseHeldError):
        import_embeddings(config(tmp_path, table="t"))


WIDTHS: dict[str, Callable[[], tuple[list, pa.DataType]]] = {
    "fixed": lambda: (list(vectors(5)[:, :6]), pa.list_(pa.float32(), 6)),
    "lists": lambda: (list(vectors(5)[:, :6]), pa.list_(pa.float32())),
    "some lists": lambda: ([*vectors(4), vectors(1)[0][:6]], pa.list_(pa.float64())),
    "large lists": lambda: ([None, *vectors(4)[:, :3]], pa.large_list(pa.float32())),
}


@pytest.mark.parametrize("way", list(WIDTHS))
def test_another_width_is_refused_before_any_work(tmp_path: Path, way: str):
    write(tmp_path / "a.parquet", list(vectors(5)))
    rows, kind = WIDTHS[way]()
    write(tmp_path / "b.parquet", rows, 5, kind)
    with pytest.raises(InputError, match=r"b\.parquet: column 'vector' has .*; dimensions: 8"):
        import_embeddings(config(tmp_path))
    assert not Store(str(tmp_path / "store")).files("embeddings").keys() - {"lease"}


def test_a_width_that_the_footer_hides_ends_the_run(tmp_path: Path):
    write(tmp_path / "a.parquet", [vectors(1)[0][:7], [*vectors(1)[0], 1.0]])
    with pytest.raises(InputError, match=r"a\.parquet, from row 0 on: a vector has 7 numbers, wanted 8"):
        import_embeddings(config(tmp_path))


def refused(change: Callable[[dict], None], tmp_path: Path, **fields: object) -> str:
    write(tmp_path / "a.parquet", list(vectors(5)))
    table = pq.read_table(tmp_path / "a.parquet")
    columns = dict(zip(table.column_names, table.columns, strict=True))
    change(columns)
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError) as caught:
        import_embeddings(config(tmp_path, **fields))
    assert not (tmp_path / "store" / "sources").exists()
    return str(caught.value)


def test_ids_that_are_null_or_there_twice_are_refused(tmp_path: Path):
    null = refused(lambda columns: columns.update(_row_id=["a", "b", None, "d", "e"]), tmp_path)
    assert "1 nulls in" in null
    twice = refused(lambda columns: columns.update(_row_id=["a", "b", "a", "d", "e"]), tmp_path)
    assert "'a' is at row 0" in twice
    made = import_embeddings(config(tmp_path, source={"duplicate_keys": "first"}))
    assert (made.embedded, made.rejected) == (4, {"duplicate_key": 1})


def test_what_is_no_list_of_numbers_is_refused(tmp_path: Path):
    assert "wanted lists of float" in refused(lambda columns: columns.update(vector=[1, 2, 3, 4, 5]), tmp_path)
    assert "wanted lists of float" in refused(lambda columns: columns.update(vector=[["a"]] * 5), tmp_path)
    assert "no column 'vector'" in refused(lambda columns: columns.pop("vector"), tmp_path)
    assert "no column 'nothing'" in refused(lambda _: None, tmp_path, source={"keep_columns": ("nothing",)})
    with pytest.raises(InputError, match="not both"):
        config(tmp_path, model="m", label="l")


def test_all_bad_and_no_rows_are_named(tmp_path: Path):
    write(tmp_path / "a.parquet", [None] * 5)
    with pytest.raises(IncompleteError, match=r"5 of 5 rows rejected \{'null': 5\}"):
        import_embeddings(config(tmp_path))
    made = import_embeddings(config(tmp_path, max_reject_fraction=1.0))
    assert (made.rows, made.embedded, made.rejected) == (5, 0, {"null": 5})
    write(tmp_path / "a.parquet", [])
    with pytest.raises(InputError, match="no rows"):
        import_embeddings(config(tmp_path, source={"name": "none"}))


def test_a_shard_that_cannot_be_read_is_the_end_or_left_out(tmp_path: Path):
    write(tmp_path / "a.parquet", list(vectors(40)))
    write(tmp_path / "b.parquet", list(vectors(40, 1)), 40)
    content = bytearray((tmp_path / "b.parquet").read_bytes())
    content[4:400] = b"\xff" * 396
    (tmp_path / "b.parquet").write_bytes(bytes(content))
    with pytest.raises(IncompleteError, match=r"b\.parquet"):
        import_embeddings(config(tmp_path, source={"bad_shards": "skip", "key_column": "number"}))
    store = Store(str(tmp_path / "store"))
    (table,) = store.folders("embeddings")
    assert rows_of(store, table).count == 60  # of b all but its first row group, a unit


def test_spaces_are_of_a_label_and_a_width_or_of_a_checkpoint(tmp_path: Path):
    write(tmp_path / "a.parquet", list(vectors(5)))
    spaces = [
        import_embeddings(config(tmp_path, table=name, **fields)).space
        for name, fields in {
            "a": {"label": "DINO"},
            "b": {"label": "DINO", "source": {"name": "other"}},
            "c": {"label": "SSCD"},
            "d": {},
            "e": {"source": {"name": "other"}},
        }.items()
    ]
    assert spaces[0] == spaces[1]
    assert len(set(spaces)) == 4
    with pytest.raises(InputError, match="has space"):
        import_embeddings(config(tmp_path, table="a", label="SSCD"))
    record = read_record(Store(str(tmp_path / "store")), "a")
    assert (record.has_model, record.model_id) == (False, "DINO")
    with pytest.raises(InputError, match="has vectors of 64 numbers; dimensions: 8"):
        import_embeddings(config(tmp_path, table="f", model=str(DEMO_MODEL)))


@pytest.mark.usefixtures("local_ray")
def test_vectors_of_a_real_checkpoint_are_asked_by_text(demo_store: str, tmp_path: Path):
    """The demo's own vectors, taken out and in again, have its space, and are found by the same words."""
    store = Store(demo_store)
    (table,) = store.folders("embeddings")
    rows = pa.Table.from_batches(rows_of(store, table, ["_row_id", "vector", "caption"]).batches())
    pq.write_table(rows, tmp_path / "a.parquet")
    made = import_embeddings(config(tmp_path, dimensions=64, model=str(DEMO_MODEL)))
    assert made.space == read_record(store, table).space
    build(IndexConfig(store=str(tmp_path / "store"), text_queries="none"))
    with pipeline.connect(str(tmp_path / "store")) as db, pipeline.connect(demo_store) as demo:
        found = db.search("far", text="a red star", k=5).run()
        wanted = demo.search("figures", text="a red star", k=5).run()
    assert found["_row_id"].to_pylist() == wanted["_row_id"].to_pylist()


def test_a_far_store_and_far_vectors(s3: str, tmp_path: Path):
    write(tmp_path / "a.parquet", list(vectors(50)))
    Store(f"{s3}/import").replace("in/a.parquet", (tmp_path / "a.parquet").read_bytes())
    path = {"source": {"path": f"{s3}/import/in/*.parquet"}}
    made = import_embeddings(config(tmp_path, f"{s3}/import/store", **path))
    assert made.embedded == 50
    assert verify(VerifyConfig(store=f"{s3}/import/store")).faults == ()
    assert rows_of(Store(f"{s3}/import/store"), made.table).count == 50


def test_a_source_that_the_store_knows_keeps_its_own_files(demo_store: str, tmp_path: Path):
    from pipeline.embedding.sources import read_source, write_source

    known = read_source(Store(demo_store), "figures")
    mine = Store(str(tmp_path / "store"))
    write_source(mine, known)
    write(tmp_path / "a.parquet", list(vectors(5)))
    import_embeddings(config(tmp_path, source={"name": "figures"}))
    assert read_source(mine, "figures") == known
