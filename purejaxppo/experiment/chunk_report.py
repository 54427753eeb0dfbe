"""What a callback is told between two chunks of updates."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from purejaxppo.rundir.metrics import MetricsTable
from purejaxppo.rundir.summary import FailedSeed


class ChunkReport(NamedTuple):
    """What `on_chunk` is given after each chunk of updates, every few seconds. All arrays are copies."""

    update: int  # updates made so far
    num_updates: int  # planned
    env_steps: int  # made so far, per seed
    rows: dict[str, np.ndarray]  # new rows of metrics.csv as tidy columns, {} if there is none
    returns: np.ndarray  # [seeds] the last known of each, NaN before the first episode has ended
    failed_seeds: list[FailedSeed]


def tidy_rows(
    rows: Sequence[tuple[int, Mapping[str, np.ndarray]]], seeds: Sequence[int], steps_per_update: int
) -> dict[str, np.ndarray]:
    """Rows of the log, (update, metrics [seeds]), as columns with one entry per row and seed."""
    if not rows:
        return {}
    update = np.array([update for update, _ in rows])
    columns = {name: np.stack([row[name] for _, row in rows], axis=1) for name in rows[0][1]}
    return MetricsTable(list(seeds), update, update * steps_per_update, columns).tidy()
