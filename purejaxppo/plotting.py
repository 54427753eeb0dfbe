"""What all figures share: style, colours, axes that count, a line and its band."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from purejaxppo.statistics import Estimate, iqm_over_seeds

# Okabe and Ito (2008), without yellow, which is too faint on white: told apart by colour-blind readers
VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY, BLACK = COLOURS = (
    "#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000",
)  # fmt: skip
_STYLE = Path(__file__).with_suffix(".mplstyle")
_ONE_AT_A_TIME = threading.RLock()  # the style is the process's
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@contextlib.contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """A figure in our style, so many inches wide and high. It is to be saved before the context ends."""
    same_bytes: Any = {"svg.hashsalt": "purejaxppo"}  # every time
    with _ONE_AT_A_TIME, matplotlib.rc_context(same_bytes, _STYLE):
        yield Figure((width, height), layout="constrained")


def use_style() -> None:
    """Draw all figures of this process in our style, as notebooks do."""
    colours = cycler(color=[BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK])
    own: Any = {"axes.prop_cycle": colours, "figure.constrained_layout.use": True, "text.parse_math": True}
    matplotlib.rcParams.update({**matplotlib.rc_params_from_file(_STYLE, use_default_template=False), **own})
    matplotlib.rcParams.update({"figure.dpi": 110, "savefig.dpi": 110})


def curve(
    axes: Axes,
    x: Sequence[float] | np.ndarray,
    samples: Any,
    label: str = "",
    aggregate: Callable[[np.ndarray], Estimate] = iqm_over_seeds,
    **style: Any,
) -> None:
    """Samples [seeds, points] as the line of an aggregate over seeds, in its 95% interval, where any seed has one."""
    samples = np.asarray(samples, np.float64)
    known = ~np.isnan(samples).all(axis=0)
    x, estimate = np.asarray(x)[known], aggregate(samples[:, known])
    alone: Any = {"marker": "o"} if np.size(x) == 1 else {}
    (line,) = axes.plot(x, estimate.point, label=label, **alone | style)
    axes.fill_between(x, estimate.low, estimate.high, color=line.get_color(), alpha=0.16, linewidth=0)


def training_curve(axes: Axes, config: Any, metrics: Any, label: str = "", name: str = "episode_return") -> None:
    """A metric [seeds, updates] of `make_train(config)` against environment steps: IQM over seeds, 95% interval."""
    x = np.arange(1, config.num_updates + 1) * config.num_envs * config.num_steps
    curve(axes, x, metrics[name], label)
    axes.set(xlabel="environment steps", ylabel=f"{name.removeprefix('episode_')}, IQM of seeds [95%]")


def whole_ticks(axis: Axis) -> None:
    """Ticks of an axis that counts: at whole numbers only, as 500, 50k, 1.5M."""
    axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axis.set_major_formatter(EngFormatter(sep=""))


def log_scale(axes: Axes, name: str) -> None:
    """Make the axis "x" or "y" logarithmic, once all is drawn in it; ticks at 2 and 5 too where it is short."""
    axes.set(**{f"{name}scale": "log"})
    axis: Axis = getattr(axes, f"{name}axis")
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1,) if high > 200 * low else (1, 2, 5), numticks=6))
    axis.set_major_formatter(lambda x, _: _power(x))
    axis.set_minor_formatter(NullFormatter())


def _power(x: float) -> str:
    exponent = math.floor(math.log10(x) + 1e-9)
    factor = "" if round(x / 10**exponent) == 1 else f"{x / 10**exponent:.0f}·"
    return f"{factor}10{str(exponent).translate(_SUPERSCRIPT)}"
