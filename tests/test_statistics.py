"""Aggregates and intervals over seeds, against rliable's, scipy's and brute force."""

import importlib.util
import io
import itertools
import math
import re
import types

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from purejaxppo import statistics
from purejaxppo.cli import evaluate, run
from purejaxppo.statistics import (
    bootstrap,
    decimals,
    interval_text,
    iqm,
    iqm_over_seeds,
    mean_over_seeds,
    performance_profile,
    probability_of_improvement,
    quartiles_over_seeds,
    return_text,
)
from purejaxppo.sweeps.results import results_table

SCORES = np.random.default_rng(1).normal(size=24)
OTHERS = np.random.default_rng(2).normal(0.5, size=16)


def test_iqm_is_the_mean_of_the_middle_half():
    assert iqm([0, 1, 2, 3, 4, 5, 6, 700]) == 3.5
    assert iqm([1.0, math.nan, 3.0]) == 2.0
    assert math.isnan(iqm([math.nan]))


def test_the_interval_from_many_seeds_is_that_of_the_bootstrap(monkeypatch):
    """On both sides of the number beyond which no resamples are drawn; of a skewed distribution with an outlier."""
    curve = np.random.default_rng(0).lognormal(size=(1001, 3))
    curve[0] = 1e6
    found = iqm_over_seeds(curve)
    monkeypatch.setattr(statistics, "MANY", 1001)
    drawn = iqm_over_seeds(curve)
    np.testing.assert_allclose(found.point, drawn.point)
    width = drawn.high - drawn.low
    for ours, theirs in ((found.low, drawn.low), (found.high, drawn.high)):
        assert np.max(np.abs(ours - theirs) / width) < 0.05


def test_aggregates_and_intervals_are_those_of_rliable():
    """The same resamples are not drawn: bounds agree within what so few of them leave open."""
    library, metrics = (pytest.importorskip(f"rliable.{name}") for name in ("library", "metrics"))
    thresholds = np.linspace(-2, 2, 9)
    matrix, other = SCORES[:, None], OTHERS[:, None]
    np.random.seed(0)  # rliable 1.2 draws from the global generator, whatever it is told
    profile = library.create_performance_profile({"": matrix}, thresholds)

    def interval(function, scores):
        point, bounds = library.get_interval_estimates({"": scores}, function, reps=500)
        return np.concatenate([np.ravel(point[""]), np.ravel(bounds[""])])

    theirs = interval(lambda x: np.array([metrics.aggregate_iqm(x)]), matrix)
    np.testing.assert_allclose(iqm_over_seeds(SCORES), theirs, atol=0.06)
    assert iqm(SCORES) == pytest.approx(theirs[0])
    ours = probability_of_improvement(SCORES, OTHERS)
    theirs = interval(lambda x, y: np.array([metrics.probability_of_improvement(x, y)]), [matrix, other])
    np.testing.assert_allclose(ours, theirs, atol=0.03)
    assert ours[0] == pytest.approx(theirs[0])
    for mine, yours in zip(performance_profile(SCORES, thresholds), (profile[0][""], *profile[1][""]), strict=True):
        np.testing.assert_allclose(mine, yours, atol=0.045)  # one seed of 24 is 0.042


def test_interval_of_the_iqm_is_that_of_scipy():
    other = scipy.stats.bootstrap(
        (SCORES,), lambda x, axis: scipy.stats.trim_mean(x, 0.25, axis=axis), method="percentile", rng=2
    ).confidence_interval
    np.testing.assert_allclose(iqm_over_seeds(SCORES)[1:], [other.low, other.high], atol=0.05)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = [low <= 0 <= high for _, low, high in (iqm_over_seeds(rng.normal(size=24)) for _ in range(200))]
    assert 0.85 <= np.mean(covered) <= 0.99


def test_curves_leave_out_missing_seeds():
    values = np.random.default_rng(0).normal(size=(9, 6))
    values[[0, 3], 1] = values[:, 2] = values[1:, 3] = values[2:, 4] = np.nan
    some = [0, 1, 3, 4, 5]
    estimate, quartiles = iqm_over_seeds(values), quartiles_over_seeds(values[:, some])
    expected = [scipy.stats.trim_mean(x[~np.isnan(x)], 0.25) for x in values.T[some]]
    np.testing.assert_allclose(estimate.point[some], expected)
    np.testing.assert_allclose(quartiles.point, expected)
    assert np.isnan(estimate.low).tolist() == [False, False, True, True, True, False]  # one seed, or two
    assert (estimate.low < estimate.point)[[0, 1, 5]].all()
    assert (estimate.point < estimate.high)[[0, 1, 5]].all()
    for i in (0, 1):  # whole curves are drawn, each by the same seeds as alone
        assert (estimate.low[i], estimate.high[i]) == pytest.approx(iqm_over_seeds(values[:, i])[1:])


def test_means_leave_out_missing_seeds():
    samples = np.random.default_rng(3).normal(size=(5, 4))
    samples[0, 1] = samples[1:, 2] = samples[:, 3] = np.nan
    found = mean_over_seeds(samples)
    for i, known in ((0, samples[:, 0]), (1, samples[1:, 1])):
        error = 1.96 * known.std(ddof=1) / np.sqrt(known.size)
        np.testing.assert_allclose([x[i] for x in found], [known.mean(), known.mean() - error, known.mean() + error])
    np.testing.assert_array_equal([x[2] for x in found], [samples[0, 2], np.nan, np.nan])
    assert np.isnan([x[3] for x in found]).all()


def test_lists_are_scores_too_and_none_have_no_iqm():
    assert probability_of_improvement([3.0, 1.0, 2.0], [2.0, 2.0, 0.0]).point == pytest.approx(6 / 9)
    assert performance_profile([1.0, 2.0, 3.0], np.array([1.5])).point == pytest.approx([2 / 3])
    assert np.isnan(iqm_over_seeds([]).point)


def test_probability_of_improvement_is_brute_force():
    x, y = [3.0, 1.0, 2.0, 2.0, 5.0], [2.0, 2.0, 0.0]
    expected = sum((a > b) + 0.5 * (a == b) for a, b in itertools.product(x, y)) / 15
    assert probability_of_improvement(np.array(x), np.array(y)).point == pytest.approx(expected)


def test_groups_are_resampled_each_by_itself_whatever_fits_into_memory():
    groups = [np.full(4, 1.0), np.full(5, 10.0), np.arange(3000.0)]
    seen = []

    def statistic(*resampled):
        seen.append([x.shape for x in resampled])
        return np.stack([x.mean(axis=1) for x in resampled], axis=-1)

    point, low, high = bootstrap(statistic, *groups)
    assert sum(shapes[0][0] for shapes in seen[1:]) == 2000
    assert len(seen) > 2  # in several parts
    np.testing.assert_array_equal(point, [1, 10, 1499.5])
    np.testing.assert_array_equal([low[:2], high[:2]], [[1, 10]] * 2)
    half = 1.96 * np.arange(3000).std() / np.sqrt(3000)
    np.testing.assert_allclose([low[2], high[2]], [1499.5 - half, 1499.5 + half], atol=half / 10)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_fewer_than_three_seeds_give_no_interval(count):
    scores = np.arange(count) + 1.0
    _, low, high = iqm_over_seeds([*scores, math.nan])
    assert math.isnan(low) == math.isnan(high) == (count < 3)
    assert interval_text(low, high) == ("1.00 … 3.00" if count == 3 else "–")
    if count:
        assert np.isnan(probability_of_improvement(scores, SCORES).low) == (count < 3)
        assert np.isnan(performance_profile(scores, np.zeros(2)).high).all() == (count < 3)


RETURNS = {"iqm": 15.0, "ci_low": math.nan, "ci_high": math.nan, "mean": 15.0, "per_seed": [10.0, 20.0]}
SUMMARY = {"algo": "ppo", "env": "X", "seeds": [0, 1], "num_seeds": 2, "eval_return": RETURNS, "failed_seeds": []}
SUMMARY |= {"env_steps": 64, "steps_per_second": 9.0, "compile_seconds": 1.0, "run_seconds": 1.0, "device": "cpu"}
SUMMARY |= {"training_seconds": 1.0, "evaluation_seconds": 0.0, "saving_seconds": 0.0}


def text(table):
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


def test_no_table_shows_an_interval_of_two_seeds(tmp_path):
    shown = text(run.table(SUMMARY, tmp_path))
    assert "IQM 15.0, mean 15.0" in shown
    assert "64 per seed, 2 seeds " in shown
    assert "64 per seed, 1 seed " in text(run.table(SUMMARY | {"num_seeds": 1}, tmp_path))
    sweep = types.SimpleNamespace(settings=[{"gamma": 0.9}])
    assert re.search(
        r"best of 1 setting by.* 0\.9 │ *15\.0 │ *– │ *15\.0 ", text(results_table(sweep, [SUMMARY])), re.S
    )

    played = [(np.array([1.0, 2.0, last]), np.ones(3), np.zeros(3, bool)) for last in (4.0, 6.0)]
    result = {"algo": "ppo", "env": "X", "env_steps": 64, "episodes": 3, "policy": "greedy", "seeds": [0, 1]}
    result |= {"gymnasium": None, "returns": {"port": evaluate.summarize(played)}}
    rows = [line.split() for line in text(evaluate.results_table(result)).splitlines()]
    assert ["0", "2.33", "1.00", "…", "4.00", "1.25", "1.00", "4.00", "1.00"] in rows  # of three episodes
    assert ["IQM", "2.67", "–"] in rows


def test_returns_are_shown_with_three_digits(tmp_path):
    returns = [0.0, 0.00123, 0.734, 0.9996, 1.0, 1.52, -45.32, 1000.0, 123456.78, math.nan]
    shown = ["0.0", "0.00123", "0.734", "1.000", "1.000", "1.52", "-45.3", "1,000.0", "123,456.8", "–"]
    assert [return_text(x) for x in returns] == shown
    assert decimals(returns[:5], math.inf) == decimals([0.2, -0.5], math.nan) == 3
    assert decimals() == decimals(math.nan) == 1

    scores = {"iqm": 0.7344, "ci_low": 0.61, "ci_high": 1.0, "mean": 0.75, "per_seed": [1.0, 0.73, 0.5]}
    summary = SUMMARY | {"eval_return": scores, "seeds": [0, 1, 2], "num_seeds": 3}
    table = text(run.table(summary, tmp_path))
    assert "IQM 0.734, 95% interval 0.610 … 1.000, mean 0.750" in table
    assert "0: 1.000  1: 0.730  2: 0.500" in table
    sweep = types.SimpleNamespace(settings=[{"gamma": 0.9}])
    assert re.search(r"0\.9 │ *0\.734 │ *0\.610 … 1\.000 │ *0\.750 ", text(results_table(sweep, [summary])))
    several = types.SimpleNamespace(settings=[{"learning_rate": 2.345e-4, "gamma": 0.98123, "num_epochs": 4}] * 9)
    lines = text(results_table(several, [summary] * 9)).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.count("0.0002345") == 3 for line in lines) == 1


def test_the_table_of_a_run_says_how_to_look_at_its_tensorboard(tmp_path):
    (tmp_path / "a run" / "tensorboard").mkdir(parents=True)
    shown = text(run.table(SUMMARY, tmp_path / "a run"))
    assert f"tensorboard --logdir '{tmp_path}/a run/tensorboard'" in shown
    assert ("pip install tensorboard)" in shown) == (importlib.util.find_spec("tensorboard") is None)
    assert "tensorboard" not in text(run.table(SUMMARY, tmp_path))
