from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import SourceConfig
from pipeline.embedding import keys
from pipeline.embedding.keys import Committed, KeyFile, duplicate_rows
from pipeline.embedding.plan import Shard, cut, survey
from pipeline.errors import InputError
from pipeline.table import Unit

HASHES: dict[str, Callable[[pa.Array], np.ndarray]] = {
    "real": keys._hash,
    "one value": lambda texts: np.full(len(texts), 7, np.uint64),
    "two values": lambda texts: np.array([len(text or "") % 2 for text in texts.to_pylist()], np.uint64),
}
KEYS = st.integers(0, 12)  # few, so that many are equal


def source(folder: Path, **fields: object) -> SourceConfig:
    return SourceConfig(name="s", path=str(folder), **{"key_column": "key", **fields})


def shards_of(folder: Path, *columns: pa.Array | list, group_rows: int = 4) -> tuple[Shard, ...]:
    """Write each column as the keys of a shard, 0.parquet, 1.parquet, …"""
    for number, column in enumerate(columns):
        table = pa.table({"image": pa.array([b""] * len(column), pa.binary()), "key": column})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=group_rows)
    return survey(source(folder)).shards


def found(folder: Path, shards: tuple[Shard, ...], *earlier: object, **fields: object) -> dict[str, list[int]]:
    committed, rejected = earlier or ([], {})
    known = Committed(units=tuple(committed), rejected=rejected, **fields.pop("beside", {}))
    rows = duplicate_rows(source(folder, **{"duplicate_keys": "first", **fields}), shards, known)
    assert all(numbers.dtype == np.int64 for numbers in rows.values())
    return {Path(url).name: numbers.tolist() for url, numbers in rows.items()}


def slowly(columns: list[list], shards: tuple[Shard, ...], committed: list[Unit], rejected: dict) -> list[tuple]:
    """The obvious way, one dictionary: (shard, row, its key, shard and row of the first row with that key)."""
    done = {(unit.shard, row) for unit in committed for row in range(unit.first_row, unit.first_row + unit.rows)}
    first: dict[str, tuple[str, int]] = {}
    repeats = []
    rows = [
        (shard.url, row, str(key)) for shard, keys in zip(shards, columns, strict=True) for row, key in enumerate(keys)
    ]
    for url, row, key in sorted(rows, key=lambda row: row[:2] not in done):
        if row in rejected.get(url, ()):
            continue
        if key in first and (url, row) not in done:
            repeats.append((url, row, key, *first[key]))
        first.setdefault(key, (url, row))
    return repeats


@st.composite
def corpora(draw: st.DrawFn) -> list[pa.Array]:
    def column() -> pa.Array:
        kind = draw(st.sampled_from([pa.string(), pa.large_string(), pa.int8(), pa.uint64(), pa.binary()]))
        numbers = draw(st.lists(KEYS, max_size=12))
        return pa.array(numbers if pa.types.is_integer(kind) else [str(n) for n in numbers], kind)

    return [pa.array(["0"]), *(column() for _ in range(draw(st.integers(0, 4))))]


@settings(max_examples=150, deadline=None)
@given(
    columns=corpora(),
    group_rows=st.integers(1, 5),
    hashed=st.sampled_from(sorted(HASHES)),
    part_rows=st.sampled_from([1, 5, 1000]),
    batch_rows=st.sampled_from([1, 3, 1000]),
    choice=st.randoms(use_true_random=False),
)
def test_rows_found_are_those_that_a_dictionary_of_all_keys_finds(
    columns, group_rows, hashed, part_rows, batch_rows, choice
):
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "_hash", HASHES[hashed])
        patch.setattr(keys, "PART_ROWS", part_rows)
        patch.setattr(keys, "BATCH_ROWS", batch_rows)
        shards = shards_of(Path(name), *columns, group_rows=group_rows)
        committed = [unit for unit in cut(shards, 3) if choice.random() < 0.4]
        rejected = {
            unit.shard: np.array([unit.first_row + row for row in range(unit.rows) if choice.random() < 0.3], np.int64)
            for unit in committed
        }
        texts = [
            [text.decode() if isinstance(text, bytes) else text for text in column.to_pylist()] for column in columns
        ]
        expected = slowly(texts, shards, committed, rejected)

        rows: dict[str, list[int]] = {}
        for url, row, *_ in expected:
            rows.setdefault(Path(url).name, []).append(row)
        assert found(Path(name), shards, committed, rejected) == rows
        if not expected:
            assert found(Path(name), shards, committed, rejected, duplicate_keys="error") == {}
            return
        with pytest.raises(InputError) as refused:
            found(Path(name), shards, committed, rejected, duplicate_keys="error")
        url, row, key, first_url, first_row = expected[0]
        assert f"{key!r} is at row {first_row} of {first_url} and again at row {row} of {url};" in str(refused.value)
        assert f" {len(expected)} rows in all have the key of an earlier row" in str(refused.value)


def test_a_refusal_says_what_to_do(tmp_path: Path):
    shards = shards_of(tmp_path, ["a", "b", "a"])
    with pytest.raises(InputError, match=r"source s: key_column 'key': 'a' is at .*source\.duplicate_keys = \"first\""):
        found(tmp_path, shards, duplicate_keys="error")


@pytest.mark.parametrize("hashed", HASHES)
def test_of_rows_that_are_all_equal_the_first_stays(tmp_path: Path, hashed: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keys, "_hash", HASHES[hashed])
    shards = shards_of(tmp_path, [""] * 10, [""] * 3)
    assert found(tmp_path, shards) == {"0.parquet": list(range(1, 10)), "1.parquet": [0, 1, 2]}
    committed = [unit for unit in cut(shards, 4) if unit.shard.endswith("1.parquet")]
    assert found(tmp_path, shards, committed, {}) == {"0.parquet": list(range(10))}


def test_a_row_that_gave_way_to_one_never_committed_keeps_nothing_from_being_embedded(tmp_path: Path):
    shards = shards_of(tmp_path, ["a"], ["a"])  # a run rejected the second row, committed it, and was killed
    committed = cut(shards[1:], 4)
    assert found(tmp_path, shards, committed, {shards[1].url: np.array([0])}) == {}


def test_rows_have_no_duplicates_where_no_column_is_their_key(tmp_path: Path):
    shards = shards_of(tmp_path, ["a", "a", None])
    assert found(tmp_path, shards, key_column=None, duplicate_keys="error") == {}


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_for_a_duplicate_have_none(tmp_path: Path, rows: int):
    shards_of(tmp_path, ["a"])
    assert found(tmp_path, survey(source(tmp_path)).shards[:rows]) == {}


@pytest.mark.parametrize("duplicate_keys", ["error", "first"])
def test_null_keys_are_refused_before_duplicates_are(tmp_path: Path, duplicate_keys: str):
    shards = shards_of(tmp_path, ["a", "a"], pa.array(["b", None, "c"] * 30))
    with pytest.raises(InputError, match=r"30 nulls in .*1\.parquet, the first at row 1; wanted none"):
        found(tmp_path, shards, duplicate_keys=duplicate_keys)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "b", "c"]),
        pa.array([1, 2, 3], pa.uint64()),
        pa.array([1.5, 2.5, -0.0]),
        pa.array([b"a", b"b", b"c"]),
        pa.array(["a", "b", "c"]).dictionary_encode(),
        pa.array([1, 2, 3], pa.timestamp("us")),
        pa.array(["a", "b", "c"], pa.string_view()),
    ],
    ids=lambda column: str(column.type),
)
def test_keys_of_any_scalar_type_are_taken_and_duplicates_among_them_found(tmp_path: Path, column: pa.Array):
    assert found(tmp_path, shards_of(tmp_path, column), duplicate_keys="error") == {}
    shards = shards_of(tmp_path, column, column.slice(2))
    with pytest.raises(InputError, match=r"row 2 of .*0\.parquet and again at row 0 of .*1\.parquet; 1 rows"):
        found(tmp_path, shards, duplicate_keys="error")


def test_bytes_that_are_no_text_are_refused_also_where_a_column_says_text(tmp_path: Path):
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    for column in (broken, pa.array([b"\xff\xfe"])):
        shards = shards_of(tmp_path, ["a"], column)
        with pytest.raises(InputError, match=r"key_column 'key' of .*1\.parquet cannot be read as text: Invalid UTF8"):
            found(tmp_path, shards)


def test_a_shard_that_changed_since_it_was_listed_is_refused(tmp_path: Path):
    shards = shards_of(tmp_path, ["a", "b"], ["c"])
    shards_of(tmp_path, ["a", "b", "c"])
    with pytest.raises(InputError, match=r"0\.parquet has 3 rows; wanted 2, as when it was listed"):
        found(tmp_path, shards)
    (tmp_path / "1.parquet").unlink()
    with pytest.raises(InputError, match=r"1\.parquet cannot be read"):
        found(tmp_path, shards[1:])


def test_rows_that_are_tried_again_give_way_to_all_that_are_there(tmp_path: Path):
    shards = shards_of(tmp_path, ["x", "y"], ["y", "x", "z"])
    unit = Unit("b", shards[1].url, 0, 3, 0, 1)
    tried = {"beside": {"reopened": {shards[1].url: np.array([1])}}}  # z and y are in the table, x was rejected
    assert found(tmp_path, shards, [unit], {}, **tried) == {"0.parquet": [1], "1.parquet": [1]}


def test_keys_that_the_table_has_from_elsewhere_come_first(tmp_path: Path):
    shards = shards_of(tmp_path, ["x", "y"], ["z"])
    pq.write_table(pa.table({"_row_id": ["y", "w"]}), tmp_path / "table.parquet")
    beside = {"elsewhere": (KeyFile(str(tmp_path / "table.parquet"), 2, "_row_id"),)}
    assert found(tmp_path, shards, beside=beside) == {"0.parquet": [1]}
