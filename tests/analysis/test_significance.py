import numpy as np
import scipy.stats

from pipeline.analysis.significance import corrected, difference, holm, interval


def test_an_interval_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).random(300)
    ours = interval(values, seed=1)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=2)
    assert ours.mean == values.mean()
    assert np.allclose([ours.low, ours.high], theirs.confidence_interval, atol=0.004)
    assert interval(values, seed=1) == ours
    assert interval(values, seed=2) != ours


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(3)
    held = [(lambda i: i.low <= 0.3 <= i.high)(interval((rng.random(200) < 0.3) * 1.0, seed)) for seed in range(200)]
    assert 0.90 <= np.mean(held) <= 0.99


def test_a_single_value_has_no_bounds_and_equal_ones_have_none_apart():
    alone = interval(np.array([0.5]))
    assert (alone.mean, alone.low, alone.high) == (0.5, None, None)
    same = interval(np.full(10, 0.25))
    assert (same.low, same.high) == (0.25, 0.25)


def test_a_difference_is_paired():
    rng = np.random.default_rng(0)
    theirs = rng.random(100)
    ours = theirs + 0.02 + rng.normal(0, 0.01, 100)  # far less than queries differ from each other
    found = difference(ours, theirs)
    assert np.isclose(found.absolute, (ours - theirs).mean())
    assert np.isclose(found.relative, (ours - theirs).mean() / theirs.mean())
    assert found.low > 0.015
    assert found.p_bootstrap < 0.01
    assert found.p_rank == scipy.stats.wilcoxon(ours, theirs).pvalue < 0.01


def test_no_difference_is_not_significant():
    values = np.random.default_rng(0).random(50)
    same = difference(values, values)
    assert (same.absolute, same.low, same.high, same.p_bootstrap, same.p_rank) == (0.0, 0.0, 0.0, 1.0, 1.0)
    noise = np.random.default_rng(1).normal(0, 0.1, 50)
    noise -= noise.mean()
    assert difference(values + noise, values).p_bootstrap > 0.5
    assert difference(np.array([1.0]), np.array([0.0])).p_bootstrap is None
    assert difference(np.array([1.0, 0.5]), np.zeros(2)).relative is None


def test_a_p_value_is_no_smaller_than_draws_can_tell():
    assert difference(np.ones(50), np.zeros(50)).p_bootstrap == 2 / 2001


def test_p_values_are_corrected_for_how_many_there_are():
    assert np.allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])  # by hand: 3 * 0.01, 2 * 0.03, 1 * 0.04
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    rng = np.random.default_rng(0)
    theirs = rng.random(40)
    alone = [difference(theirs + rng.normal(shift, 0.2, 40), theirs) for shift in (0.1, 0.05, 0.0)]
    assert all((each.p_rank_holm, each.p_bootstrap_holm) == (each.p_rank, each.p_bootstrap) for each in alone)
    together = corrected(alone)
    assert [each.p_rank_holm for each in together] == holm([each.p_rank for each in alone])
    assert [each.p_bootstrap_holm for each in together] == holm([each.p_bootstrap for each in alone])
    assert [each.p_rank for each in together] == [each.p_rank for each in alone]
    single = [difference(np.array([0.5]), np.array([0.25]))] * 2
    assert [each.p_bootstrap_holm for each in corrected(single)] == [None, None]


def test_many_values_are_drawn_in_parts(monkeypatch):
    values = np.random.default_rng(0).random(64)
    monkeypatch.setattr("pipeline.analysis.significance.AT_ONCE", 640)
    parts = interval(values)
    monkeypatch.setattr("pipeline.analysis.significance.AT_ONCE", 1 << 22)
    whole = interval(values)
    assert np.allclose([parts.low, parts.high], [whole.low, whole.high], atol=1e-12)
