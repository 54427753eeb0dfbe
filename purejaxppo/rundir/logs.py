"""The log of a run, whichever files it has: metrics.csv, or one file of each of several processes, read as one.

Such a file has the rows of its process's seeds, and their places among all in its name: metrics.0-256.csv has those of
the first 256. Where the layout changes, the new files are written before the old ones go; metrics.csv counts first.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from purejaxppo.rundir.files import LOG_PARTS, csv_text, malformed, write_text
from purejaxppo.rundir.metrics import FIX, MetricsFile, MetricsTable, kept_rows, read_metrics

WHOLE = "metrics.csv"


def log_name(own: slice, count: int) -> str:
    """The file of the seeds `own` of so many."""
    return WHOLE if own.stop - own.start == count else f"metrics.{own.start}-{own.stop}.csv"


def has_log(directory: Path) -> bool:
    return (directory / WHOLE).is_file() or bool(_parts(directory))


def read_log(directory: Path, seeds: list[int]) -> MetricsTable:
    """The rows that all files have. Raises: UsageError: one is damaged, or missing; see `read_metrics`."""
    found = _cover(_on_disk(directory, len(seeds)), len(seeds)) or {directory / WHOLE: slice(0, len(seeds))}
    return joined([read_metrics(path, seeds[own]) for path, own in found.items()])


def joined(tables: Sequence[MetricsTable]) -> MetricsTable:
    """Those of some seeds each as one of all: the updates that all have, as each process writes in its own time."""
    first, *others = tables
    common = set(first.update.tolist()).intersection(*(table.update.tolist() for table in others))
    rows = [np.isin(table.update, [*common]) for table in tables]
    seeds = [seed for table in tables for seed in table.seeds]
    columns = {
        name: np.concatenate([table.metric(name)[:, of] for table, of in zip(tables, rows, strict=True)])
        for name in first.columns
    }
    return MetricsTable(seeds, first.update[rows[0]], first.env_steps[rows[0]], columns)


def open_log(
    directory: Path, seeds: list[int], own: slice, done: int, intervals: Iterable[int], upto: Mapping[str, Any] | None
) -> MetricsFile:
    """The file of the seeds `own`, to be written on; with the rows of other files where the layout has changed.

    Args:
        seeds: of all processes.
        own: which of them this process has.
        done, intervals: see `MetricsFile`.
        upto: what `together` made of all files, `done` updates ago; older versions did not keep it.

    Raises:
        UsageError: a file is damaged, missing, or lacks rows.
    """
    path, due = directory / log_name(own, len(seeds)), tuple(intervals)
    known = {WHOLE: upto} if upto is not None and "bytes" in upto else upto
    there = _on_disk(directory, len(seeds))
    found = {x: of for x, of in there.items() if known is None or x.name in known}
    if not _cover(found, len(seeds)):  # the layout has changed once already since the checkpoint
        found, known = there, None
    if not done or not found or path in found:
        return MetricsFile(path, seeds[own], done, due, known[path.name] if known and path in found else None)
    if not (parts := _cover(found, len(seeds))):
        raise malformed(directory, "the log of some of its seeds is missing", FIX)
    blocks: dict[int, dict[int, list[str]]] = {}  # update ↦ seed ↦ cells
    header: list[str] = []
    for old, of in parts.items():
        if of.start < own.stop and own.start < of.stop:
            header, rows = kept_rows(old, seeds[of], done, due, known[old.name] if known else None)
            for row in rows:
                blocks.setdefault(int(row[1]), {})[int(row[0])] = row
    write_text(path, csv_text([header, *(block[seed] for block in blocks.values() for seed in seeds[own])]))
    return MetricsFile(path, seeds[own], done, due)


def together(written: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What a checkpoint keeps of a log's files, {name: `MetricsFile.written()`}; of metrics.csv alone, what it has."""
    files = {name: so_far for part in written for name, so_far in part.items()}
    return files[WHOLE] if files.keys() == {WHOLE} else files


def discard_others(directory: Path, names: Collection[str]) -> None:
    """Delete the files of a layout that is no more. One that was moved away, as metrics.old.csv, is the user's."""
    for path in (directory / WHOLE, *_parts(directory)):
        if path.name not in names:
            path.unlink(missing_ok=True)


def _on_disk(directory: Path, count: int) -> dict[Path, slice]:
    """Each file that is there, and which of so many seeds it has."""
    whole = {directory / WHOLE: slice(0, count)} if (directory / WHOLE).exists() else {}
    return whole | {path: own for path, own in _parts(directory).items() if own.start < own.stop <= count}


def _parts(directory: Path) -> dict[Path, slice]:
    """The files of several processes, and whose seeds their names say that they have."""
    names = {path: re.fullmatch(r"metrics\.(\d{1,7})-(\d{1,7})\.csv", path.name) for path in directory.glob(LOG_PARTS)}
    return {path: slice(int(match[1]), int(match[2])) for path, match in names.items() if match}


def _cover(found: Mapping[Path, slice], count: int) -> dict[Path, slice]:
    """Files that together have each of so many seeds once, in their order; {} if there are none."""
    ways: dict[int, dict[Path, slice]] = {0: {}}  # so many seeds ↦ files of the first so many
    for path, own in sorted(found.items(), key=lambda x: (x[1].start, x[0].name != WHOLE)):
        if own.start in ways:
            ways.setdefault(own.stop, ways[own.start] | {path: own})
    return ways.get(count, {})
