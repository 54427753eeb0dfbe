"""The logs of a batch's run directories; of several processes, what each writes and what process 0 gathers."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from itertools import chain
from typing import Any

import numpy as np

from purejaxppo.experiment.logging import TensorBoard, WeightsAndBiases, sinks_of
from purejaxppo.experiment.run_batch import RunBatch
from purejaxppo.parallel.hosts import group
from purejaxppo.presets import settings_of
from purejaxppo.rundir.logs import discard_others, joined, open_log, together
from purejaxppo.rundir.metrics import MetricsFile, MetricsTable, Row, read_metrics

SHOWN = ("episode_return", "eval_return")  # by the progress line, of all members


class BatchLog:
    """A log for each run directory: a file of this process's own members, and where process 0 shows all of them."""

    def __init__(
        self, runs: RunBatch, done: int, known: Sequence[Any] | None, stack: ExitStack, shows_rows: bool
    ) -> None:
        """Go on after `done` updates, until `stack` is left.

        Args:
            known: what a checkpoint kept of the files of each directory, see `written`.
            shows_rows: somebody looks at all rows of all members in this process.

        Raises:
            UsageError: a file is damaged or missing.
        """
        self._runs, options = runs, runs.options
        self._files, self._sinks = list[MetricsFile](), list[list[TensorBoard | WeightsAndBiases]]()
        due, begin = runs.timetable.intervals, done * runs.config.steps_per_update + 1
        for i, x in enumerate(runs.records if runs.own_count else ()):
            file = open_log(x.directory, x.seeds, runs.own_of(i), done, due, known[i] if known else None)
            self._files.append(stack.enter_context(closing(file)))
            sinks = sinks_of(x.directory, x.seeds, options, settings_of(x.config), begin) if group().leads else ()
            self._sinks.append([stack.enter_context(closing(sink)) for sink in sinks])
        mine = [file.path.name for file in self._files], bool(options.tensorboard or options.wandb or shows_rows)
        names, shown = zip(*group().all_of(mine), strict=True)
        self._gathers = group().count == 1 or any(shown)

        def discard() -> None:  # once all have opened their files
            for record in runs.records:
                discard_others(record.directory, {*chain(*names)})

        group().by_leader(discard)

    def write(self, update: int, own: Row) -> dict[str, np.ndarray]:
        """A row of this process's members; returns that of all as far as it is gathered, `SHOWN` at least."""
        runs, steps = self._runs, update * self._runs.config.steps_per_update
        row = runs.of_all({name: x for name, x in own.items() if self._gathers or name in SHOWN})
        for i, file in enumerate(self._files):
            its = runs.members_of(i)
            here = runs.own_among(its, runs.own.start)
            file.write(update, steps, {name: x[here] for name, x in own.items()})
            for sink in self._sinks[i]:
                sink.write(update, steps, {name: x[its] for name, x in row.items()})
        return row

    def written(self, which: slice) -> list[Any]:
        """What the files of some directories are so far, and on disk; in others than process 0 nothing."""
        parts = group().gathered([{file.path.name: file.written()} for file in self._files[which]]) or []
        return [together(files) for files in zip(*filter(None, parts), strict=True)]

    def of_returns(self, i: int, done: int) -> MetricsTable:
        """The training returns of all seeds of the i-th directory; in others than process 0 nothing is in it."""
        seeds, mine = self._runs.records[i].seeds[self._runs.own_of(i)], None
        if seeds:
            own = read_metrics(self._files[i].path, seeds, done, self._runs.timetable.intervals)
            mine = [own.update, own.env_steps, own.metric("episode_return")]
        tables = [
            MetricsTable([], update, env_steps, {"episode_return": returns})
            for update, env_steps, returns in filter(None, group().gathered(mine) or [])
        ]
        return joined(tables or [MetricsTable([], np.zeros(0), np.zeros(0), {})])
