"""At which updates a row of the log, an evaluation or a checkpoint is due, and where a chunk of updates ends."""

from typing import NamedTuple

from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.parallel.hosts import group
from purejaxppo.rundir.files import LARGEST_FILE

CHUNK_SECONDS = 2.0  # between two looks of the host, for which devices wait for each other: 1.0 costs 4%
CHECKPOINT_SECONDS = 30.0
ROW_BYTES = 300  # of metrics.csv, some more than were measured


def most_rows() -> int:
    """Of a log that can be read again, of all seeds."""
    return group().count * LARGEST_FILE[".csv"] // ROW_BYTES


def least_rows_every(config: Config, num_seeds: int) -> int:
    """Updates per row, so that there are not more rows than that, with those that end at evaluations.

    Raises:
        UsageError: the evaluations alone make more.
    """
    updates = config.num_updates
    evaluations = updates // config.eval_interval if config.eval_interval else 0
    left = most_rows() // num_seeds - evaluations
    if evaluations and left < 1:
        raise UsageError(
            f"eval_interval = {config.eval_interval} makes more rows of metrics.csv, for {num_seeds:,} seeds, than the "
            f"{most_rows():,} that can be read again; raise it."
        )
    return min(-(-updates // max(left, 1)), updates)


class Timetable(NamedTuple):
    """Of one batch of runs; all intervals are in updates."""

    updates: int  # that there are
    rows_every: int
    evaluations_every: int  # 0: never while it trains
    checkpoints_every: int | None  # None: by the clock

    @property
    def intervals(self) -> tuple[int, int]:
        """Those at which rows of the log end."""
        return self.rows_every, self.evaluations_every

    def row_ends(self, done: int) -> bool:
        """Whether a row of the log ends with update `done`."""
        return done == self.updates or self.evaluates(done) or done % self.rows_every == 0

    def evaluates(self, done: int) -> bool:
        """Whether the runs are evaluated after update `done`."""
        every = self.evaluations_every
        return bool(every) and (done == self.updates or done % every == 0)

    def saves(self, done: int, seconds: float) -> bool:
        """Whether a checkpoint is due after update `done`, so many seconds after the last one."""
        if done == self.updates:
            return True
        return done % self.checkpoints_every == 0 if self.checkpoints_every else seconds >= CHECKPOINT_SECONDS

    def next_stop(self, done: int) -> int:
        """The first update after `done` at which an evaluation or a checkpoint may be due."""
        intervals = [every for every in (self.evaluations_every, self.checkpoints_every) if every]
        return min([(done // every + 1) * every for every in intervals] + [self.updates])


def chunk_updates(updates: int, seconds: float, most: int) -> int:
    """How many updates to make before the host looks again, if so many took so many seconds."""
    return int(max(1, min(most, CHUNK_SECONDS * updates / max(seconds, 1e-9))))
