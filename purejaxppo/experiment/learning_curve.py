"""The learning curve of one run."""

from pathlib import Path

import numpy as np

from purejaxppo.errors import plural
from purejaxppo.rundir.files import replacing
from purejaxppo.statistics import FEWEST, iqm_over_seeds


def learning_curve(path: Path, title: str, env_steps: list[int], returns: list[np.ndarray]) -> None:
    """Draw the IQM over seeds of `returns` (one array [seeds] per entry of `env_steps`) with a 95% bootstrap band."""
    from purejaxppo import plotting

    points = [(steps, row) for steps, row in zip(env_steps, returns, strict=True) if not np.isnan(row).all()]
    with plotting.new_figure(6.4, 4.0) as figure:
        axes = figure.subplots()
        if points:
            seeds = points[0][1].size
            label = f"IQM of {plural(seeds, 'seed')}" if seeds > 1 else "1 seed"
            band = ", 95% bootstrap interval" if seeds >= FEWEST else ""
            curve = iqm_over_seeds(np.stack([row for _, row in points], axis=1))
            marker = "o" if len(points) == 1 else ""
            steps = [steps for steps, _ in points]
            plotting.line_with_band(axes, steps, curve, plotting.BLUE, label + band, marker=marker)
            axes.legend(loc="best")
        axes.set(title=title, xlabel="environment steps per seed", ylabel="episode return in training")
        axes.set_xlim(left=0)
        plotting.whole_ticks(axes.xaxis)
        with replacing(path) as draft:
            figure.savefig(draft)
