"""The report's section on what the updates did."""

from typing import NamedTuple

import numpy as np

from purejaxppo import statistics
from purejaxppo.report import figures
from purejaxppo.report.html import Markup, escape, figure, listed, paragraph
from purejaxppo.report.sections import Entry, Groups, seeds_of, series_of


class Panel(NamedTuple):
    """A diagnostic: one column of metrics.csv, for every run that has it."""

    column: str
    title: str
    about: str
    log: bool = False
    ylim: figures.Limits = None


PANELS = [
    Panel("kl", "KL", "KL(π_old ‖ π_new) of an update.", log=True),
    Panel("accepted", "Accepted", "Fraction of the steps that were taken.", ylim=(-0.03, 1.03)),
    Panel("backtracks", "Backtracks", "Times that the line search shortened the step.", ylim=(0, None)),
    Panel("clip_fraction", "Clip fraction", "Fraction of the samples whose ratio is clipped.", ylim=(0, None)),
    Panel("kl_coef", "KL coefficient", "The penalty's β.", log=True),
    Panel(
        "explained_variance",
        "Explained variance",
        "1 − Var(target − V) / Var(target); cut off below −1.",
        False,
        (-1, None),
    ),
    Panel("entropy", "Entropy", "Of the policy, mean over states."),
    Panel("cg_residual", "CG residual", "Of the conjugate gradient's solution.", log=True),
    Panel("alive", "Alive", "Fraction of the seeds that are still finite.", ylim=(-0.03, 1.03)),
]


def diagnostics(groups: Groups) -> str:
    """What the updates did, side by side."""
    return paragraph(
        "Lines: IQM over seeds at each log interval. Bands: the middle half of the seeds.", "note"
    ) + "\n".join(diagnostics_on(env, entries) for env, entries in groups.items())


def diagnostics_on(env: str, entries: list[Entry]) -> str:
    """One environment's panels."""
    found = [panel_figure(panel, env, entries) for panel in PANELS]
    found.insert(1, calibration(env, entries))
    key = "".join(f"<li>{entry.name}</li>" for entry in entries)
    return f'<h3>{escape(env)}</h3>\n<ul class="key">{key}</ul>\n<div class="panels">{"".join(found)}</div>'


def panel_figure(panel: Panel, env: str, entries: list[Entry]) -> str:
    """One diagnostic; nothing if no run has it, or no seed ever died."""
    series = [(e, s) for e in entries if (s := series_of(e, panel.column, statistics.quartiles_over_seeds)) is not None]
    if not series or (panel.column == "alive" and all((s.y.point == 1).all() for _, s in series)):
        return ""
    drawn = [e for e, _ in series]
    image = figures.lines(
        [s for _, s in series],
        "environment steps per seed",
        panel.title,
        size=(3.6, 2.4),
        legend=False,
        log=panel.log,
        ylim=panel.ylim,
    )
    ends = "; ".join(f"{e.label} ends at {float(s.y.point[-1]):.3g}" for e, s in series)
    caption = Markup(f"<b>{panel.title}.</b> {panel.about} {escape(seeds_of(drawn).capitalize())}.")
    return figure(image, f"{panel.title} on {env} against environment steps: {ends}.", caption)


def calibration(env: str, entries: list[Entry]) -> str:
    """The KL that the quadratic model predicts against the KL that the step had."""
    series = []
    for e in entries:
        predicted, actual = (series_of(e, name, statistics.quartiles_over_seeds) for name in ("predicted_kl", "kl"))
        if predicted is None or actual is None:
            continue
        _, i, j = np.intersect1d(predicted.x, actual.x, return_indices=True)
        x, y = predicted.y.point[i], actual.y.point[j]
        some = (x > 0) & (y > 0)
        if some.any():
            series.append((e, figures.Series(e.label, e.look, x[some], statistics.Estimate(*[y[some]] * 3))))
    if not series:
        return ""
    image = figures.calibration([s for _, s in series], "predicted KL, ½ sᵀFs", "actual KL", size=(3.6, 2.4))
    drawn = [e for e, _ in series]
    caption = Markup(
        "<b>Predicted and actual KL.</b> One point per log interval, IQM over seeds; dashed, equality. "
        f"{escape(seeds_of(drawn).capitalize())}."
    )
    return figure(image, f"Actual against predicted KL on {env}: {listed(e.label for e in drawn)}.", caption)
