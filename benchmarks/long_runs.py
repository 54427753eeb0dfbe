"""Tables that take hours: batches of runs, trained one after the other by the command line, whose results are rows.

A row is one run, a line of JSON. What has its row is never trained again; a batch that was interrupted is resumed. So a
benchmark can work in the background for days. `ppo_paper.py`, `mujoco_table.py` and `minatar_table.py` say which
batches.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from learning import RESULTS, means_between

from purejaxppo.rundir.metrics import MetricsTable, read_metrics
from purejaxppo.rundir.record import read_record, versions
from purejaxppo.rundir.summary import read_summary

Row = dict[str, Any]


class Batch(NamedTuple):
    """Runs of one task that are one program: a run of several seeds, or a sweep of several settings and seeds."""

    task: str
    env: str
    flags: str
    methods: dict[str, str]  # a setting's directory in a sweep ↦ the method's name; of a run {"": name}

    @property
    def command(self) -> list[str]:
        kind = "run" if "" in self.methods else "sweep"
        return ["purejaxppo", kind, "--env", self.env, *self.flags.split()]

    @property
    def name(self) -> str:
        return f"{self.task} {', '.join(self.methods.values())}"


def last_episodes(table: MetricsTable, count: int = 100) -> np.ndarray:
    """[seeds] Mean return of the last `count` training episodes of each seed, or of all if there are fewer.

    The log has the mean return of the episodes that ended in each interval, and their number. Of the interval in which
    the count is reached, the mean is weighted by the episodes that are still missing.
    """
    episodes = np.nan_to_num(table.metric("episodes"))[:, ::-1]
    returns = np.where(episodes > 0, np.nan_to_num(table.metric("episode_return"))[:, ::-1], 0.0)
    before = np.cumsum(episodes, axis=1) - episodes
    weights = np.clip(count - before, 0, episodes)
    total = weights.sum(axis=1)
    return np.where(total > 0, (weights * returns).sum(axis=1) / np.maximum(total, 1), np.nan)


def curve(table: MetricsTable, points: int = 50) -> list[list[float | None]]:
    """[seeds][points] Mean return of the episodes that ended in each of equal parts of training; None without any."""
    edges = np.linspace(0, len(table.update), points + 1).astype(int)
    return means_between(edges, *(np.nan_to_num(table.metric(name)) for name in ("episode_return", "episodes")))


def rows_of(batch: Batch, out: Path, command: Sequence[str]) -> list[Row]:
    """What a finished batch has come to: a row for each method and seed."""
    rows = []
    for directory, method in batch.methods.items():
        record = read_record(out / directory)
        summary = read_summary(out / directory, record.seeds)
        if summary is None:
            continue  # this setting has failed, see `purejaxppo sweep`; it is tried again by the next call
        table = read_metrics(out / directory / "metrics.csv", record.seeds)
        for seed, last, shape, final in zip(
            record.seeds, last_episodes(table), curve(table), summary["eval_return"]["per_seed"], strict=True
        ):
            rows.append(
                {
                    "task": batch.task,
                    "method": method,
                    "seed": seed,
                    "env_steps": summary["env_steps"],
                    "last_100": _rounded(float(last)),
                    "final": _rounded(final),
                    "failed": seed in [failed["seed"] for failed in summary["failed_seeds"]],
                    "curve": shape,
                    "command": " ".join(command),
                    "date": f"{datetime.now(UTC):%Y-%m-%d}",
                    "versions": versions(),
                }
            )
    return rows


def _rounded(score: float) -> float | None:
    return None if np.isnan(score) else round(score, 3)


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def scores(rows: Iterable[Row], score: str) -> dict[tuple[str, str], list[float]]:
    """(task, method) ↦ the score of each seed that has one."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row[score] is not None:
            found.setdefault((row["task"], row["method"]), []).append(row[score])
    return found


def train(
    batches: Sequence[Batch], stem: str, about: str | None, report: Callable[[list[Row]], None], seeds: int
) -> int:
    """The command of such a benchmark: train what has no row yet, and `report` after each batch.

    Those with the fewest seeds come first, and among them those whose seeds differ most.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only batches whose name contains this word")
    parser.add_argument("--seeds", type=int, default=seeds, help="seeds of each method (default: %(default)s)")
    parser.add_argument(
        "--work", type=Path, default=Path("runs") / stem, help="where runs are kept (default: %(default)s)"
    )
    parser.add_argument(
        "--report", action="store_true", help="train nothing, write the report of the rows that are there"
    )
    options = parser.parse_args()
    path = RESULTS / f"{stem}.jsonl"
    while not options.report:
        rows = read_rows(path)
        left = [batch for batch in batches if options.only in batch.name and _seeds(batch, rows) < options.seeds]
        if not left:
            break
        batch = min(left, key=lambda batch: _urgency(batch, rows))
        first = _seeds(batch, rows)
        out = options.work / f"{batch.name.replace(', ', '_').replace(' ', '-')}-{first}-{options.seeds}"
        command = [*batch.command, "--seed", str(first), "--num-seeds", str(options.seeds - first)]
        print(f"{batch.name}: seeds {first} to {options.seeds - 1}", flush=True)
        more = ["--out", str(out), "--resume-or-start"]
        code = subprocess.run([sys.executable, "-m", *command, *more], check=False).returncode
        if code or not (found := rows_of(batch, out, command)):
            return code or 1
        with path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
        report(read_rows(path))
    report(read_rows(path))
    return 0


def _seeds(batch: Batch, rows: list[Row]) -> int:
    """How many seeds, from 0 on, all methods of the batch have."""
    return min(
        sum((row["task"], row["method"]) == (batch.task, name) for row in rows) for name in batch.methods.values()
    )


def _urgency(batch: Batch, rows: list[Row]) -> tuple[int, float]:
    """Few seeds first, then a wide spread of their scores, relative to the task's range."""
    known = scores(rows, "last_100")
    of_task = [x for (task, _), values in known.items() if task == batch.task for x in values]
    spread = max((np.std(known.get((batch.task, name), [0.0])) for name in batch.methods.values()), default=0.0)
    return _seeds(batch, rows), -float(spread / max(np.ptp(of_task), 1e-9) if of_task else 0.0)
