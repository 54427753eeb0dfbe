"""What came of a sweep: results.csv, a table, and the best settings as a command."""

import shlex
from typing import Any

import numpy as np
from rich.table import Table

from purejaxppo.config import Config
from purejaxppo.errors import plural
from purejaxppo.presets import as_flags, preset, settings_of, without_derived
from purejaxppo.rundir.files import csv_text, write_text
from purejaxppo.rundir.summary import Summary
from purejaxppo.statistics import decimals, interval_text, return_text
from purejaxppo.sweeps.axes import Settings, show
from purejaxppo.sweeps.definition import Sweep
from purejaxppo.sweeps.execution import Step
from purejaxppo.sweeps.results_figure import draw


def plan_table(sweep: Sweep, steps: list[Step], devices: int) -> Table:
    """Groups, runs, memory and batches, before anything is trained."""
    count, seeds = len(sweep.settings), len(sweep.record.seeds)
    product = f"{plural(count, 'setting')} × {plural(seeds, 'seed')} = {plural(count * seeds, 'run')}"
    title = f"{product}, on {plural(devices, 'device')}"
    rows = Table(title=title, title_justify="left")
    for heading in ("group", "settings", "runs", "GiB on each device", "batches"):
        rows.add_column(heading, justify="left" if heading == "group" else "right")
    for step in steps:
        count = len(step.group.members)
        memory = f"{step.program.device_bytes / 2**30:.3f}" if step.program else "failed" if step.failed else "finished"
        rows.add_row(step.group.name, str(count), str(count * seeds), memory, str(len(step.lots)))
    return rows


def best_first(summaries: list[Summary]) -> list[int]:
    """Settings by the IQM of their final returns; then those of which most seeds failed, then those without any."""
    scores = np.array([summary["eval_return"]["iqm"] for summary in summaries])
    failed = np.array([2 * len(summary["failed_seeds"]) > summary["num_seeds"] for summary in summaries])
    return np.lexsort((-scores, failed, np.isnan(scores))).tolist()


def results_table(sweep: Sweep, summaries: list[Summary], most: int = 20) -> Table:
    """The best settings, with the 95% bootstrap interval of each IQM: a row each, or a column if that is too wide."""
    names = [*sweep.settings[0]]
    wide = len(names) > 2  # for 80 columns
    order = best_first(summaries)[: 3 if wide else most]
    title = f"best of {plural(len(summaries), 'setting')} by IQM of the final returns"
    digits = decimals(*(summaries[i]["eval_return"]["per_seed"] for i in order))
    lines = [[*names, "IQM", "95% interval", "mean", "failed seeds"]]
    for i in order:
        final, failed = summaries[i]["eval_return"], str(len(summaries[i]["failed_seeds"]))
        iqm, mean = (return_text(x, digits) for x in (final["iqm"], final["mean"]))
        interval = interval_text(final["ci_low"], final["ci_high"], digits)
        lines.append([*map(show, sweep.settings[i].values()), iqm, interval, mean, failed])
    if wide:
        lines = [["best", *(str(n + 1) for n in range(len(order)))], *map(list, zip(*lines, strict=True))]
    rows = Table(title=title, title_justify="left")
    for n, name in enumerate(lines[0]):
        rows.add_column(name, justify="left" if wide and not n else "right", overflow="fold")
    for line in lines[1:]:
        rows.add_row(*line)
    return rows


SCORES = ("iqm", "ci_low", "ci_high", "mean", "failed_seeds")


def scores_of(summary: Summary) -> list[Any]:
    """The cells of a table under `SCORES`; NaN becomes an empty one."""
    final: Any = summary["eval_return"]
    return [*("" if np.isnan(final[x]) else final[x] for x in SCORES[:-1]), len(summary["failed_seeds"])]


def results_csv(sweep: Sweep, summaries: list[Summary]) -> str:
    """A row per setting, in the order of the sweep; NaN becomes an empty cell."""
    rows: list[list[Any]] = [[*sweep.settings[0], "num_seeds", *SCORES, "directory"]]
    for own, summary, name in zip(sweep.settings, summaries, sweep.names, strict=True):
        rows.append([*map(show, own.values()), summary["num_seeds"], *scores_of(summary), name])
    return csv_text(rows)


def write_results(sweep: Sweep, summaries: list[Summary]) -> None:
    """results.png and results.csv, unless that is there already."""
    out, text = sweep.record.directory, results_csv(sweep, summaries)
    path = out / "results.csv"
    if path.is_file() and path.read_bytes() == text.encode() and (out / "results.png").exists():
        return
    title = f"{summaries[0]['algo']} on {summaries[0]['env']}, {plural(len(sweep.record.seeds), 'seed')}"
    (out / "results.png").unlink(missing_ok=True)  # which would be that of other results
    write_text(path, text)
    draw(out / "results.png", title, sweep.settings, summaries)


def command_of(sweep: Sweep, i: int) -> str:
    """The command line that trains one setting on as many other seeds: those of the sweep have chosen it."""
    seeds, begun_from = sweep.record.seeds, sweep.record.options.get("init_from", "")
    return run_command(sweep.configs[i], len(seeds), (max(seeds) + 1) % 2**31, begun_from)


def run_command(config: Config, num_seeds: int, first_seed: int, begun_from: str = "") -> str:
    """The command line that trains a config, from the networks of another run if there is one."""
    own = beyond_preset(config, begun_from)
    words = ["purejaxppo", "run", "--algo", config.algo_name, "--env", str(config.env), *as_flags(own)]
    return shlex.join([*words, "--num-seeds", str(num_seeds), "--seed", str(first_seed)])


def beyond_preset(config: Config, begun_from: str = "") -> Settings:
    """The settings in which a config differs from its algorithm's and environment's preset, and what it began with."""
    settings = settings_of(config)
    usual = settings_of(preset(settings["algo"], config.env))
    own = {name: x for name, x in settings.items() if name not in ("algo", "env") and x != usual[name]}
    return without_derived(own) | ({"init_from": begun_from} if begun_from else {})
