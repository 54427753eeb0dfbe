"""The report's sections on what the updates did, and on what is probably wrong."""

from typing import Any, NamedTuple

import numpy as np

from purejaxppo import statistics
from purejaxppo.diagnosis.diagnose import findings
from purejaxppo.report import figures
from purejaxppo.report.html import Markup, escape, figure, listed, paragraph, table
from purejaxppo.report.sections import POINTS, Entry, seeds_of, series_of


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
    Panel("clip_fraction", "Clip fraction", "Fraction of the samples with |ratio − 1| > ε.", ylim=(0, None)),
    Panel("kl_coef", "KL coefficient", "The penalty's β.", log=True),
    Panel("explained_variance", "Explained variance", "1 − Var(target − V) / Var(target), from −1.", False, (-1, None)),
    Panel("entropy", "Entropy", "Of the policy, mean over states."),
    Panel("search_std", "Search width", "Standard deviation of the members' parameters, in CEM and CMA-ES.", log=True),
    Panel("cg_residual", "CG residual", "Of the conjugate gradient's solution.", log=True),
    Panel(
        "success_rate", "Success rate", "Fraction of the episodes in training that were a success.", ylim=(-0.03, 1.03)
    ),
    Panel("alive", "Alive", "Fraction of the seeds that are still finite.", ylim=(-0.03, 1.03)),
]


def diagnostics(env: str, entries: list[Entry]) -> str:
    """What the updates did on one environment, side by side."""
    found = [panel_figure(panel, env, entries) for panel in PANELS]
    found.insert(1, calibration(env, entries))
    key = "".join(f"<li>{entry.name}</li>" for entry in entries)
    about = paragraph("Lines: IQM over seeds at each log interval. Bands: the middle half of the seeds.", "note")
    return f'<h3>{escape(env)}</h3>\n{about}<ul class="key">{key}</ul>\n<div class="panels">{"".join(found)}</div>'


def panel_figure(panel: Panel, env: str, entries: list[Entry]) -> str:
    """One diagnostic; nothing if no run has it, or no seed ever died."""
    aggregate = _fraction if panel.column == "alive" else statistics.quartiles_over_seeds
    drawn, series = series_of(entries, panel.column, aggregate)
    if not series or (panel.column == "alive" and all((line.y.point == 1).all() for line in series)):
        return ""
    style: Any = {"size": (3.6, 2.4), "legend": False, "log": panel.log, "ylim": panel.ylim}
    image = figures.lines(series, "environment steps per seed", panel.title, **style)
    ends = "; ".join(f"{line.label} ends at {line.y.point[-1]:.3g}" for line in series)
    caption = Markup(
        f"<b>{panel.title}.</b> {panel.about} {escape(seeds_of([len(e.run.seeds) for e in drawn]).capitalize())}."
    )
    return figure(image, f"{panel.title} on {env} against environment steps: {ends}.", caption)


def _fraction(alive: np.ndarray) -> statistics.Estimate:
    """The mean over seeds, as each counts: an interquartile mean would leave out those that have died first."""
    return statistics.Estimate(*[alive.mean(axis=0)] * 3)


def calibration(env: str, entries: list[Entry]) -> str:
    """The KL that the quadratic model predicts against the KL that the step had, IQM over seeds."""
    series = []
    for e in entries:
        columns = [e.run.metrics.columns.get(name) for name in ("predicted_kl", "kl")]
        x, y = (np.array([statistics.iqm(row) for row in ([] if values is None else values.T)]) for values in columns)
        some = np.flatnonzero((x > 0) & (y > 0)) if x.size == y.size else np.zeros(0, int)
        some = some[figures.evenly(some.size, POINTS)]
        if some.size:
            series.append(figures.Series(e.label, e.look, x[some], statistics.Estimate(*[y[some]] * 3)))
    if not series:
        return ""
    image = figures.calibration(series, "predicted KL, ½ sᵀFs", "actual KL", size=(3.6, 2.4))
    caption = Markup("<b>Predicted and actual KL.</b> One point per log interval, IQM over seeds; dashed, equality.")
    return figure(image, f"Actual against predicted KL on {env}: {listed(line.label for line in series)}.", caption)


def diagnosis(entries: list[Entry]) -> str:
    """What `purejaxppo diagnose` says of each run, worst first."""
    rows = [
        [e.name, found.title, found.evidence, found.where(len(e.run.seeds)), "; ".join(found.tries)]
        for e in entries
        for found in findings(e.run)
    ]
    about = paragraph("Rules with thresholds; more by purejaxppo diagnose DIR --probe.", "note")
    head = ["", "what is probably wrong", "evidence", "where", "what to try"]
    return (table(head, rows, "") if rows else paragraph("No rule finds anything wrong.")) + about
