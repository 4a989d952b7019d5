from dataclasses import replace

import numpy as np
import pytest

from pipeline.config import IndexConfig
from pipeline.errors import InputError
from pipeline.indexing.exact import NO_ID, Selection
from pipeline.indexing.run import build
from pipeline.searching.index import open_index
from pipeline.searching.several import Several
from tests.indexing.conftest import made_up_vectors, write_table

ROWS = made_up_vectors(600, 16)
BOUNDS = ((0, 200), (200, 590), (590, 600))


@pytest.fixture(scope="module")
def several(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Several:
    url = str(tmp_path_factory.mktemp("several"))
    for number, (start, end) in enumerate(BOUNDS):
        store = write_table(url, f"t{number}", ROWS[start:end], 100)
        build(IndexConfig(store=url, table=f"t{number}", factory="IVF8,SQ8" if number == 1 else None))
    return Several([open_index(store, f"t{number}") for number in range(3)])


def test_the_best_of_all_tables_are_found_with_their_tables(several: Several):
    xq = made_up_vectors(40, 16, seed=3)
    scores, tables, ids = several.search(xq, 20, exact=True)
    starts = np.array([start for start, _ in BOUNDS])
    wanted = np.argsort(-(xq @ ROWS.T), axis=1)[:, :20]
    assert np.mean([np.isin(a, b).mean() for a, b in zip(wanted, starts[tables] + ids, strict=True)]) > 0.99
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", xq, ROWS[starts[tables] + ids]), atol=1e-3)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert set(tables.ravel().tolist()) == {0, 1, 2}


def test_each_table_has_a_selection_of_its_own(several: Several):
    xq = made_up_vectors(5, 16, seed=3)
    only = [
        Selection.of(np.array([7]), 200),
        Selection.of(np.array([], np.int64), 390),
        Selection.of(np.array([1, 2]), 10),
    ]
    _, tables, ids = several.search(xq, 5, within=only)
    for mine, numbers in zip(tables, ids, strict=True):
        assert sorted(zip(mine.tolist(), numbers.tolist(), strict=True)) == [(-1, -1), (-1, -1), (0, 7), (2, 1), (2, 2)]


def test_fewer_rows_than_asked_for_are_followed_by_none(several: Several):
    scores, tables, ids = several.search(ROWS[:3], 700)
    assert ids.shape[1] == 600
    assert (ids != NO_ID).all()
    assert np.isfinite(scores).all()
    assert [np.count_nonzero(tables == number) // 3 for number in range(3)] == [200, 390, 10]


def test_tables_of_different_spaces_are_refused(several: Several):
    with pytest.raises(InputError, match="wanted one space, got no table"):
        Several([])
    first, *others = several.indexes
    stranger = replace(first, card=replace(first.card, space="another"))
    with pytest.raises(InputError, match=r"wanted one space, got \{'t0': 'another'"):
        Several([stranger, *others])
