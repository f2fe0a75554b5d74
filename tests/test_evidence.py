"""Bootstrap, verdicts and the spread of seeds, against what theory and scipy say."""

import numpy as np
import pytest
import torch
from scipy import stats

from irlkit.evaluate.evidence import Bootstrap, Estimate, _mean_of_runs, spread_of_seeds


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("interval", "target", "verdict"),
    [
        ((0.98, 0.97, 0.99), ">= 0.97", "holds"),
        ((0.98, 0.969, 0.99), ">= 0.97", "undecided"),
        ((0.95, 0.93, 0.969), ">= 0.97", "fails"),
        ((0.0, 0.0, 0.0), "< 0", "fails"),
        ((0.0, 0.0, 0.0), "<= 0", "holds"),
        ((-1.0, -np.inf, -0.5), "< 0", "holds"),
        ((np.nan,) * 3, "< 0", "undecided"),
    ],
)
def test_the_interval_decides(interval, target, verdict):
    assert Estimate(*interval).verdict(target) == verdict


def test_as_text():
    estimate = Estimate(12.34, 9.96, np.inf)
    assert (str(estimate), f"{estimate:.2f}") == ("12.3 (10.0 to inf)", "12.34 (9.96 to inf)")
    assert [str(Estimate.of(value)) for value in (np.nan, 0.25, 99.96)] == ["", "0.250", "100.0"]


@pytest.mark.parametrize("target", ["0.97", "== 1", ">= much", "> nan", "< inf", ""])
def test_targets_that_are_none(target):
    with pytest.raises(ValueError, match="target must be like"):
        Estimate(1.0, 1.0, 1.0).verdict(target)


def test_statistics_of_all_data_are_those_of_numpy():
    values = np.random.default_rng(0).standard_cauchy((3, 2, 41))
    values[:, :, :5] = np.nan
    values[0, 1] = np.nan
    draw = Bootstrap([str(i // 2) for i in range(41)], n_samples=10)
    finite = values[np.isfinite(values)]
    assert draw.mean(values)[0] == pytest.approx(finite.mean())
    assert draw.median(values)[0] == pytest.approx(np.median(finite))
    assert draw.median(values[0, 0])[0] == pytest.approx(np.nanmedian(values[0, 0]))
    few = finite[:40]  # A tenth of which is a whole number.
    draw = Bootstrap([str(i) for i in range(40)], n_samples=10)
    assert draw.trimmed_mean(few)[0] == pytest.approx(stats.trim_mean(few, 0.1))


def test_resamples_have_whole_compositions_and_are_paired():
    compositions = ["a", "a", "b", "c", "c", "c"]
    values = np.array([1.0, 3.0, 10.0, 100.0, 200.0, 300.0])
    draw = Bootstrap(compositions, generator(), 300)
    sums = {"a": (4.0, 2), "b": (10.0, 1), "c": (600.0, 3)}
    possible = {
        sum(sums[c][0] for c in chosen) / sum(sums[c][1] for c in chosen)
        for chosen in [(x, y, z) for x in "abc" for y in "abc" for z in "abc"]
    }
    found = draw.mean(values)
    assert len(found) == 301 and len(np.unique(found[1:].round(9))) > 5
    assert all(min(abs(x - p) for p in possible) < 1e-9 for x in found)
    np.testing.assert_allclose(draw.mean(values + 1) - found, 1.0)
    ordered = Bootstrap(compositions, generator(), 300).median(values)
    assert set(ordered[1:]) <= {1.0, 2.0, 3.0, 6.5, 10.0, 100.0, 150.0, 200.0, 55.0, 51.5, 101.5}
    again = Bootstrap(compositions, generator(), 300)
    np.testing.assert_array_equal(again.mean(values), found)
    other = Bootstrap(compositions, generator(1), 300)
    assert not np.array_equal(other.mean(values), found)


@pytest.mark.parametrize("statistic", ["mean", "median", "trimmed_mean"])
def test_intervals_hold_the_truth_as_often_as_they_say(statistic):
    rng, n, hits = np.random.default_rng(1), 60, 0
    compositions = [str(i // 2) for i in range(2 * n)]
    for trial in range(150):
        shared = rng.normal(size=n).repeat(2) + 0.5 * rng.normal(size=2 * n)
        draw = Bootstrap(compositions, generator(trial), 400)
        found = Estimate.of(getattr(draw, statistic)(shared))
        hits += found.low <= 0 <= found.high
    assert 0.88 <= hits / 150 <= 0.99, "the structures of a composition were taken as independent?"


def test_training_seeds_widen_the_interval():
    values = np.zeros((3, 2, 50)) + np.array([0.0, 1.0, 2.0])[:, None, None]
    draw = Bootstrap([str(i) for i in range(50)], generator(), 1000)
    half = 4.303 / 3**0.5  # Student's t: two degrees of freedom, and no spread of structures.
    for statistic in (draw.mean, draw.trimmed_mean, draw.median):
        both = Estimate.of(statistic(values))
        assert both.value == 1.0
        assert (both.high - both.low) / 2 == pytest.approx(half, rel=0.2)
    # What is compared has the same draws, so that what all seeds share is no spread.
    both = Estimate.of(draw.mean(values + 1) - draw.median(values))
    assert (both.low, both.high) == pytest.approx((1.0, 1.0))
    # Pairs that were not measured are no zeros, and a seed without a number has no spread.
    values[0, 1] = np.nan
    assert draw.mean(values)[0] == pytest.approx((0 + 2 + 4) / 5)
    values[0] = np.nan
    both = Estimate.of(draw.mean(values))
    assert both.low < 1.0 < both.value == 1.5 < 2.0 < both.high


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_an_interval_with_three_training_seeds_covers_as_it_says(statistic):
    """Drawing three seeds with replacement would cover about 75 %."""
    rng, n, hits = np.random.default_rng(2), 40, 0
    for trial in range(200):
        of_structure, of_seed = rng.normal(size=n), rng.normal(0, 0.5, (3, 1, 1))
        values = of_structure + of_seed + rng.normal(0, 0.5, (3, 2, n))
        found = Estimate.of(
            getattr(Bootstrap(np.arange(n), generator(trial), 400), statistic)(values)
        )
        hits += found.low <= 0 <= found.high
    assert 0.91 <= hits / 200 <= 0.995


def test_what_does_not_exist_in_resamples_has_no_end():
    draw = Bootstrap([str(i) for i in range(3)], generator(), 500)
    lone = Estimate.of(draw.mean(np.array([0.1, np.nan, np.nan])))
    assert (lone.value, lone.low, lone.high) == (0.1, -np.inf, np.inf)
    assert np.isnan(list(vars(Estimate.of(draw.mean(np.full(3, np.nan)))).values())).all()
    assert np.isnan(draw.median(np.full(3, np.nan))).all()
    assert vars(Estimate.of(0.3)) == {"value": 0.3, "low": 0.3, "high": 0.3}


def test_a_few_resamples_without_what_is_measured_take_no_end_from_the_others():
    draw = Bootstrap([str(i) for i in range(4)], generator(), 2000)
    there = np.array([1.0, 0.0, 0.0, 0.0])

    def mean(weights):
        total = weights @ there
        return np.where(total > 0, total, np.nan)

    found = draw.centred(mean)
    assert 0.25 < np.isnan(found).mean() < 0.4
    assert found[0] == 1 and np.nanmean(found[1:]) == pytest.approx(1)
    assert np.isnan(draw.centred(lambda weights: np.full(len(weights), np.nan))).all()


def test_spreads_of_both_kinds_of_seeds_are_told_apart():
    rng = np.random.default_rng(0)
    table = rng.normal(0, 3, (400, 1)) + rng.normal(0, 1, (1, 300)) + rng.normal(0, 2, (400, 300))
    found = spread_of_seeds(table)
    assert found["training"] == pytest.approx(3, rel=0.1)
    assert found["base"] == pytest.approx(1, rel=0.15)
    assert found["rest"] == pytest.approx(2, rel=0.05)
    assert spread_of_seeds(np.array([[1.0, 3.0]]))["base"] == pytest.approx(2**0.5)
    assert np.isnan(spread_of_seeds(np.array([[1.0, 3.0]]))["training"])


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="compositions must name"):
        Bootstrap([])
    with pytest.raises(ValueError, match=r"values must have shape \(n_training, n_base, 2\)"):
        Bootstrap(["a", "b"]).mean(np.zeros(3))
    with pytest.raises(ValueError, match="share must be from 0 to"):
        Bootstrap(["a", "b"]).trimmed_mean(np.zeros(2), 0.6)


def test_rank_correlation_is_that_of_scipy_in_every_resample():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(1, 3, 20))
    second = np.round(first + rng.normal(size=first.shape), 1)  # with equal ones
    second[0, 1, 3] = np.nan
    draw = Bootstrap(np.arange(20) // 2, n_samples=50)
    found = draw.rank_correlation(first, second)
    for i in (0, 1, 17, 50):
        times = draw._weights[i].astype(int) * np.ones(first.shape, int)
        times[~np.isfinite(second)] = 0
        pair = (np.repeat(values.ravel(), times.ravel()) for values in (first, second))
        assert found[i] == pytest.approx(stats.spearmanr(*pair).statistic)
    assert np.isnan(draw.rank_correlation(first, np.zeros_like(first))).all()
    twice = [np.concatenate([v, v]) for v in (first, second)]  # Seeds that do not differ.
    assert draw.rank_correlation(*twice) == pytest.approx(found)
    apart = [np.concatenate([second, v]) for v in (second, first)]  # 1 with itself, once less.
    assert draw.rank_correlation(*apart).max() == 1.0, "none is above 1"
    with pytest.raises(ValueError, match="second must have the shape of first"):
        draw.rank_correlation(first, second[0, 0])


def test_the_interval_of_few_runs_is_students():
    found = Estimate.of(_mean_of_runs(np.array([1.0, 2.0, np.nan, 3.0])))
    half = 4.303 / 3**0.5  # The quantile at 97.5 % for two degrees of freedom.
    assert found.value == 2.0
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.15)
    (one,) = set(_mean_of_runs(np.array([4.0])).tolist())
    assert one == 4.0 and np.isnan(_mean_of_runs(np.array([]))).all()
