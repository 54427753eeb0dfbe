"""metrics.csv: its writer and its reader."""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from purejaxppo.errors import UsageError
from purejaxppo.rundir.files import malformed, read_text, refusing, replacing, shown, to_float

Row = Mapping[str, np.ndarray]  # each metric [seeds]


class MetricsTable(NamedTuple):
    """metrics.csv as arrays; NaN where a cell is empty, not finite or not written yet."""

    update: np.ndarray  # [rows]
    env_steps: np.ndarray  # [rows] per seed
    columns: dict[str, np.ndarray]  # name -> [seeds, rows]

    def tidy(self, seeds: list[int]) -> dict[str, np.ndarray]:
        """Columns of one length with a row per update and seed, as the file has them."""
        named = {"update": self.update, "env_steps": self.env_steps}
        whole = {name: np.repeat(x.astype(np.int64), len(seeds)) for name, x in named.items()}
        tidy = {name: x.T.ravel() for name, x in self.columns.items()}
        return {"seed": np.tile(seeds, self.update.size)} | whole | tidy


class MetricsFile:
    """metrics.csv: tidy, one row per seed and log interval, flushed as it grows, so that it can be read meanwhile."""

    def __init__(self, path: Path, seeds: list[int], done: int = 0, intervals: Iterable[int] = ()) -> None:
        """`done` updates stand in the file already; rows after them are dropped, to be written again.

        Raises:
            UsageError: the file is damaged, or lacks rows of updates that are multiples of one of `intervals`. It may
                begin late, as where an older file was moved away.
        """
        self._columns = _drop_rows_after(path, seeds, done, intervals) if done and path.exists() else []
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


def read_metrics(path: Path, seeds: list[int]) -> MetricsTable:
    """Read metrics.csv as far as it is written, strictly. Raises: UsageError: it is damaged, see `_rows`."""
    header, rows = _rows(path, seeds)
    table = np.full((-(-len(rows) // len(seeds)) * len(seeds), len(header)), np.nan)
    for i, row in enumerate(rows):
        try:
            table[i] = [to_float(cell) for cell in row]
        except ValueError as error:
            raise malformed(path, f"line {i + 2}: {shown(str(error), 100)}") from error
    columns = {name: table[:, i].reshape(-1, len(seeds)).T for i, name in enumerate(header[3:], 3)}
    update, env_steps = table[:: len(seeds), 1:3].reshape(-1, 2).T
    return MetricsTable(update, env_steps, columns)


def _rows(path: Path, seeds: list[int]) -> tuple[list[str], list[list[str]]]:
    """The header, and the cells of all rows. What follows the last line's end is still being written.

    Raises:
        UsageError: they are not of every seed in turn, of one update after the other; the last may lack seeds.
    """
    text = read_text(path)
    fix, before = "restore it, or move it away to log from here on", 0
    with refusing(path):
        header, *rows = [*csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""), strict=True)] or [[]]
        if header and (header[:3] != ["seed", "update", "env_steps"] or len({*header}) < len(header)):
            raise malformed(path, f"its first line is {shown(header)!r}, not seed, update, env_steps and metrics")
        for i, row in enumerate(rows):
            if len(row) != len(header):
                raise malformed(path, f"line {i + 2} has {len(row)} cells and the first {len(header)}", fix)
            seed, update, _ = map(int, row[:3])
            if seed != seeds[i % len(seeds)] or (update <= before if i % len(seeds) == 0 else update != before):
                raise malformed(path, f"line {i + 2}, of seed {seed} and update {update}, does not follow", fix)
            before = update
    return header, rows


def _drop_rows_after(path: Path, seeds: list[int], done: int, intervals: Iterable[int]) -> list[str]:
    """Keep the header and the rows of updates up to `done`, and return the metrics' names; none if there is no row."""
    header, rows = _rows(path, seeds)
    kept = [row for row in rows if int(row[1]) <= done]
    logged = {int(row[1]) for row in kept[len(seeds) - 1 :: len(seeds)]}
    first = min(logged, default=1)
    missing = [n for interval in intervals for n in range(interval, done + 1, interval) if {n} - logged and n >= first]
    if header and (missing or len(kept) % len(seeds)):
        which = f"the rows of update {min(missing)}" if missing else f"rows of update {kept[-1][1]}"
        raise malformed(path, f"{which} are missing", "restore it, or move it away to log from here on")
    if not kept:
        return []
    with replacing(path) as draft, draft.open("w", newline="") as file:
        csv.writer(file).writerows([header, *kept])
    return header[3:]
