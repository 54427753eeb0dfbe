"""The final returns of a sweep: lines over one axis, a heat map over two, the points along each axis of more."""

from pathlib import Path
from typing import Any

import numpy as np

from purejaxppo.rundir.files import replacing
from purejaxppo.rundir.summary import Summary
from purejaxppo.statistics import Estimate, decimals, interval_text, return_text
from purejaxppo.sweeps.axes import Settings, show

_MOST_CELLS = 30  # of a row or column of a heat map, each of which has its numbers


def draw(path: Path, title: str, settings: list[Settings], summaries: list[Summary]) -> None:
    """results.png."""
    from purejaxppo import plotting

    final = [[x["eval_return"]["iqm"], x["eval_return"]["ci_low"], x["eval_return"]["ci_high"]] for x in summaries]
    scores = Estimate(*np.array(final, float).T)
    different = {name: {own[name] for own in settings} for name in settings[0]}
    values = {name: sorted(x, key=lambda x: (x is not None, isinstance(x, str), x)) for name, x in different.items()}
    varying = [name for name, x in values.items() if len(x) > 1] or list(values)[:1]
    shape = [len(values[name]) for name in varying]
    full = len(varying) == 2 and len(settings) == shape[0] * shape[1] and max(shape) <= _MOST_CELLS
    if full:
        rows, columns = (values[name] for name in varying)
        size = 2.6 + 1.1 * len(columns), 1.8 + 0.7 * len(rows)
    else:
        size = max(6.4, 3.6 * len(varying)), 4.0
    with plotting.new_figure(*size) as figure:
        if full:
            _heat_map(figure.subplots(), varying, rows, columns, settings, scores)
        else:
            panels = np.atleast_1d(figure.subplots(1, len(varying), sharey=True))
            for axes, name in zip(panels, varying, strict=True):
                _points(axes, name, values[name], settings, scores, joined=len(varying) == 1)
            interval = "" if np.isnan(scores.low).all() else ", 95% interval"
            panels[0].set_ylabel(f"IQM of final returns{interval}")
        figure.suptitle(title)
        with replacing(path) as draft:
            figure.savefig(draft)


def _heat_map(
    axes: Any, names: list[str], rows: list[Any], columns: list[Any], settings: list[Settings], scores: Estimate
) -> None:
    iqm, low, high = (np.full((len(rows), len(columns)), np.nan) for _ in range(3))
    for own, *numbers in zip(settings, *scores, strict=True):
        cell = rows.index(own[names[0]]), columns.index(own[names[1]])
        iqm[cell], low[cell], high[cell] = numbers
    image = axes.imshow(iqm, cmap="viridis", aspect="auto", origin="lower")
    middle = (np.nanmin(iqm) + np.nanmax(iqm)) / 2 if np.isfinite(iqm).any() else 0.0
    digits = decimals(iqm)
    for (i, j), score in np.ndenumerate(iqm):
        interval = "" if np.isnan(low[i, j]) else f"\n{interval_text(low[i, j], high[i, j], digits)}"
        dark, text = np.isnan(score) or score > middle, f"{return_text(score, digits)}{interval}"
        axes.text(j, i, text, ha="center", va="center", fontsize="x-small", color="black" if dark else "white")
    axes.grid(visible=False)
    axes.set(xlabel=names[1], ylabel=names[0])
    axes.set_xticks(range(len(columns)), [show(x) for x in columns])
    axes.set_yticks(range(len(rows)), [show(x) for x in rows])
    axes.figure.colorbar(image, ax=axes, label="IQM of final returns")


def _points(axes: Any, name: str, values: list[Any], settings: list[Settings], scores: Estimate, joined: bool) -> None:
    from purejaxppo import plotting

    numeric = all(isinstance(x, int | float) and not isinstance(x, bool) and np.isfinite(x) for x in values)
    x = np.asarray([own[name] if numeric else values.index(own[name]) for own in settings], float)
    iqm, low, high = scores
    order = np.argsort(x, kind="stable")
    spread = np.abs([iqm - low, high - iqm])[:, order]
    style: Any = {"linestyle": "-" if joined else "none", "color": plotting.BLUE, "capsize": 2, "ms": 4, "lw": 1}
    axes.errorbar(x[order], iqm[order], spread, fmt="o", **style)
    if np.isfinite(iqm).any():
        best = int(np.nanargmax(iqm))
        axes.plot(x[best], iqm[best], "o", color=plotting.VERMILION, label="best", zorder=4)
        axes.legend()
    if numeric and min(values) > 0 and max(values) >= 10 * min(values):
        plotting.log_scale(axes, "x")
    elif numeric and all(isinstance(x, int) for x in values):
        plotting.whole_ticks(axes.xaxis)
    if not numeric or len(values) <= (8 if joined else 5):
        axes.set_xticks(values if numeric else range(len(values)), [show(x) for x in values])
        axes.minorticks_off()
    axes.set_xlabel(name)
