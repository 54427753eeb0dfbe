"""The learning curve of one run."""

from pathlib import Path

import numpy as np

from purejaxppo.errors import plural
from purejaxppo.rundir.files import replacing
from purejaxppo.statistics import FEWEST

MOST_POINTS = 100  # a run that goes on has more rows


def learning_curve(path: Path, title: str, env_steps: np.ndarray, returns: np.ndarray) -> None:
    """Draw the IQM over seeds of `returns` [seeds, rows] against `env_steps` [rows], with a 95% bootstrap band."""
    from purejaxppo import plotting

    known = np.flatnonzero(~np.isnan(returns).all(axis=0))
    known = known[np.linspace(0, known.size - 1, min(known.size, MOST_POINTS)).astype(int)]
    with plotting.new_figure(6.4, 4.0) as figure:
        axes = figure.subplots()
        if known.size:
            seeds = len(returns)
            label = f"IQM of {plural(seeds, 'seed')}" if seeds > 1 else "1 seed"
            band = ", 95% bootstrap interval" if seeds >= FEWEST else ""
            plotting.curve(axes, env_steps[known], returns[:, known], label + band, color=plotting.BLUE, zorder=3)
            axes.legend(loc="best")
        axes.set(title=title, xlabel="environment steps per seed", ylabel="episode return in training")
        axes.set_xlim(left=0)
        plotting.whole_ticks(axes.xaxis)
        with replacing(path) as draft:
            figure.savefig(draft)
