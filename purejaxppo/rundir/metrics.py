"""metrics.csv: its writer and its reader."""

import csv
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from purejaxppo.errors import UsageError

Row = Mapping[str, np.ndarray]  # each metric [seeds]


class MetricsFile:
    """metrics.csv: tidy, one row per seed and log interval, flushed as it grows, so that it can be read meanwhile."""

    def __init__(self, path: Path, seeds: list[int], done: int = 0) -> None:
        """`done` updates stand in the file already; rows after them are dropped, to be written again."""
        self._columns = _drop_rows_after(path, done, seeds) if done and path.exists() else []
        self._file = path.open("a" if self._columns else "w", newline="")
        self._seeds = seeds

    def write(self, update: int, env_steps: int, row: Row) -> None:
        """One row per seed. The first call fixes the columns; NaN becomes an empty cell."""
        text = io.StringIO()
        writer = csv.writer(text)
        if self._columns and self._columns != sorted(row):
            raise UsageError(f"{self._file.name} has other columns than this version logs; move it away to begin anew.")
        if not self._columns:
            self._columns = sorted(row)
            writer.writerow(["seed", "update", "env_steps", *self._columns])
        for i, seed in enumerate(self._seeds):
            cells = [float(row[name][i]) for name in self._columns]
            writer.writerow([seed, update, env_steps, *("" if math.isnan(x) else f"{x:.7g}" for x in cells)])
        self._file.write(text.getvalue())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _drop_rows_after(path: Path, done: int, seeds: list[int]) -> list[str]:
    """Keep the header and the rows of updates up to `done`, and return the metrics' names; none if there is no row."""
    try:
        with path.open(newline="") as file:
            header, *rows = [*csv.reader(file)] or [[]]  # empty before the first row of the log
        kept = [row for row in rows if len(row) == len(header) and int(row[1]) <= done]
        whole = len(kept) % len(seeds) == 0 and [int(row[0]) for row in kept] == seeds * (len(kept) // len(seeds))
        if kept and (not whole or header[:3] != ["seed", "update", "env_steps"] or "episode_return" not in header):
            raise ValueError("columns or seeds are missing")
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path} is damaged ({error}); restore it, or move it away to log from here on.") from error
    if not kept:
        return []
    draft = path.with_name(".metrics.csv.saving")
    with draft.open("w", newline="") as file:
        csv.writer(file).writerows([header, *kept])
    os.replace(draft, path)
    return header[3:]


def read_metrics(path: Path, name: str, num_seeds: int) -> tuple[list[int], list[np.ndarray]]:
    """Environment steps, and one metric [seeds] at each, of a metrics.csv."""
    steps: list[int] = []
    values: list[float] = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            steps.append(int(row["env_steps"]))
            values.append(float(row[name] or "nan"))
    return steps[::num_seeds], list(np.asarray(values).reshape(-1, num_seeds))


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """All of a metrics.csv as tidy columns; NaN where a cell is empty."""
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    table = np.asarray([[float(cell or "nan") for cell in row] for row in rows], np.float64).reshape(-1, len(header))
    whole = ("seed", "update", "env_steps")
    return {name: x.astype(np.int64) if name in whole else x for name, x in zip(header, table.T, strict=True)}
