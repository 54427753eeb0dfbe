"""A sweep on disk: one run directory per setting, groups trained one after the other, what is finished never again."""

import dataclasses
import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from purejaxppo.config import Config
from purejaxppo.errors import HostEnvironmentError, UsageError, plural
from purejaxppo.experiment.experiment import devices_again, start_record
from purejaxppo.experiment.loop import Loop
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.program import Program, compile_program
from purejaxppo.experiment.progress import ProgressLine
from purejaxppo.experiment.run_batch import RunBatch
from purejaxppo.experiment.signals import Signals
from purejaxppo.parallel.devices import most_open_files
from purejaxppo.rundir import checkpoint
from purejaxppo.rundir.files import (
    SWEEP,
    UNFINISHED,
    from_json,
    json_text,
    malformed,
    read_json,
    refuse_links,
    refusing,
    to_json,
)
from purejaxppo.rundir.learnt import read_learnt
from purejaxppo.rundir.record import RunRecord, read_record, refuse_huge, write_record
from purejaxppo.rundir.summary import Summary, failed_summary, read_summary
from purejaxppo.sweeps.axes import Settings, checked, label, refuse_overruled, traced
from purejaxppo.sweeps.plan import SettingsGroup, batches, fit, group_settings

APART = "apart"  # in a batch's directory: its settings have failed together


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What sweep.json says."""

    record: RunRecord  # its config has the settings that are not swept
    settings: list[Settings]
    at_once: int | None = None  # settings that one program trains at most; None: as many as fit into memory
    called: tuple[str, ...] = ()  # the run directories; (): as the settings are, see `names`
    sizes: tuple[int, ...] = ()  # of each group, settings that its program trained at once when it began; (): all

    @cached_property
    def configs(self) -> list[Config]:
        """Of each setting. Raises: UsageError: one cannot work."""
        return checked(self.record.config, self.settings)

    @cached_property
    def groups(self) -> list[SettingsGroup]:
        return group_settings(self.record.config, self.settings)

    @cached_property
    def names(self) -> list[str]:
        """Of the run directories: the settings, or their numbers where a file system may not take that."""
        if self.called:
            return [*self.called]
        names = [re.sub(r"[^\w.,=+-]", "_", label(own)) for own in self.settings]
        if len({*names}) < len(names) or any(len(name) > 200 for name in names):
            return [f"{i + 1:0{len(str(len(names)))}d}" for i in range(len(names))]
        return names

    @cached_property
    def directories(self) -> list[Path]:
        return [self.record.directory / name for name in self.names]

    @property
    def programs(self) -> list[tuple[Config, int]]:
        """Of each group a config, and its runs."""
        configs, seeds = self.configs, len(self.record.seeds)  # checked before they are grouped
        return [(configs[group.members[0]], len(group.members) * seeds) for group in self.groups]

    @property
    def open_files(self) -> int:
        """Of each setting while it is trained: its metrics.csv, and what TensorBoard reads."""
        options = HostOptions.of(self.record.options)
        return 1 + options.tensorboard * (len(self.record.seeds) if options.run_per_seed else 1)

    def finished(self, members: list[int]) -> bool:
        return all("summary.json" in file_names(self.directories[i]) for i in members)

    def write(self) -> None:
        about = {"sweep": self.settings, "at_once": self.at_once}
        write_record(self.record, SWEEP, about | ({"sizes": self.sizes} if self.sizes else {}))

    def batch_directory(self, members: list[int]) -> Path:
        """Where checkpoints of settings that are trained together are kept until they are finished."""
        digest = hashlib.sha256(json_text(to_json([self.settings[i] for i in members])).encode()).hexdigest()[:16]
        return self.record.directory / UNFINISHED / digest


class Step(NamedTuple):
    """A group of the plan."""

    group: SettingsGroup
    program: Program | None  # None: all its settings are finished
    at_once: int  # settings that its program is for
    failed: Exception | None = None  # why it cannot be trained

    @property
    def lots(self) -> list[list[int]]:
        return batches(self.group.members, self.at_once)


def begin_sweep(
    config: Config,
    settings: list[Settings],
    seeds: list[int],
    out: Path,
    devices: list[jax.Device],
    options: HostOptions,
    at_once: int | None = None,
) -> tuple[Sweep, list[jax.Device]]:
    """A new sweep, nothing of which is written yet, and the devices that it takes. Raises: UsageError."""
    options.check()
    sweep = Sweep(start_record(config, seeds, out, devices, options), settings)
    refuse_overruled(sweep.configs, settings)
    devices = max((options.place(one, runs, devices) for one, runs in sweep.programs), key=len)
    for group in sweep.groups if options.init_from else ():  # refused before anything is made
        first, *others = (sweep.configs[i] for i in group.members)
        read_learnt(Path(options.init_from), first, others)
    return Sweep(sweep.record._replace(devices=len(devices)), settings, at_once), devices


def read_sweep(
    directory: Path, progress: ProgressLine, devices: int | None = None, mesh: str | None = None, env: Any = None
) -> tuple[Sweep, list[jax.Device]]:
    """One that was interrupted. Raises: UsageError, its sweep.json is damaged or cannot work here."""
    path = directory / SWEEP
    record = read_record(directory, env, name=SWEEP)
    content = read_json(path)
    settings, at_once, sizes = content.get("sweep"), content.get("at_once"), content.get("sizes", [])
    with refusing(path):
        if at_once is not None and (type(at_once) is not int or at_once < 1):
            raise malformed(path, f"at_once = {at_once!r:.80} is no number of settings")
        if not isinstance(settings, list) or not all(isinstance(own, dict) for own in settings):
            raise malformed(path, "sweep is no list of settings")
        if any(own.keys() != settings[0].keys() for own in settings):
            raise malformed(path, "not all settings of the sweep have the same fields")
        settings = [from_json(own) for own in settings]
        if not isinstance(sizes, list) or not all(type(size) is int and size > 0 for size in sizes):
            raise malformed(path, f"sizes = {sizes!r:.80} is no list of numbers of settings")
    for own in settings:
        refuse_huge(path, own)
    for name in {name for own in settings for name in own}:
        traced(record.config, name)  # refuses what is no field
    sweep = Sweep(record, settings)
    record, here = devices_again(record, sweep.programs, devices, mesh, progress)
    drafts = directory / UNFINISHED
    for own in (*sweep.directories, *drafts.glob("*")):
        if own.is_symlink():
            raise UsageError(f"{own} is a link, which no run of a sweep is; put the directory itself there.")
        refuse_links(own)
    if sizes and len(sizes) != len(sweep.groups):
        raise malformed(path, f"sizes = {sizes!r:.80} are not those of {plural(len(sweep.groups), 'group')}")
    return Sweep(record, settings, at_once, sizes=tuple(sizes)), here


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


def file_names(directory: Path) -> set[str]:
    """What is in a directory. Listed: network file systems may answer from memory that a file is not there."""
    try:
        return {entry.name for entry in os.scandir(directory)}
    except FileNotFoundError:
        return set()
