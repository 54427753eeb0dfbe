"""A sweep as it lies on disk: sweep.json, and one run directory per setting."""

import dataclasses
import hashlib
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from purejaxppo.config import Config
from purejaxppo.errors import UsageError, plural
from purejaxppo.experiment.experiment import devices_again, start_record
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.progress import ProgressLine
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
from purejaxppo.sweeps.axes import Settings, checked, label, refuse_overruled, traced
from purejaxppo.sweeps.plan import SettingsGroup, group_settings


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


def file_names(directory: Path) -> set[str]:
    """What is in a directory. Listed: network file systems may answer from memory that a file is not there."""
    try:
        return {entry.name for entry in os.scandir(directory)}
    except FileNotFoundError:
        return set()
