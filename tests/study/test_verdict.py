import numpy as np
import pytest
from scipy import stats

from taskloom.study import Interval, holm, paired_interval
from taskloom.study._verdict import verdict_word


def test_without_shared_rows_it_is_scipys_paired_t_test():
    gains = np.random.default_rng(0).normal(0.1, 0.2, size=8)
    ours, theirs = paired_interval(gains, test_ratio=0.0), stats.ttest_1samp(gains, 0.0)
    assert ours.p_value == pytest.approx(theirs.pvalue)
    low, high = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_interval_scales_with_the_gains_and_widens_with_shared_rows(scale):
    gains = np.random.default_rng(1).normal(0.1, 0.2, size=6)
    one, scaled = paired_interval(gains, 0.3), paired_interval(scale * gains, 0.3)
    assert scaled.p_value == pytest.approx(one.p_value)
    assert scaled.high == pytest.approx(scale * one.high)
    wider = paired_interval(gains, 0.6)
    assert wider.low < one.low
    assert wider.p_value > one.p_value


def test_interval_excludes_zero_exactly_when_p_is_small():
    rng = np.random.default_rng(2)
    for _ in range(200):
        interval = paired_interval(rng.normal(0.2, 0.3, size=5), 1 / 3)
        assert (interval.low > 0 or interval.high < 0) == (interval.p_value < 0.05)


def test_coverage_on_overlapping_splits_is_near_its_promise():
    # Two constant predictors on random splits of one sample: the true expected gain is known. The plain t-test covers far less.
    rng, hits, plain = np.random.default_rng(3), 0, 0
    for _ in range(300):
        sample = rng.normal(size=50)
        gains = []
        for _ in range(10):
            order = rng.permutation(50)
            train, test = sample[order[:30]], sample[order[40:]]
            gains.append(np.mean(test**2) - np.mean((test - train.mean()) ** 2))
        # Expected gain of the training mean over zero when the true mean is zero: -Var(mean of 30) = -1/30.
        interval, naive = paired_interval(gains, 10 / 30), paired_interval(gains, 0.0)
        hits += interval.low <= -1 / 30 <= interval.high
        plain += naive.low <= -1 / 30 <= naive.high
    assert hits / 300 > 0.9
    assert hits > plain


def test_degenerate_differences():
    assert paired_interval([0.1, 0.2], 0.3) == Interval(pytest.approx(0.15), -np.inf, np.inf, 1.0)
    assert paired_interval([0.0] * 4, 0.3) == Interval(0.0, 0.0, 0.0, 1.0)
    # Equal differences are no proof: accuracy on few rows takes few values.
    assert paired_interval([0.1] * 4, 0.3) == Interval(pytest.approx(0.1), -np.inf, np.inf, 1.0)


def test_no_effect_is_rarely_called_one_even_for_coarse_scores():
    rng, false = np.random.default_rng(5), 0
    for _ in range(200):
        # Accuracy of two equally good models on 10 test rows, 20 tasks, 3 seeds.
        gains = (rng.binomial(10, 0.9, size=(20, 3)) - rng.binomial(10, 0.9, size=(20, 3))) / 10
        false += holm([paired_interval(of_task, 1 / 3).p_value for of_task in gains]).min() < 0.05
    assert false / 200 < 0.07


def test_holm_is_between_bonferroni_and_nothing():
    rng = np.random.default_rng(4)
    for _ in range(50):
        p = rng.random(7) ** 3
        corrected = holm(p)
        assert (corrected >= p).all()
        assert (corrected <= np.minimum(7 * p, 1) + 1e-15).all()
        assert (np.diff(corrected[np.argsort(p)]) >= 0).all()
        assert corrected.min() == pytest.approx(min(7 * p.min(), 1))


def test_words():
    good, bad = Interval(0.1, 0.05, 0.15, 0.001), Interval(-0.1, -0.15, -0.05, 0.001)
    assert [verdict_word(good, 0.01), verdict_word(bad, 0.01), verdict_word(good, 0.2)] == ["helped", "hurt", "undecided"]
