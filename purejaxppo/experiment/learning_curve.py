"""The learning curve of one run."""

from pathlib import Path

import numpy as np

from purejaxppo.statistics import iqm, iqm_interval


def learning_curve(path: Path, title: str, env_steps: list[int], returns: list[np.ndarray]) -> None:
    """Draw the IQM over seeds of `returns` (one array [seeds] per entry of `env_steps`) with a 95% bootstrap band."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = [(steps, row) for steps, row in zip(env_steps, returns, strict=True) if not np.isnan(row).all()]
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if points:
        x = [steps for steps, _ in points]
        low, high = np.transpose([iqm_interval(row) for _, row in points])
        axes.fill_between(x, low, high, color="#0072B2", alpha=0.2, linewidth=0, label="95% bootstrap interval")
        axes.plot(x, [iqm(row) for _, row in points], color="#0072B2", label=f"IQM of {returns[0].size} seeds")
        axes.legend(frameon=False, loc="best")
    axes.set(title=title, xlabel="environment steps per seed", ylabel="episode return in training")
    axes.xaxis.set_major_formatter(lambda steps, _: f"{steps:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.savefig(path)
