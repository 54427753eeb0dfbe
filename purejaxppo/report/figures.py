"""The report's figures, as SVG."""

import io
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import MaxNLocator

from purejaxppo import plotting
from purejaxppo.rundir.contents import RunContents
from purejaxppo.statistics import Estimate

_COLOURS = dict(zip(("trpo", "ppo", "npg", "a2c", "ppo-penalty", "reinforce", "a2c-tr"), plotting.COLOURS, strict=True))
_DASHES = [(), (5, 1.6), (1.2, 1.4), (6, 1.5, 1.2, 1.5), (8, 2, 2, 2, 2, 2)]  # in line widths
_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">"]
_STRIP_AT_MOST = 128  # scores drawn one by one
Limits = tuple[float, float | None] | None  # of an axis; an open top: only what is below is cut off


class Look(NamedTuple):
    """How a run is drawn, in all figures."""

    colour: str
    dashes: tuple[float, ...]
    marker: str

    def line(self) -> dict[str, Any]:
        """Matplotlib's arguments for a line."""
        style = (0, self.dashes) if self.dashes else "solid"
        return {"color": self.colour, "linestyle": style, "marker": self.marker, "markeredgecolor": "white"}


class Series(NamedTuple):
    """One line of a figure."""

    label: str
    look: Look
    x: np.ndarray  # [points]
    y: Estimate  # [points]


class Interval(NamedTuple):
    """One row of a figure of intervals."""

    label: str
    look: Look
    value: Estimate  # of a number
    dots: np.ndarray  # [seeds] what it is an aggregate of; may be empty


def looks(runs: Sequence[RunContents], labels: Sequence[str]) -> list[Look]:
    """One look for each label: the algorithm's colour, or the next free one where its runs have several labels."""
    algos = {label: run.algo for label, run in reversed(list(zip(labels, runs, strict=True)))}
    free = [colour for algo, colour in _COLOURS.items() if algo not in algos.values()]
    found: dict[str, Look] = {}
    for i, label in enumerate(dict.fromkeys(labels)):
        colour = _COLOURS.get(algos[label], "")
        if not colour or colour in {look.colour for look in found.values()}:
            colour = free.pop(0) if free else plotting.COLOURS[i % len(plotting.COLOURS)]
        found[label] = Look(colour, _DASHES[i % len(_DASHES)], _MARKERS[i % len(_MARKERS)])
    return [found[label] for label in labels]


def lines(
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    *,
    size: tuple[float, float] = (5.0, 3.0),
    legend: bool = True,
    log: bool = False,
    ylim: Limits = None,
    steps: bool = True,
) -> bytes:
    """Lines with bands. `log`: logarithmic where the values call for it. `steps`: x counts environment steps."""
    rows = -(-len(series) // _columns(series)) if legend else 0
    with plotting.new_figure(size[0], size[1] + 0.18 * rows) as figure:
        axes = figure.subplots()
        for i, (label, look, x, y) in enumerate(series):
            every = max(1, len(x) // 6)
            axes.fill_between(x, y.low, y.high, color=look.colour, alpha=0.16, linewidth=0)
            axes.plot(x, y.point, **look.line(), label=_text(label), markevery=(i % every, every), zorder=3)
        if log:
            _log_if_wide(axes, "y", np.concatenate([y.point for *_, y in series]))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if ylim:
            bottom, top = axes.get_ylim()
            if ylim[1] is None:  # less of what is far below, unless there is nothing else
                axes.set_ylim(max(bottom, ylim[0]) if top > ylim[0] else bottom, top)
            else:
                axes.set_ylim(*ylim)
        if steps:
            axes.set_xlim(left=0)
            plotting.whole_ticks(axes.xaxis)
        if legend:
            figure.legend(loc="outside lower center", ncols=_columns(series))
        return _svg(figure)


def intervals(rows: Sequence[Interval], xlabel: str, *, reference: float | None = None, xlim: Limits = None) -> bytes:
    """A marker and its interval in each row, above the dots that it aggregates."""
    labels = ["\n".join(textwrap.fill(_text(line), 28) for line in row.label.split("\n")) for row in rows]
    most = 1 + max(label.count("\n") for label in labels)
    with plotting.new_figure(5.0, 0.6 + max(0.38, 0.06 + 0.15 * most) * len(rows)) as figure:
        axes = figure.subplots()
        if reference is not None:
            axes.axvline(reference, color="#888888", linewidth=1, linestyle=(0, (4, 3)))
        for i, (_, look, value, dots) in enumerate(rows):
            some = np.sort(dots)[evenly(len(dots), _STRIP_AT_MOST)]
            axes.plot(some, np.full(len(some), i + 0.24), "|", color=look.colour, alpha=0.55, markersize=5)
            axes.plot([value.low, value.high], [i, i], color=look.colour, linewidth=4, alpha=0.35)
            axes.plot([value.point], [i], look.marker, color=look.colour, markersize=6.5, markeredgecolor="white")
        axes.set_yticks(range(len(rows)), labels)
        axes.set(ylim=(len(rows) - 0.4, -0.5), xlabel=xlabel, xlim=xlim)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        return _svg(figure)


def calibration(series: Sequence[Series], xlabel: str, ylabel: str, *, size: tuple[float, float]) -> bytes:
    """Positive points against the diagonal."""
    with plotting.new_figure(*size) as figure:
        axes = figure.subplots()
        for _, look, x, y in series:
            axes.plot(x, y.point, look.marker, color=look.colour, alpha=0.7, markeredgewidth=0)
        drawn = np.concatenate([np.concatenate([x, y.point]) for _, _, x, y in series])
        ends = np.array([drawn.min() / 1.1, drawn.max() * 1.1])
        axes.plot(ends, ends, color="#888888", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _log_if_wide(axes, "xy", drawn)
        return _svg(figure)


def swatch(look: Look) -> str:
    """A sample of a look, as an SVG element for a page's text."""
    dashes = f' stroke-dasharray="{" ".join(f"{2 * d:g}" for d in look.dashes)}"' if look.dashes else ""
    marker = MarkerStyle(look.marker)
    corners = np.asarray(marker.get_path().transformed(marker.get_transform()).to_polygons()[0])
    points = " ".join(f"{14 + 7.5 * x:.1f},{6 - 7.5 * y:.1f}" for x, y in corners)
    return (
        f'<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true"><path d="M0 6H28" stroke="{look.colour}" '
        f'stroke-width="2"{dashes}/><polygon points="{points}" fill="{look.colour}" stroke="#fff"/></svg>'
    )


def evenly(count: int, at_most: int) -> np.ndarray:
    """Indices of `count` entries, or of `at_most` of them from first to last."""
    return np.unique(np.linspace(0, count - 1, min(count, at_most)).round().astype(int))


def _svg(figure: Any) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # it is drawn as a box
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return file.getvalue()


def _log_if_wide(axes: Any, names: str, values: np.ndarray) -> None:
    """Make the axes logarithmic if all values are positive and more than a decade apart."""
    wide = (values > 0).all() and values.max() > 10 * values.min()
    for name in names:
        if wide:
            plotting.log_scale(axes, name)
        else:
            getattr(axes, f"{name}axis").set_major_locator(MaxNLocator(5))


def _columns(series: Iterable[Series]) -> int:
    longest = max(len(_text(label)) for label, *_ in series)
    return max(1, min(3, 75 // (longest + 8)))


def _text(label: str) -> str:
    """A label that matplotlib takes as it is: none that begins with "_" is drawn in a legend."""
    label = label if len(label) <= 56 else f"{label[:35]}…{label[-20:]}"  # what differs may be the end
    return f" {label}" if label.startswith("_") else label
