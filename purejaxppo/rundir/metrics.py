"""A file of metrics.csv's format: its writer and its reader."""

import csv
import hashlib
import io
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from purejaxppo.errors import UsageError
from purejaxppo.rundir.files import csv_text, malformed, read_text, refusing, shown, to_float, write_text

FIX = "restore it, or move it away to log from here on"
Row = Mapping[str, np.ndarray]  # each metric [seeds]


class MetricsTable(NamedTuple):
    """metrics.csv as arrays; NaN where a cell is empty, not finite or not written yet."""

    seeds: list[int]
    update: np.ndarray  # [rows]
    env_steps: np.ndarray  # [rows] per seed
    columns: dict[str, np.ndarray]  # name -> [seeds, rows]

    def metric(self, name: str) -> np.ndarray:
        """[seeds, rows]; NaN if it was not logged."""
        return self.columns.get(name, np.full((len(self.seeds), len(self.update)), np.nan))

    def tidy(self) -> dict[str, np.ndarray]:
        """Columns of one length with a row per update and seed, as the file has them."""
        named = {"update": self.update, "env_steps": self.env_steps}
        whole = {name: np.repeat(x.astype(np.int64), len(self.seeds)) for name, x in named.items()}
        tidy = {name: x.T.ravel() for name, x in self.columns.items()}
        return {"seed": np.tile(self.seeds, len(self.update))} | whole | tidy


class MetricsFile:
    """metrics.csv: tidy, one row per seed and log interval, flushed as it grows, so that it can be read meanwhile."""

    def __init__(
        self,
        path: Path,
        seeds: list[int],
        done: int = 0,
        intervals: Iterable[int] = (),
        upto: Mapping[str, Any] | None = None,
    ) -> None:
        """`done` updates stand in the file already; rows after them are dropped, to be written again.

        `upto` is what `written` returned then; older versions did not keep it, and rows that are due are looked for.

        Raises:
            UsageError: the file is damaged, or lacks rows; see `read_metrics`.
        """
        self.path, self._seeds, self._columns, self._bytes, self._hash = path, seeds, [], 0, hashlib.sha256()
        if done and path.exists():
            header, rows = kept_rows(path, seeds, done, intervals, upto)
            if rows:
                self._columns, text = header[3:], csv_text([header, *rows])
                self._count(text)
                write_text(path, text)
        elif done:
            warnings.warn(f"{path} is missing: a new one begins after update {done:,}", stacklevel=2)
        self._file = path.open("a" if self._columns else "w", encoding="utf-8", newline="")

    def write(self, update: int, env_steps: int, row: Row) -> None:
        """One row per seed. The first call fixes the columns; NaN becomes an empty cell."""
        if self._columns and self._columns != sorted(row):
            raise UsageError(f"{self._file.name} has other columns than this version logs; move it away to begin anew.")
        lines: list[list[Any]] = []
        if not self._columns:
            self._columns = sorted(row)
            lines.append(["seed", "update", "env_steps", *self._columns])
        for i, seed in enumerate(self._seeds):
            cells = [float(row[name][i]) for name in self._columns]
            lines.append([seed, update, env_steps, *("" if math.isnan(x) else f"{x:.7g}" for x in cells)])
        text = csv_text(lines)
        self._file.write(text)
        self._file.flush()
        self._count(text)

    def written(self) -> dict[str, Any]:
        """Length and SHA-256 of the file so far, all of which is on disk when this returns."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}

    def _count(self, text: str) -> None:
        data = text.encode()
        self._bytes += len(data)
        self._hash.update(data)

    def close(self) -> None:
        self._file.close()


def kept_rows(
    path: Path, seeds: list[int], done: int, intervals: Iterable[int] = (), upto: Mapping[str, Any] | None = None
) -> tuple[list[str], list[list[str]]]:
    """The header, and the rows of up to `done` updates. Raises: UsageError: see `MetricsFile`."""
    text = read_text(path)
    if upto is None:
        return _rows(path, text, seeds, done, intervals)
    data = text.encode()[: upto["bytes"]]
    if upto == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}:
        return _rows(path, data.decode(), seeds, done, ())
    header, rows = _rows(path, text, seeds, done, ())
    if rows:  # else it was begun after the checkpoint, when an older one had been moved away
        raise malformed(path, "its rows are not those that were logged before the checkpoint", FIX)
    return header, rows


def read_metrics(path: Path, seeds: list[int], done: int = 0, intervals: Iterable[int] = ()) -> MetricsTable:
    """Read one file as far as it is written, strictly.

    Args:
        done: updates after which rows do not count, and up to which none may be missing; 0: all rows that there are.
        intervals: updates that are multiples of one of them have rows. The file may begin late, as one does where an
            older one was moved away.

    Raises:
        UsageError: it is damaged.
    """
    header, rows = _rows(path, read_text(path), seeds, done, intervals)
    table = np.full((-(-len(rows) // len(seeds)) * len(seeds), len(header)), np.nan)
    for i, row in enumerate(rows):
        try:
            table[i] = [to_float(cell) for cell in row]
        except ValueError as error:
            raise malformed(path, f"line {i + 2}: {shown(str(error), 100)}") from error
    update, env_steps = table[:: len(seeds), 1:3].reshape(-1, 2).T
    columns = {name: table[:, i].reshape(-1, len(seeds)).T for i, name in enumerate(header[3:], 3)}
    return MetricsTable(seeds, update, env_steps, columns)


def _rows(
    path: Path, text: str, seeds: list[int], done: int, intervals: Iterable[int]
) -> tuple[list[str], list[list[str]]]:
    """The header, and the cells of rows of every seed in turn, of one update after the other; the last may lack seeds.

    What follows the last line's end is still being written.
    """
    before = 0
    with refusing(path):
        header, *rows = [*csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""), strict=True)] or [[]]
        if header and (header[:3] != ["seed", "update", "env_steps"] or len({*header}) < len(header)):
            raise malformed(path, f"its first line is {shown(header)!r}, not seed, update, env_steps and metrics")
        for i, row in enumerate(rows):
            if len(row) != len(header):
                raise malformed(path, f"line {i + 2} has {len(row)} cells and the first {len(header)}", FIX)
            seed, update, _ = map(int, row[:3])
            if seed != seeds[i % len(seeds)] or (update <= before if i % len(seeds) == 0 else update != before):
                raise malformed(path, f"line {i + 2}, of seed {seed} and update {update}, does not follow", FIX)
            before = update
    if done and header:
        rows = [row for row in rows if int(row[1]) <= done]
        logged = {int(row[1]) for row in rows[len(seeds) - 1 :: len(seeds)]}
        first = min(logged, default=1)
        due = {n for interval in intervals if interval for n in range(interval, done + 1, interval) if n >= first}
        if due - logged or len(rows) % len(seeds):
            raise malformed(path, f"rows of update {min(due - logged, default=done):,} are missing", FIX)
    return header, rows
