import json
from pathlib import Path

import pytest

from pipeline.embedding.batching import GOOD_BATCHES, MISSES, TRIALS, BatchSizes

SIZES = (16, 32, 64)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rayclip" / "batch_sizes.json"


def found_out(seconds_per_row: dict[int, float], device: str = "device") -> BatchSizes:
    sizes = BatchSizes(SIZES, device)
    while sizes.is_trying:
        size = sizes.next(10_000)
        sizes.took(size, size * seconds_per_row[size])
    return sizes


def test_every_size_is_tried_and_the_fastest_is_taken_and_remembered(cache: Path):
    sizes = BatchSizes(SIZES, "device")
    tried = []
    while sizes.is_trying:
        tried.append(sizes.next(1000))
        sizes.took(tried[-1], {16: 2.0, 32: 3.0, 64: 7.0}[tried[-1]])
    assert tried == [size for size in SIZES for _ in range(TRIALS + 1)]
    assert sizes.best == 32
    assert json.loads(cache.read_text()) == {"device": 32}
    again = BatchSizes(SIZES, "device")
    assert (again.is_trying, again.best) == (False, 32)
    assert BatchSizes(SIZES, "another").is_trying


def test_the_first_batch_of_a_size_pays_for_others_and_does_not_count():
    sizes = BatchSizes(SIZES, "device")
    calls = 0
    while sizes.is_trying:
        size = sizes.next(1000)
        sizes.took(size, size * (100.0 if calls % (TRIALS + 1) == 0 else {16: 3, 32: 2, 64: 1}[size]))
        calls += 1
    assert sizes.best == 64


def test_of_equally_fast_sizes_the_smallest_is_taken():
    assert found_out({16: 1.02, 32: 1.0, 64: 1.01}).best == 16


@pytest.mark.parametrize(("rows", "batches"), [(128, [32] * 4), (65, [22, 22, 21]), (7, [7]), (33, [17, 16])])
def test_rows_are_cut_into_batches_that_are_as_equal_as_can_be(rows: int, batches: list[int]):
    sizes = found_out({16: 2.0, 32: 1.0, 64: 2.0})
    cut = []
    while rows:
        cut.append(sizes.next(rows))
        rows -= cut[-1]
    assert cut == batches


def test_rows_that_are_too_few_to_try_any_size_end_the_trials_and_nothing_is_remembered(cache: Path):
    sizes = BatchSizes(SIZES, "device")
    for _ in range(MISSES):
        assert sizes.is_trying
        sizes.took(sizes.next(5), 1.0)
    assert not sizes.is_trying
    assert not cache.exists()


def test_a_size_that_calls_never_reach_is_not_waited_for():
    sizes = BatchSizes(SIZES, "device")
    for _ in range(100):
        rows = 60
        while rows:
            size = sizes.next(rows)
            sizes.took(size, size * (1.0 if size == 32 else 2.0))
            rows -= size
    assert (sizes.is_trying, sizes.best) == (False, 32)


def test_out_of_memory_halves_the_batch_and_good_ones_grow_it_back():
    sizes = BatchSizes((64,), "device")
    sizes.failed(64)
    sizes.failed(32)
    assert sizes.next(1000) == 16
    for _ in range(GOOD_BATCHES):
        sizes.took(16, 1.0)
    assert sizes.next(320) == 32
    for _ in range(GOOD_BATCHES):
        sizes.took(32, 1.0)
    assert sizes.next(640) == 64


def test_out_of_memory_while_trying_ends_the_trials_with_what_is_known():
    sizes = BatchSizes(SIZES, "device")
    while (size := sizes.next(1000)) != 64:
        sizes.took(size, 1.0)
    sizes.failed(64)
    assert not sizes.is_trying
    assert sizes.next(1000) == 32
    assert BatchSizes(SIZES, "device").best == 32


def test_a_size_that_ran_out_of_memory_never_wins(cache: Path):
    sizes = BatchSizes(SIZES, "device")
    while (size := sizes.next(1000)) != 64:
        sizes.took(size, 1.0)
    sizes.took(64, 0.1)
    sizes.failed(64)
    assert json.loads(cache.read_text()) == {"device": 32}
    first = BatchSizes(SIZES, "another")
    first.failed(first.next(1000))
    assert (first.is_trying, first.best, first.next(1000)) == (False, 16, 8)


@pytest.mark.parametrize("content", ["", "[]", '{"device": "many"}', '{"device": 48}'])
def test_a_memory_that_makes_no_sense_is_forgotten(cache: Path, content: str):
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    assert BatchSizes(SIZES, "device").is_trying
    assert found_out({16: 1.0, 32: 2.0, 64: 3.0}).best == 16


def test_a_home_that_cannot_be_written_is_no_error(cache: Path):
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file where the folder would be")
    assert found_out({16: 1.0, 32: 2.0, 64: 3.0}).best == 16
