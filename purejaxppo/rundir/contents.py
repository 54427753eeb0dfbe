"""All of a run directory, for readers who have no need of its networks: as text and numbers."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from purejaxppo.rundir.files import shown
from purejaxppo.rundir.logs import read_log
from purejaxppo.rundir.metrics import MetricsTable
from purejaxppo.rundir.record import read_config
from purejaxppo.rundir.summary import Summary, read_summary

LONGEST_SETTING = 4_000  # characters of a setting: no more than Python writes of an integer


class RunContents(NamedTuple):
    """One run directory."""

    directory: Path
    algo: str
    env: str
    seeds: list[int]
    settings: dict[str, str]  # whole, so that what differs does; to be cut where they are drawn
    surroundings: dict[str, str]  # versions, PRNG, episodes of the final evaluation
    metrics: MetricsTable
    summary: Summary | None  # None: in progress, or being made longer

    @property
    def scores(self) -> np.ndarray:
        """[seeds] The final evaluation; in progress, each seed's last training return; NaN if there is none."""
        if self.summary:
            return np.array(self.summary["eval_return"]["per_seed"])
        rows = self.metrics.metric("episode_return")
        return np.array([known[-1] if (known := row[~np.isnan(row)]).size else np.nan for row in rows])

    @property
    def env_steps(self) -> int:
        """Steps per seed, as far as the log goes."""
        return int(self.metrics.env_steps[-1]) if self.metrics.env_steps.size else 0


def read_contents(directory: Path) -> RunContents:
    """Read a run's files; its environment need not be installed. Raises: UsageError: one is missing, or malformed."""
    content = read_config(directory / "config.json")
    settings, seeds = content["settings"], content["seeds"]
    options = content.get("options") or {}
    mesh = str(options.get("mesh", ""))  # one without env gives the same runs, up to the last digits
    decisive = {"init_from": options.get("init_from"), "mesh": mesh if "env" in mesh else ""}
    settings = {**settings, **{name: x for name, x in decisive.items() if x}}
    episodes = {"final_episodes": options["final_episodes"]} if "final_episodes" in options else {}
    surroundings = content["versions"] | {"PRNG": content["prng_implementation"]} | episodes
    metrics, summary = read_log(directory, seeds), read_summary(directory, seeds)
    if summary and metrics.env_steps.size and 0 < summary["env_steps"] < metrics.env_steps[-1]:
        summary = None  # a run that is being made longer; older versions wrote no steps
    return RunContents(
        directory,
        shown(settings["algo"]),
        shown(settings["env"], LONGEST_SETTING),
        seeds,
        {shown(name): shown(value, LONGEST_SETTING) for name, value in settings.items()},
        {shown(name): shown(value) for name, value in surroundings.items()},
        metrics,
        summary,
    )
