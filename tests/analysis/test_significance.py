import numpy as np
import scipy.stats

from pipeline.analysis.significance import difference, interval


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


def test_many_values_are_drawn_in_parts(monkeypatch):
    values = np.random.default_rng(0).random(64)
    monkeypatch.setattr("pipeline.analysis.significance.AT_ONCE", 640)
    parts = interval(values)
    monkeypatch.setattr("pipeline.analysis.significance.AT_ONCE", 1 << 22)
    whole = interval(values)
    assert np.allclose([parts.low, parts.high], [whole.low, whole.high], atol=1e-12)
