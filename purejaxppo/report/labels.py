"""What runs are called: by what tells them apart."""

from collections import Counter
from collections.abc import Callable, Iterable

from purejaxppo.rundir.contents import RunContents
from purejaxppo.rundir.files import shown


def labels(runs: list[RunContents]) -> list[str]:
    """One name for each run, different for runs on the same environment.

    Where an algorithm ran on an environment with several settings, all its runs are named by what differs; what is
    still the same after that, by its seeds, its directory, or a number.
    """
    keys = {algo: _distinguishing([run for run in runs if run.algo == algo]) for algo in {run.algo for run in runs}}
    names = [_named(run, keys[run.algo]) for run in runs]
    for more in (lambda x: seed_range(x.seeds), lambda x: shown(x.directory.name), lambda x: str(x.directory)):
        names = _told_apart(names, runs, more)
    seen: Counter[tuple[str, str]] = Counter()
    for i, run in enumerate(runs):
        seen[names[i], run.env] += 1
        if seen[names[i], run.env] > 1:
            names[i] += f" ({seen[names[i], run.env]})"
    return names


def _distinguishing(runs: list[RunContents]) -> list[str]:
    """The settings in which runs on the same environment differ."""
    found: dict[str, None] = {}
    for env in {run.env: None for run in runs}:
        found |= dict.fromkeys(differing([run.settings for run in runs if run.env == env]))
    return list(found)


def differing(tables: list[dict[str, str]]) -> list[str]:
    """The keys whose values are not the same in all tables, in the order of their first appearance."""
    keys = dict.fromkeys(key for table in tables for key in table)
    return [key for key in keys if len({table.get(key) for table in tables}) > 1]


def _named(run: RunContents, keys: list[str], at_most: int = 3) -> str:
    own = [f"{key}={shown(run.settings[key], 24)}" for key in keys if key in run.settings]
    return " · ".join([run.algo, *([shown(run.directory.name)] if len(own) > at_most else own)])


def _told_apart(names: list[str], runs: list[RunContents], more: Callable[[RunContents], str]) -> list[str]:
    """Add `more` to the names that several runs on one environment share, if that tells all of these apart."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, run in enumerate(runs):
        groups.setdefault((names[i], run.env), []).append(i)
    result = list(names)
    for group in groups.values():
        added = [shown(more(runs[i])) for i in group]
        if len({*added}) == len(group) > 1:
            for i, text in zip(group, added, strict=True):
                result[i] = f"{names[i]} · {text}"
    return result


def seed_range(seeds: Iterable[int]) -> str:
    """ "seeds 0–7", or the seeds one by one where they are not consecutive."""
    seeds = sorted(seeds)
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"seeds {seeds[0]}–{seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds[:6]))}{', …' if seeds[6:] else ''}"
