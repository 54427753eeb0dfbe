"""The figures of runs and sweeps: what their axes, legends and intervals say."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from purejaxppo import plotting
from purejaxppo.experiment.learning_curve import learning_curve
from purejaxppo.sweeps.results_figure import draw


@pytest.fixture
def picture(tmp_path):
    return tmp_path / "x.png"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, drawn but not written."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (self.draw_without_rendering(), figures.append(self)))
    return figures


def ticks(axes):
    """What is shown: value -> label."""
    low, high = axes.get_xlim()
    labels = [label.get_text() for label in axes.get_xticklabels()]
    return {x: label for x, label in zip(axes.get_xticks(), labels, strict=True) if low <= x <= high}


def scores(*iqms, half=1.0):
    return [{"eval_return": {"iqm": x, "ci_low": x - half, "ci_high": x + half}} for x in iqms]


@pytest.mark.parametrize(("every", "points"), [(1, 1), (1, 5), (512, 40), (500_000, 7)])
def test_axes_that_count_have_whole_ticks(drawn, picture, every, points):
    steps = [every * (i + 1) for i in range(points)]
    learning_curve(picture, "a $title$", np.array(steps), np.repeat(np.arange(4.0)[:, None], points, axis=1))
    draw(picture, "", [{"num_epochs": x} for x in steps], scores(*steps))
    draw(picture, "", [{"num_epochs": x, "gamma": 1 / x, "num_steps": 7 * x} for x in steps * 4], scores(*steps * 4))
    curve, lone, several = (figure.axes for figure in drawn)
    for axes in (*curve, *lone, *several[:1], *several[2:]):
        found = ticks(axes)
        assert found
        assert all(x == round(x) for x in found)


def test_a_learning_curve_says_what_it_shows(drawn, picture):
    for seeds in (1, 2, 3):
        returns = np.stack([np.full(seeds, np.nan), np.arange(seeds), np.arange(seeds) + 1.0], axis=1)
        learning_curve(picture, "", np.array([8, 16, 24]), returns)
    legends = [figure.axes[0].get_legend().get_texts()[0].get_text() for figure in drawn]
    assert legends == ["1 seed", "IQM of 2 seeds", "IQM of 3 seeds, 95% bootstrap interval"]
    lines = [figure.axes[0].lines[0].get_xydata().tolist() for figure in drawn]
    assert lines[2] == [[16, 1], [24, 2]]  # no episode had ended after 8 steps
    bands = [figure.axes[0].collections[0].get_datalim(figure.axes[0].transData).height for figure in drawn]
    assert [math.isfinite(height) and height > 0 for height in bands] == [False, False, True]
    learning_curve(picture, "", np.array([8]), np.full((3, 1), np.nan))
    assert not drawn[-1].axes[0].lines


def test_a_curve_goes_on_over_updates_in_which_no_episode_ended():
    samples = np.full((4, 9), np.nan)
    samples[:, [2, 6]] = np.arange(8.0).reshape(4, 2)
    axes = Figure().subplots()
    plotting.curve(axes, np.arange(9), samples)
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [2, 6])
    assert np.all(np.isfinite(axes.lines[0].get_ydata()))
    plotting.curve(axes, np.arange(9)[:4], samples[:, :4])
    assert axes.lines[1].get_marker() == "o"  # one point has no line


def test_a_setting_may_be_left_open_in_a_sweep(drawn, picture):
    for values in ((None, 64), (None, (32, 8), (64,))):
        draw(picture, "", [{"minibatch_size": x} for x in values], scores(*range(len(values))))
    assert [len(ticks(figure.axes[0])) for figure in drawn] == [2, 3]


def test_a_sweeps_figure_shows_no_interval_that_is_none(drawn, picture):
    settings = [{"gamma": x, "num_steps": y} for x in (0.9, 0.99) for y in (16, 32)]
    for half in (1.0, math.nan):
        draw(picture, "", settings, scores(1.0, 2.0, 3.0, math.nan, half=half))
        draw(picture, "", settings[::2], scores(1.0, 2.0, half=half))
    labels = [[text.get_text() for text in figure.axes[0].texts] for figure in drawn[::2]]
    assert labels == [
        ["1.00\n0.00 … 2.00", "2.00\n1.00 … 3.00", "3.00\n2.00 … 4.00", "–"],
        ["1.00", "2.00", "3.00", "–"],
    ]
    assert [figure.axes[0].get_ylabel() for figure in drawn[1::2]] == [
        "IQM of final returns, 95% interval",
        "IQM of final returns",
    ]


@pytest.mark.parametrize(
    ("high", "labels"), [(30.0, ["10⁰", "2·10⁰", "5·10⁰", "10¹", "2·10¹"]), (5000.0, ["10⁰", "10¹", "10²", "10³"])]
)
def test_logarithmic_axes(high, labels):
    with plotting.new_figure(3, 2) as figure:
        axes = figure.subplots()
        axes.plot([1, high], [0, 1])
        plotting.log_scale(axes, "x")
        figure.draw_without_rendering()
        assert list(ticks(axes).values()) == labels
