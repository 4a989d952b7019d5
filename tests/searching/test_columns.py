import datetime
import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.indexing.vectors import Span
from pipeline.searching import columns
from pipeline.searching.columns import Columns, open_columns
from pipeline.store import Store
from pipeline.table import File, Receipt

KEPT = {
    "caption": pa.string(),
    "number": pa.int32(),
    "day": pa.date32(),
    "tags": pa.list_(pa.string()),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rows(first: int, count: int) -> dict[str, list]:
    numbers = range(first, first + count)
    return {
        "_row_id": [f"row-{number}" for number in numbers],
        "_content_hash": [hashlib.sha256(str(number // 2).encode()).hexdigest() for number in numbers],
        "caption": [None if number % 5 == 0 else f"no. {number}" for number in numbers],
        "number": list(numbers),
        "day": [datetime.date(2026, 1, 1) + datetime.timedelta(days=number) for number in numbers],
        "tags": [["a"] * (number % 3) for number in numbers],
    }


class Made:
    """A table's files, and an index over them whose units lie at any ids."""

    def __init__(self, folder: Path, bases: list[int], counts: list[int], end: int, version: str = "v1") -> None:
        self.store = Store(str(folder / "store"))
        self.record = SimpleNamespace(kept={name: str(kind) for name, kind in KEPT.items()}, content_hashes=True)
        names, spans = [f"row-gone-{number}" for number in range(end)], []
        for base, count in zip(bases, counts, strict=True):
            path = Path(self.store.path(f"embeddings/t/data/unit=u{base}/f.parquet"))
            path.parent.mkdir(parents=True, exist_ok=True)
            form = pa.schema([("_row_id", pa.string()), ("_content_hash", pa.string()), *KEPT.items()])
            pq.write_table(pa.table(rows(base, count), form), path)
            names[base : base + count] = rows(base, count)["_row_id"]
            data = (File(f"data/unit=u{base}/f.parquet", count, 0, ""),)
            receipt = Receipt(f"u{base}", "/s.parquet", base, 0, 1, count, count, 0, {}, (), data, (), 0.0)
            spans.append(Span(receipt, base))
        card = SimpleNamespace(table="t", version=version, end=end)
        self.index = SimpleNamespace(card=card, spans=spans, row_ids=pa.chunked_array([names]))

    def open(self) -> Columns:
        return open_columns(self.store, self.index, self.record)


@pytest.fixture(params=[1 << 20, 7, 1])
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setattr(columns, "ROWS_AT_ONCE", request.param)
    return Made(tmp_path, [0, 13, 20], [10, 5, 11], end=33)


def test_every_id_leads_to_its_row_in_any_order(made: Made):
    opened = made.open()
    live = [*range(10), *range(13, 18), *range(20, 31)]
    wanted = np.random.default_rng(0).permutation(live + live[:5])
    expected = {number: {name: values[0] for name, values in rows(number, 1).items()} for number in live}
    names = ["_row_id", *KEPT]
    assert opened.rows(wanted, names) == [
        {name: expected[number][name] for name in names} for number in wanted.tolist()
    ]
    assert opened.types == KEPT
    assert opened.rows([], names) == []


def test_ids_of_rows_that_are_gone_have_a_name_and_nothing_else(made: Made):
    assert made.open().rows([10, 32], ["_row_id", "number"]) == [
        {"_row_id": "row-gone-10", "number": None},
        {"_row_id": "row-gone-32", "number": None},
    ]


def test_a_name_leads_to_its_id_and_no_other_name_does(made: Made):
    opened = made.open()
    assert [opened.numbers_of(f"row-{number}") for number in (0, 14, 30)] == [[0], [14], [30]]
    assert opened.numbers_of("row-31") == opened.numbers_of("") == []


def test_equal_contents_have_equal_hashes(made: Made):
    found = [row["_content_hash"] for row in made.open().rows(range(10), ["_content_hash"])]
    assert [found[i] == found[i + 1] for i in range(9)] == [True, False] * 4 + [True]
    assert found[0] == int(hashlib.sha256(b"0").hexdigest()[:16], 16)


def test_a_copy_is_made_once_and_the_oldest_of_a_table_go(tmp_path: Path, cache: Path):
    for number in range(5):
        opened = Made(tmp_path, [0], [10], 10, version=f"v{number}").open()
    assert sorted(path.name.partition("-")[2] for path in (cache / "rayclip/columns").iterdir()) == ["v2", "v3", "v4"]
    made = Made(tmp_path, [0], [10], 10, version="v4")
    Path(made.store.path("embeddings/t/data/unit=u0/f.parquet")).unlink()
    assert made.open().rows([3], ["number"]) == opened.rows([3], ["number"]) == [{"number": 3}]


def test_a_file_that_is_gone_takes_the_columns_of_its_rows_along(tmp_path: Path):
    made = Made(tmp_path, [0, 10], [10, 10], 20)
    Path(made.store.path("embeddings/t/data/unit=u0/f.parquet")).unlink()
    assert made.open().rows([3, 13], ["_row_id", "number", "caption"]) == [
        {"_row_id": "row-3", "number": None, "caption": None},
        {"_row_id": "row-13", "number": 13, "caption": "no. 13"},
    ]
