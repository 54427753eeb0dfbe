"""A sweep by workers: processes of any machines, which share its directory and know nothing else of each other."""

import dataclasses
import random
import shutil
import time
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax

from purejaxppo.errors import FailedSettingsError, UsageError, plural
from purejaxppo.experiment.progress import ProgressLine
from purejaxppo.experiment.signals import Stopped
from purejaxppo.parallel.devices import most_open_files
from purejaxppo.rundir.files import SWEEP, UNFINISHED, malformed, read_json, refusing, shown, write_json
from purejaxppo.rundir.lock import CLAIM, lock_free, new_directory, owner_of
from purejaxppo.rundir.record import resume_command
from purejaxppo.rundir.summary import Summary
from purejaxppo.sweeps.definition import Sweep, file_names
from purejaxppo.sweeps.execution import Step, compile_group, summaries_of, train_batch
from purejaxppo.sweeps.plan import batch_size, batches
from purejaxppo.sweeps.results import write_results

BATCHES = 32  # that a sweep is divided into, where nobody says how: each of 8 workers has several
POLL_SECONDS = 2.0
FAILED = "failed.json"


class Batch(NamedTuple):
    """What one worker trains at a time."""

    group: int
    members: list[int]
    directory: Path


def divided(sweep: Sweep) -> Sweep:
    """With batches for workers, if it has none; the same for each who asks."""
    return dataclasses.replace(sweep, at_once=sweep.at_once or -(-len(sweep.settings) // BATCHES))


def write_plan(sweep: Sweep) -> bool:
    """Make a sweep's directory. False: another worker has been faster, whose plan counts.

    Raises:
        UsageError: something else is there, or it cannot be written.
    """
    out = sweep.record.directory
    while SWEEP not in file_names(out):
        try:
            with new_directory(out):
                sweep.write()
            return True
        except UsageError:
            there = file_names(out)
            if not {CLAIM, SWEEP} & there or "config.json" in there:
                raise
            time.sleep(POLL_SECONDS / 4)  # until the one who holds it has written the plan, or is dead
    return False


class Worker:
    """Trains batches that nobody else trains, until all of the sweep are finished or have failed."""

    def __init__(self, sweep: Sweep, devices: list[jax.Device], progress: ProgressLine, debug: bool = False) -> None:
        self.sweep, self.devices, self.progress, self.debug = sweep, devices, progress, debug
        self._steps: dict[int, Step] = {}  # of each group that was compiled here
        self._seen: dict[Path, tuple[dict[str, object], float]] = {}  # see `lock_free`

    @cached_property
    def batches(self) -> list[Batch]:
        """Of all groups."""
        lots = [(i, lot) for i, group in enumerate(self.sweep.groups) for lot in batches(group.members, self._size(i))]
        return [Batch(i, lot, self.sweep.batch_directory(lot)) for i, lot in lots]

    def work(self) -> tuple[list[Summary], dict[int, Exception]]:
        """Take part until the end; what came of the whole sweep, see `run_sweep`. Its tables are written by then.

        Raises:
            UsageError: what is left cannot be trained on this machine, or all have failed; or with `debug` one has.
            OSError, Stopped: as `run_experiment`; the batch under way is anybody's then.
        """
        if all(map(self._settled, self.batches)):  # who joins then wants what has failed to be tried again
            for batch in self.batches:
                (batch.directory / FAILED).unlink(missing_ok=True)
        left, waits = self.batches, False
        while left := [batch for batch in left if not self._settled(batch)]:
            able = sorted(left, key=lambda batch: (batch.group not in self._steps, random.random()))
            trained = any(self._step(batch).failed is None and self._train(batch) for batch in able)
            if not trained and all(self._steps[batch.group].failed for batch in left):
                raise next(step.failed for step in self._steps.values() if step.failed)
            if not trained:
                if not waits:
                    whom = ", ".join(sorted(self._owners(able)))
                    what = f"waiting for {plural(len(left), 'batch')} of others"
                    self.progress.say(f"nothing is left to take: {what} ({whom:.300})")
                waits = True
                time.sleep(POLL_SECONDS)
        failed = {i: why for batch in self.batches for i, why in self._failed(batch).items()}
        summaries = summaries_of(self.sweep, failed)
        self._write_tables(summaries, bool(failed))
        if len(failed) == len(summaries):
            raise failed[0]
        return summaries, failed

    def _size(self, group: int) -> int:
        members = len(self.sweep.groups[group].members)
        return batch_size(members, self.sweep.at_once or members)

    def _step(self, batch: Batch) -> Step:
        """The group's program, which is compiled when it is first needed, before anything of it is claimed."""
        if batch.group not in self._steps:
            group, size = self.sweep.groups[batch.group], self._size(batch.group)
            self.progress.say(f"group {batch.group + 1} of {len(self.sweep.groups)}: {group.name}")
            most_open_files()  # raises the limit; how many settings are trained at once, the sweep has said
            try:
                program = compile_group(self.sweep, group, self.devices, self.progress, size)
                program.check_fit(self.devices, f"{plural(size, 'setting')} at once", "--at-once in a new sweep")
                self._steps[batch.group] = Step(group, program, size)
            except UsageError as error:
                self.progress.warn(f"{group.name} cannot be trained here: {error}")
                self._steps[batch.group] = Step(group, None, size, error)
        return self._steps[batch.group]

    def _train(self, batch: Batch) -> bool:
        """Train a batch, if it is free. False: it is not, or another worker has settled it meanwhile."""
        batch.directory.mkdir(parents=True, exist_ok=True)
        with lock_free(batch.directory, self._seen) as mine:
            if not mine or self._settled(batch) or any(map(self._resumed, batch.members)):
                return False
            step, number = self._step(batch), self.batches.index(batch) + 1
            what = f"{step.group.name}, {plural(len(batch.members), 'setting')}"
            self.progress.say(f"batch {number} of {len(self.batches)}: {what}")
            try:
                failed = train_batch(
                    self.sweep, step, batch.members, self.devices, self.progress, self.debug, batch.directory
                )
            except Stopped as stop:
                record = self.sweep.record
                again = resume_command("sweep", record.directory, record.config.env, "--join")
                way_on = f"other workers, or {again}, go on with it"
                raise Stopped(stop.code - 128, f"batch {number} is given back: {way_on}") from stop
            if failed:
                write_json(batch.directory / FAILED, {str(i): str(why) for i, why in failed.items()})
        return True

    def _owners(self, batches: Iterable[Batch]) -> set[str]:
        """Who holds them, or runs of them."""
        runs = (self.sweep.directories[i] for batch in batches for i in batch.members)
        places = (*(batch.directory for batch in batches), *runs)
        return {owner_of(place) for place in places if CLAIM in file_names(place)}

    def _resumed(self, i: int) -> bool:
        """Whether somebody goes on with a setting as with a run of its own."""
        directory = self.sweep.directories[i]
        if CLAIM not in file_names(directory):
            return False
        with lock_free(directory, self._seen) as mine:
            return not mine

    def _settled(self, batch: Batch) -> bool:
        return self.sweep.finished(batch.members) or FAILED in file_names(batch.directory)

    def _failed(self, batch: Batch) -> dict[int, Exception]:
        """Which settings of a batch have failed, and why."""
        path = batch.directory / FAILED
        if self.sweep.finished(batch.members) or not path.exists():
            return {}
        with refusing(path):
            found: dict[int, Exception] = {
                int(i): FailedSettingsError(shown(why, 400)) for i, why in read_json(path).items()
            }
            if not {*found} <= {*batch.members}:
                raise malformed(path, "it names settings of other batches", "delete it")
        return found

    def _write_tables(self, summaries: list[Summary], failed: bool) -> None:
        """By one of those that wait for it; all go when it is done."""
        unfinished = self.sweep.record.directory / UNFINISHED
        mine = False
        while not mine:
            unfinished.mkdir(exist_ok=True)
            with lock_free(unfinished, self._seen) as mine:
                if mine:
                    write_results(self.sweep, summaries)
                    if not failed:  # else others must see which
                        shutil.rmtree(unfinished, ignore_errors=True)
            if not mine:
                time.sleep(POLL_SECONDS)
