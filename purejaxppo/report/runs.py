"""Run directories, read strictly: nothing of a file is used before its type is known."""

import csv
import io
import json
import math
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from purejaxppo.errors import UsageError, reason

LARGEST_JSON = 10_000_000  # bytes
LARGEST_CSV = 500_000_000  # bytes
LARGEST_NUMBER = 1e100  # no float32 comes near it; what is beyond counts as missing, so that sums stay finite


class Log(NamedTuple):
    """metrics.csv as arrays; NaN where a cell is empty, not finite or not written yet."""

    env_steps: np.ndarray  # [rows] per seed
    columns: dict[str, np.ndarray]  # name -> [seeds, rows]


class Sick(NamedTuple):
    """A seed whose numbers turned non-finite."""

    seed: str
    update: str
    cause: str


class Outcome(NamedTuple):
    """summary.json: what is known once a run has ended."""

    scores: np.ndarray  # [seeds] final evaluation
    steps_per_second: float
    compile_seconds: float
    run_seconds: float
    device: str
    sick: list[Sick]


class Run(NamedTuple):
    """One run directory."""

    directory: Path
    algo: str
    env: str
    seeds: list[int]
    settings: dict[str, str]  # as shown
    surroundings: dict[str, str]  # versions, PRNG
    log: Log
    outcome: Outcome | None  # None: in progress

    @property
    def scores(self) -> np.ndarray:
        """[seeds] The final evaluation; in progress, each seed's last training return."""
        return self.outcome.scores if self.outcome else last_values(self.log.columns.get("episode_return"), self.seeds)

    @property
    def env_steps(self) -> int:
        """Steps per seed, as far as the log goes."""
        return int(self.log.env_steps[-1]) if self.log.env_steps.size else 0


def last_values(values: np.ndarray | None, seeds: list[int]) -> np.ndarray:
    """[seeds, rows] → [seeds]: the last entry of each row that is not NaN; NaN if there is none."""
    found = np.full(len(seeds), np.nan)
    for i, row in enumerate(() if values is None else values):
        known = row[~np.isnan(row)]
        found[i] = known[-1] if known.size else np.nan
    return found


def shown(value: Any, limit: int = 60) -> str:
    """A JSON value as one line of printable text, cut after `limit` characters."""
    if isinstance(value, list):
        text = ", ".join(shown(item, limit) for item in value[:limit])
    elif isinstance(value, dict):
        text = json.dumps(value)
    elif isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, bool | None):
        text = json.dumps(value)
    else:
        text = str(value) if not isinstance(value, int) or abs(value) < 10**limit else "a huge integer"
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"


def number(value: Any) -> float:
    """A number of a file; NaN if it is not finite, or no number at all."""
    try:
        result = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return result if abs(result) < LARGEST_NUMBER else math.nan


def read_run(directory: Path) -> Run:
    """Read config.json, metrics.csv and, if the run has ended, summary.json.

    Raises:
        UsageError: a file is missing, malformed or too large.
    """
    if not directory.is_dir():
        raise UsageError(f"{str(directory)!r} is not a directory; give run directories, as left by --out.")
    for name in ("config.json", "metrics.csv"):
        if not (directory / name).is_file():
            raise UsageError(
                f"{str(directory)!r} holds no {name}, which a run leaves there; give run directories, as left by --out."
            )
    path = directory / "config.json"
    config = _json(path)
    settings = _member(config, path, "settings", dict)
    seeds = _member(config, path, "seeds", list)
    if not seeds or not all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds) or len({*seeds}) != len(seeds):
        raise _malformed(path, f"seeds = {shown(seeds)!r} is not a list of different integers of at least 0")
    versions = config.get("versions")
    surroundings = dict(versions) if isinstance(versions, dict) else {}
    surroundings["PRNG"] = config.get("prng_implementation", "–")
    log = read_log(directory / "metrics.csv", seeds)
    return Run(
        directory,
        shown(_member(settings, path, "algo", str)),
        shown(_member(settings, path, "env", str)),
        seeds,
        {shown(name): shown(value) for name, value in settings.items()},
        {shown(name): shown(value) for name, value in surroundings.items()},
        log,
        read_outcome(directory / "summary.json", seeds) if (directory / "summary.json").exists() else None,
    )


def read_outcome(path: Path, seeds: list[int]) -> Outcome:
    """Read summary.json; what older versions did not write is NaN, "–" or nothing."""
    summary = _json(path)
    scores = _member(_member(summary, path, "eval_return", dict), path, "per_seed", list)
    if len(scores) != len(seeds):
        raise _malformed(path, f"per_seed holds {len(scores)} returns and config.json {len(seeds)} seeds")
    sick = summary.get("sick_seeds")
    if not isinstance(sick, list | None) or not all(isinstance(entry, dict) for entry in sick or []):
        raise _malformed(path, "sick_seeds is not a list of objects")
    return Outcome(
        np.array([number(score) for score in scores]),
        number(summary.get("steps_per_second")),
        number(summary.get("compile_seconds")),
        number(summary.get("run_seconds")),
        shown(summary.get("device", "–")),
        [Sick(*(shown(entry.get(name, "–"), 200) for name in Sick._fields)) for entry in sick or []],
    )


def read_log(path: Path, seeds: list[int]) -> Log:
    """Read metrics.csv as far as it is written: a last line without its end is left out, and so are empty files."""
    header, rows = _table(path)
    if not header:
        return Log(np.zeros(0), {})
    if header[:3] != ["seed", "update", "env_steps"] or len({*header}) != len(header):
        raise _malformed(path, f"its first line is {shown(header)!r}, not seed, update, env_steps and metrics")
    table = np.array(rows, np.float64).reshape(-1, len(header))
    if not np.isin(table[:, 0], seeds).all():
        unknown = table[~np.isin(table[:, 0], seeds), 0][0]
        raise _malformed(path, f"seed {unknown:g} is not among the seeds of config.json")
    if not (table[:, 1:3] >= 0).all():
        raise _malformed(path, "an update or env_steps is not a number of at least 0")
    order = np.argsort(seeds)
    i = order[np.searchsorted(np.asarray(seeds)[order], table[:, 0])]
    updates, first, j = np.unique(table[:, 1], return_index=True, return_inverse=True)
    columns = {name: np.full((len(seeds), updates.size), np.nan) for name in header[3:]}
    for name, column in zip(header[3:], table[:, 3:].T, strict=True):
        columns[name][i, j] = column
    return Log(table[first, 2], columns)


def _table(path: Path) -> tuple[list[str], list[list[float]]]:
    """The header and the rows of a CSV file, as numbers."""
    text = _text(path, LARGEST_CSV)
    complete = text[: text.rfind("\n") + 1]  # what follows the last line's end is still being written
    reader = csv.reader(io.StringIO(complete, newline=""), strict=True)
    try:
        header = [shown(name) for name in next(reader, [])]
        rows = []
        for row in reader:
            if len(row) != len(header):
                raise _malformed(path, f"line {reader.line_num} has {len(row)} cells and the first {len(header)}")
            rows.append([_cell(cell, path, reader.line_num) for cell in row])
    except csv.Error as error:
        raise _malformed(path, f"line {reader.line_num}: {error}") from error
    return header, rows


def _cell(cell: str, path: Path, line: int) -> float:
    try:
        value = float(cell) if cell else math.nan
    except ValueError as error:
        raise _malformed(path, f"line {line} holds {shown(cell)!r}, which is not a number") from error
    return value if abs(value) < LARGEST_NUMBER else math.nan


def _json(path: Path) -> dict[str, Any]:
    text = _text(path, LARGEST_JSON)
    if not text.strip():
        raise _malformed(path, "the file is empty, as if the run had only just begun")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _malformed(path, reason(error)) from error
    if not isinstance(content, dict):
        raise _malformed(path, "it is not an object")
    return content


def _text(path: Path, limit: int) -> str:
    try:
        about = path.lstat()
        size = about.st_size
        if not stat.S_ISREG(about.st_mode):
            raise UsageError(f"{str(path)!r} is a link or no file, which none of ours is; report on another run.")
        if size > limit:
            raise UsageError(f"{str(path)!r} has {size:,} bytes and at most {limit:,} are read; report on another run.")
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise _malformed(path, "it is not UTF-8 text") from error
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read ({error.strerror}); check the file's permissions.") from error


def _member(content: dict[str, Any], path: Path, name: str, kind: type) -> Any:
    if not isinstance(content.get(name), kind):
        raise _malformed(path, f"{name!r} is missing or no {_JSON_NAMES[kind]}")
    return content[name]


_JSON_NAMES: dict[type, str] = {dict: "object", list: "list", str: "string"}


def _malformed(path: Path, problem: str) -> UsageError:
    return UsageError(f"{str(path)!r} is not what a run leaves: {problem}; restore the file or leave out that run.")


def labels(runs: list[Run]) -> list[str]:
    """One name for each run, different for runs on the same environment.

    Where an algorithm ran on an environment with several settings, all its runs are named by what differs; what is
    still the same after that, by its seeds, its directory, or a number.
    """
    keys = {algo: _distinguishing([run for run in runs if run.algo == algo]) for algo in {run.algo for run in runs}}
    names = [_named(run, keys[run.algo]) for run in runs]
    for more in (
        lambda run: seed_range(run.seeds),
        lambda run: shown(run.directory.name),
        lambda run: str(run.directory),
    ):
        names = _told_apart(names, runs, more)
    seen: Counter[tuple[str, str]] = Counter()
    for i, run in enumerate(runs):
        seen[names[i], run.env] += 1
        if seen[names[i], run.env] > 1:
            names[i] += f" ({seen[names[i], run.env]})"
    return names


def _distinguishing(runs: list[Run]) -> list[str]:
    """The settings in which runs on the same environment differ."""
    found: dict[str, None] = {}
    for env in {run.env: None for run in runs}:
        found |= dict.fromkeys(differing([run.settings for run in runs if run.env == env]))
    return list(found)


def differing(tables: list[dict[str, str]]) -> list[str]:
    """The keys whose values are not the same in all tables, in the order of their first appearance."""
    keys = dict.fromkeys(key for table in tables for key in table)
    return [key for key in keys if len({table.get(key) for table in tables}) > 1]


def _named(run: Run, keys: list[str], at_most: int = 3) -> str:
    own = [f"{key}={shown(run.settings[key], 24)}" for key in keys if key in run.settings]
    return " · ".join([run.algo, *([shown(run.directory.name)] if len(own) > at_most else own)])


def _told_apart(names: list[str], runs: list[Run], more: Callable[[Run], str]) -> list[str]:
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
