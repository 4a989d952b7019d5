import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from pipeline.dedup.groups import Edges, groups, lengths
from pipeline.dedup.keepers import first_of_each


def edges(*steps: tuple[int, int, float]) -> Edges:
    a, b, length = zip(*steps, strict=True)
    return Edges(np.array(a), np.array(b), np.array(length, float))


def as_sets(found: tuple[np.ndarray, np.ndarray]) -> list[set[int]]:
    ids, number = found
    assert (np.diff(ids) > 0).all()
    return [set(ids[number == one].tolist()) for one in range(int(number.max(initial=-1)) + 1)]


def random_edges(seed: int, n: int = 60, m: int = 70) -> Edges:
    rng = np.random.default_rng(seed)
    every = {(min(x, y), max(x, y)) for x, y in rng.integers(0, n, (m, 2)).tolist() if x != y}
    return edges(*((a, b, float(rng.uniform(0.05, 1))) for a, b in sorted(every)))


@pytest.mark.parametrize("seed", range(10))
def test_without_a_bound_groups_are_the_connected_components(seed: int):
    some = random_edges(seed)
    parts: list[set[int]] = []
    for a, b in zip(some.a.tolist(), some.b.tolist(), strict=True):
        touched = [part for part in parts if a in part or b in part]
        parts = [part for part in parts if part not in touched] + [set().union({a, b}, *touched)]
    assert as_sets(groups(some, 1e9)) == sorted(parts, key=min)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("bound", [1.0, 1.5, 3.0])
def test_every_group_has_a_middle_that_all_its_rows_are_near(seed: int, bound: float):
    some = random_edges(seed)
    found = as_sets(groups(some, bound))
    for members in found:
        inside = [a in members and b in members for a, b in zip(some.a.tolist(), some.b.tolist(), strict=True)]
        graph = coo_array((some.length[inside], (some.a[inside], some.b[inside])), shape=(60, 60)).tocsr()
        ways = dijkstra(graph, directed=False)[np.ix_(sorted(members), sorted(members))]
        assert ways.max(axis=1).min() <= bound + 1e-9
    assert len(set().union(*found)) == sum(map(len, found))  # nobody is in two


def test_a_chain_is_cut_and_a_bunch_is_not():
    chain = edges(*((i, i + 1, 0.9) for i in range(9)))
    cut = as_sets(groups(chain, 1.5))
    assert max(map(len, cut)) <= 3
    assert len(as_sets(groups(chain, 100.0))) == 1
    bunch = edges(*((a, b, 0.9) for a in range(8) for b in range(a)))
    assert as_sets(groups(bunch, 1.5)) == [set(range(8))]


def test_two_bunches_that_one_pair_joins_stay_two():
    two = [(a + side, b + side, 0.3) for side in (0, 10) for b in range(5) for a in range(b)]
    assert as_sets(groups(edges(*two, (4, 10, 0.99)), 1.2)) == [set(range(5)), set(range(10, 15))]


def test_groups_do_not_depend_on_the_order_of_edges_even_where_all_are_equal():
    some = random_edges(3)
    equal = Edges(some.a, some.b, np.full(len(some.a), 0.5))
    order = np.random.default_rng(0).permutation(len(some.a))
    for one in (some, equal):
        shuffled = Edges(one.a[order], one.b[order], one.length[order])
        assert as_sets(groups(one, 1.5)) == as_sets(groups(shuffled, 1.5))


def test_no_edges_make_no_groups_and_one_edge_makes_one():
    nothing = Edges(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    assert as_sets(groups(nothing, 1.5)) == []
    assert as_sets(groups(edges((10**12, 10**12 + 5, 1.0)), 1.5)) == [{10**12, 10**12 + 5}]


def test_two_hundred_thousand_equal_rows_are_one_group():
    n = 200_000
    star = Edges(np.zeros(n, np.int64), np.arange(1, n + 1), lengths(np.ones(n, np.float32), 0.95))
    ids, number = groups(star, 1.5)
    assert len(ids) == n + 1
    assert not number.any()


def test_a_step_at_the_threshold_is_one_long_and_equal_rows_are_next_to_nothing_apart():
    found = lengths(np.array([0.95, 1.0, 1.0000002, np.cos(np.arccos(0.95) / 2)], np.float32), 0.95)
    np.testing.assert_allclose(found, [1, 0.001, 0.001, 0.5], atol=2e-3)
    assert lengths(np.ones(2, np.float32), 1.0).tolist() == [0.001, 0.001]  # where nothing less is joined


@pytest.mark.parametrize("seed", range(5))
def test_each_group_keeps_the_row_of_the_lowest_rank_and_of_equals_the_first(seed: int):
    rng = np.random.default_rng(seed)
    group, rank = rng.integers(0, 6, 40), rng.integers(0, 4, 40)
    ids = np.sort(rng.permutation(100)[:40])
    flags = first_of_each(group, rank, ids)
    for one in np.unique(group):
        mine = np.flatnonzero(group == one)
        best = min(mine, key=lambda i: (rank[i], ids[i]))
        assert np.flatnonzero(flags & (group == one)).tolist() == [best]
    assert not len(first_of_each(group[:0], rank[:0], ids[:0]))
