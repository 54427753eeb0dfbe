"""A sweep is trained: its groups one after the other, what is finished never again."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from purejaxppo.errors import HostEnvironmentError, UsageError, plural
from purejaxppo.experiment.loop import Loop
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.program import Program, compile_program
from purejaxppo.experiment.progress import ProgressLine
from purejaxppo.experiment.run_batch import RunBatch
from purejaxppo.experiment.signals import Signals
from purejaxppo.parallel.devices import most_open_files
from purejaxppo.rundir import checkpoint
from purejaxppo.rundir.files import UNFINISHED
from purejaxppo.rundir.record import write_record
from purejaxppo.rundir.summary import Summary, failed_summary, read_summary
from purejaxppo.sweeps.definition import Sweep
from purejaxppo.sweeps.plan import SettingsGroup, batches, fit

APART = "apart"  # in a batch's directory: its settings have failed together


class Step(NamedTuple):
    """A group of the plan."""

    group: SettingsGroup
    program: Program | None  # None: all its settings are finished
    at_once: int  # settings that its program is for
    failed: Exception | None = None  # why it cannot be trained

    @property
    def lots(self) -> list[list[int]]:
        return batches(self.group.members, self.at_once)


def keep_sizes(sweep: Sweep, steps: Sequence[Step]) -> None:
    """Of a sweep that begins, where not all settings are trained at once: its batches are the same when it goes on."""
    sizes, begun = tuple(step.at_once for step in steps), (sweep.record.directory / UNFINISHED).exists()
    if not begun and all(step.program for step in steps) and sizes != tuple(len(step.group.members) for step in steps):
        dataclasses.replace(sweep, sizes=sizes).write()


def plan_sweep(sweep: Sweep, devices: list[jax.Device], progress: ProgressLine) -> list[Step]:
    """Compile the program of every group that is not finished.

    Raises:
        UsageError: of no group even one setting fits into memory.
    """
    groups, steps = sweep.groups, []
    for i, group in enumerate(groups):
        if sweep.finished(group.members):
            steps.append(Step(group, None, len(group.members)))
            continue
        progress.say(f"group {i + 1} of {len(groups)}: {group.name}")
        compiled, count = partial(compile_group, sweep, group, devices, progress), len(group.members)
        try:
            by_files = max(1, most_open_files() // sweep.open_files)
            at_most = min(sweep.at_once or count, by_files, *sweep.sizes[i : i + 1])
            found = fit(compiled, lambda program: program.device_bytes, count, devices, at_most)
            steps.append(Step(group, *found))
        except UsageError as error:
            steps.append(Step(group, None, len(group.members), error))
    if steps[0].failed and all(step.failed for step in steps):
        raise steps[0].failed
    for step in steps:
        if step.failed:
            progress.warn(f"{step.group.name} cannot be trained: {step.failed}")
    return steps


def compile_group(
    sweep: Sweep, group: SettingsGroup, devices: list[jax.Device], progress: ProgressLine, count: int
) -> Program:
    """The program for so many settings of a group at once. Raises: UsageError: they cannot work. Stopped: a signal."""
    runs = _batch(sweep, group, group.members[:count], count, devices)
    with Signals(progress.tick) as signals, progress:
        progress.stage("compiling")
        return signals.wait(partial(compile_program, runs), patience=0.0)


def run_sweep(
    sweep: Sweep, steps: Sequence[Step], devices: list[jax.Device], progress: ProgressLine, debug: bool = False
) -> tuple[list[Summary], dict[int, Exception]]:
    """Train what is not finished; the summaries of all settings, in their order, and why which of them have failed.

    A setting that fails ends no other. It has no summary.json, so that it is tried again when the sweep is resumed.

    Raises:
        OSError, Stopped: as `run_experiment`.
        UsageError, HostEnvironmentError: all settings have failed, or with `debug` one has.
    """
    failed: dict[int, Exception] = {}
    for step in steps:
        if step.failed:
            failed |= dict.fromkeys(step.group.members, step.failed)
        for members in step.lots if step.program else ():
            if not sweep.finished(members):
                progress.say(f"{step.group.name}: {plural(len(members), 'setting')}")
                failed |= train_batch(sweep, step, members, devices, progress, debug)
    if len(failed) == len(sweep.settings):
        raise failed[0]
    if not failed:  # else their checkpoints are there to go on from
        shutil.rmtree(sweep.record.directory / UNFINISHED, ignore_errors=True)
    return summaries_of(sweep, failed), failed


def summaries_of(sweep: Sweep, failed: Mapping[int, Exception]) -> list[Summary]:
    """Of all settings, in their order; of those that have none, one that says why."""
    seeds = sweep.record.seeds
    return [
        read_summary(sweep.directories[i], seeds) or failed_summary(config, seeds, str(failed.get(i, "not trained")))
        for i, config in enumerate(sweep.configs)
    ]


def train_batch(
    sweep: Sweep,
    step: Step,
    members: list[int],
    devices: list[jax.Device],
    progress: ProgressLine,
    debug: bool,
    claimed: Path | None = None,
) -> dict[int, Exception]:
    """Train some settings together, or each by itself if they fail; of those that do so then, why.

    The directory `claimed` is this process's as long as it may save; None: the sweep's.
    """
    directory, left = sweep.batch_directory(members), [i for i in members if not sweep.finished([i])]
    begun = [i for i in left if checkpoint.steps_saved(sweep.batch_directory([i]) / "checkpoints")]
    parted = (directory / APART).exists() and (begun or len(left) < len(members))
    if parted or not checkpoint.steps_saved(directory / "checkpoints"):  # they do not go on together
        if begun and left[1:]:
            return _each_by_itself(sweep, step, left, devices, progress, debug, claimed)
        members = left
    if not members:
        return {}
    runs = _batch(sweep, step.group, members, step.at_once, devices, claimed or sweep.record.directory)
    runs.directory.mkdir(parents=True, exist_ok=True)
    for record in runs.records:
        record.directory.mkdir(exist_ok=True)
        write_record(record)
    try:
        Loop(runs, progress, debug).run(runs.newest_checkpoint(progress.warn), step.program)
    except (UsageError, HostEnvironmentError) as error:
        if debug:
            raise
        if len(members) == 1:
            progress.warn(f"{sweep.names[members[0]]} has failed: {error}")
            return {members[0]: error}
        progress.warn(f"{plural(len(members), 'setting')} have failed together ({error}): each is trained by itself")
        # what one of them reaches by itself counts, and their checkpoint not any more
        (runs.directory / APART).touch()
        return _each_by_itself(sweep, step, members, devices, progress, debug, claimed)
    shutil.rmtree(runs.directory, ignore_errors=True)  # another worker may look into it
    return {}


def _each_by_itself(sweep: Sweep, step: Step, members: list[int], *how: Any) -> dict[int, Exception]:
    failed: dict[int, Exception] = {}
    for i in members:
        failed |= train_batch(sweep, step, [i], *how)
    return failed


def _batch(
    sweep: Sweep,
    group: SettingsGroup,
    members: list[int],
    count: int,
    devices: list[jax.Device],
    claimed: Path | None = None,
) -> RunBatch:
    """Some settings of a group, filled up with copies to the size of a program for `count`."""
    record = sweep.record
    records = [record._replace(directory=sweep.directories[i], config=sweep.configs[i]) for i in members]
    size = HostOptions.of(record.options).padded(records[0].config, count * len(record.seeds), devices)
    where, command = sweep.batch_directory(members), "tune" if sweep.called else "sweep"
    return RunBatch(records, devices, group.swept, size, where, record.directory, claimed, command)
