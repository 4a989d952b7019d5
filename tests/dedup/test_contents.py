import numpy as np
import pytest

from pipeline.dedup.contents import equal_rows


@pytest.mark.parametrize(("rows", "kinds"), [(0, 1), (1, 1), (200, 7), (200, 1000), (50_000, 1)])
def test_every_copy_is_paired_with_the_first_row_of_its_contents(rows: int, kinds: int):
    rng = np.random.default_rng(rows)
    ids = rng.permutation(3 * rows)[:rows]
    words = rng.integers(0, kinds, rows).astype(np.uint64)[:, None] * np.ones(4, np.uint64)
    first: dict[int, int] = {}
    for number, word in sorted(zip(ids.tolist(), words[:, 0].tolist(), strict=True)):
        first.setdefault(word, number)
    wanted = {(first[word], number) for number, word in zip(ids.tolist(), words[:, 0].tolist(), strict=True)}
    found = equal_rows(ids, words)
    assert set(zip(found.a.tolist(), found.b.tolist(), strict=True)) == {pair for pair in wanted if pair[0] != pair[1]}
    assert len(found) == rows - len(first)  # n - 1 of n equal rows, however many


def test_contents_that_differ_in_one_word_are_others():
    words = np.zeros((5, 4), np.uint64)
    for place in range(4):
        words[place, place] = 1
    assert len(equal_rows(np.arange(5), words)) == 0
