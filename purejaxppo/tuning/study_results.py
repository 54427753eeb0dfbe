"""What came of a study: a table, figures, and the best settings as a command and as a file."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from purejaxppo.config import Config
from purejaxppo.errors import plural, reason
from purejaxppo.presets import settings_of
from purejaxppo.rundir.files import csv_text, replacing, write_text
from purejaxppo.rundir.record import RunRecord
from purejaxppo.rundir.summary import Summary
from purejaxppo.statistics import decimals, interval_text, probability_of_improvement, return_text
from purejaxppo.sweeps.axes import show
from purejaxppo.sweeps.results import SCORES, beyond_preset, scores_of
from purejaxppo.tuning.final import BEST, DEFAULTS
from purejaxppo.tuning.search import Search, quiet_optuna
from purejaxppo.tuning.space import toml_value


def trials_table(search: Search, most: int = 5) -> Table:
    """The best trials, a column each."""
    known = [trial for trial in search.trials if math.isfinite(trial.score)]
    best = sorted(known, key=lambda trial: (-trial.rung, -trial.score, trial.number))[:most]
    title = f"best of {plural(len(search.trials), 'trial')}, on the seeds that chose them"
    rows = Table(title=title, title_justify="left")
    for name in ("trial", *(str(trial.number) for trial in best)):
        rows.add_column(name, justify="left" if name == "trial" else "right", no_wrap=True)
    for name in search.space:
        rows.add_row(name, *(show(trial.settings[name]) for trial in best))
    rows.add_row("steps per seed", *(f"{search.rungs.steps[trial.rung - 1]:,}" for trial in best))
    scores = [trial.score for trial in best]
    shown = (return_text(x, decimals(scores)) for x in scores)
    rows.add_row(f"mean of {plural(search.options.seeds_per_trial, 'seed')}", *shown)
    return rows


def final_table(best: Summary, defaults: Summary, search_steps: int, final_steps: int) -> Table:
    """The figures that are reported: best settings and those before, on seeds that had no part in choosing them."""
    summaries = [best, defaults]
    finals: list[Any] = [summary["eval_return"] for summary in summaries]
    digits = decimals(*(final["per_seed"] for final in finals))
    seeds = plural(best["num_seeds"], "seed")
    title = f"{best['algo']} on {best['env']}, {seeds} that no trial had"
    rows = Table(title=title, title_justify="left")
    for name in ("final return", "tuned", "as begun"):
        rows.add_column(name, justify="left" if name == "final return" else "right", no_wrap=True)
    for name, title in (("iqm", "IQM"), ("mean", "mean")):
        rows.add_row(title, *(return_text(final[name], digits) for final in finals))
        if name == "iqm":
            rows.add_row("95% interval", *(interval_text(x["ci_low"], x["ci_high"], digits) for x in finals))
    rows.add_row("failed seeds", *(str(len(summary["failed_seeds"])) for summary in summaries))
    scores = [np.asarray(x["per_seed"], np.float64) for x in finals]
    if not any(np.isnan(x).all() for x in scores):
        better = probability_of_improvement(*scores)
        rows.add_row("P(tuned is better)", return_text(better.point, 2), "")
        rows.add_row("95% interval", interval_text(better.low, better.high, 2), "")
    rows.add_row("steps of the search", f"{search_steps:,}", "")
    rows.add_row("steps of these runs", f"{final_steps:,}", "")
    return rows


def write_final(out: Path, best: Summary, defaults: Summary) -> None:
    """results.csv: the best settings and those that the study began with, a row each; NaN becomes an empty cell."""
    rows: list[list[Any]] = [["directory", "num_seeds", "env_steps", *SCORES]]
    for directory, summary in ((BEST, best), (DEFAULTS, defaults)):
        rows.append([directory, summary["num_seeds"], summary["env_steps"], *scores_of(summary)])
    write_text(out / "results.csv", csv_text(rows))


def write_results(
    out: Path, search: Search, config: Config, record: RunRecord, warn: Callable[[str], None]
) -> dict[str, np.ndarray]:
    """trials.csv, best.toml, importance.png and slices.png; the columns of the first. `config` is the best.

    And schedule.toml, where a population has found how its settings change.
    """
    names = [*search.space, "rung", "steps_per_seed", "score", "status", "env_steps"]
    rows = [
        [
            *trial.settings.values(),
            trial.rung,
            search.rungs.steps[trial.rung - 1] if trial.rung else 0,
            trial.score,
            trial.status,
            trial.env_steps,
        ]
        for trial in search.trials
    ]
    cells = [["" if isinstance(x, float) and math.isnan(x) else show(x) for x in row] for row in rows]
    write_text(out / "trials.csv", csv_text([["trial", *names], *([i, *row] for i, row in enumerate(cells))]))
    write_text(out / "best.toml", best_toml(config, record.seeds, record.options.get("init_from", "")))
    if config.stages != record.config.stages:
        write_text(out / "schedule.toml", schedule_toml(config, search.space))
    draw(out, search, warn)
    columns = {
        name: np.asarray([show(x) if isinstance(x, tuple) else x for x in column])
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }
    return {"trial": np.arange(len(rows))} | columns


def best_toml(config: Config, seeds: list[int], begun_from: str) -> str:
    """A file for `run --config`: what differs from the preset, what the run began with, and its seeds.

    Seeds that do not follow one another have no flag. Modules of the user's own are left out, too: they can be given
    from Python alone.
    """
    same = {"algo": config.algo_name, "env": config.env_name}
    own = beyond_preset(config, begun_from).items()
    flags = same | {name: x for name, x in own if not name.endswith("_network") and not callable(x)}
    if seeds == [*range(seeds[0], seeds[0] + len(seeds))]:
        flags |= {"num_seeds": len(seeds), "seed": seeds[0]}
    return "".join(f"{name} = {toml_value(value)}\n" for name, value in flags.items())


def schedule_toml(config: Config, space: Iterable[str]) -> str:
    """A file for `run --schedule`: the numbers of a space from step 0 on, and as they change."""
    settings = settings_of(config)
    first = " ".join(["0", *(f"{name}={settings[name]!r}" for name in space)])
    return f"stages = [\n{''.join(f'  {toml_value(x)},{chr(10)}' for x in (first, *config.stages))}]\n"


def draw(out: Path, search: Search, warn: Callable[[str], None]) -> None:
    """Optuna's own plots, of the last score of every trial: importance by PED-ANOVA (Watanabe et al., 2023), slices."""
    import matplotlib
    import matplotlib.pyplot as plt
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as plots

    with quiet_optuna():
        scored = optuna.create_study(direction="maximize")
    for trial in search.trials:
        if math.isfinite(trial.score):
            params, distributions = trial.asked.params, trial.asked.distributions
            scored.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=trial.score))
    figures: dict[str, Callable[[], Any]] = {
        "importance.png": lambda: plots.plot_param_importances(scored, evaluator=PedAnovaImportanceEvaluator()),
        "slices.png": lambda: plots.plot_slice(scored),
    }
    for name, plot in figures.items():
        with quiet_optuna(), matplotlib.rc_context():
            try:
                axes = np.ravel(plot())[0]
            except (RuntimeError, ValueError, ZeroDivisionError) as error:  # of two trials, say, or of equal scores
                warn(f"{name} cannot be drawn from these trials ({reason(error):.200})")
                continue
            with replacing(out / name) as draft:
                axes.figure.savefig(draft, bbox_inches="tight")
            plt.close(axes.figure)
