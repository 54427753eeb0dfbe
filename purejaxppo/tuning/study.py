"""A study's plan: what tune.json says, new or read again."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.experiment.experiment import devices_again, same_run, start_record
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.progress import ProgressLine
from purejaxppo.parallel.devices import choose_devices
from purejaxppo.presets import with_settings
from purejaxppo.rundir.files import TUNE, from_json, malformed, read_json, refusing
from purejaxppo.rundir.learnt import read_learnt
from purejaxppo.rundir.record import RunRecord, read_record, write_record
from purejaxppo.tuning.population import Population
from purejaxppo.tuning.search import Search
from purejaxppo.tuning.space import Space, combinations, default_space, parse_space, plain
from purejaxppo.tuning.study_options import StudyOptions, as_dict, check_study, check_unused


@dataclasses.dataclass(frozen=True)
class Study:
    """What tune.json says."""

    record: RunRecord  # its config has what is not searched; its seeds are those of the final run
    space: Space
    options: StudyOptions
    lot_size: int
    reserved: int  # environment steps of the budget that the final runs train for

    def search(self) -> Search:
        """The study before its first trial. Raises: UsageError: the budget or the rungs cannot work."""
        config = self.record.config
        rungs = self.options.ladder(config, self.space, self.reserved)
        kind = Population if self.options.method == "pbt" else Search
        options = dataclasses.replace(self.options, budget=self.options.budget - self.reserved)
        return kind(config, self.space, options, rungs, self.lot_size, self.record.seeds[0])

    def write(self) -> None:
        study = {"space": plain(self.space), "options": as_dict(self.options)}
        write_record(self.record, TUNE, {"tune": study | {"lot_size": self.lot_size, "reserved": self.reserved}})


def plan_study(
    config: Config,
    space: Mapping[str, Any] | None,
    options: StudyOptions,
    seeds: list[int],
    out: Path,
    devices: int | Sequence[jax.Device] | None,
    final: HostOptions,
) -> tuple[Study, list[jax.Device]]:
    """A new study, nothing of which is written yet, and its devices. Raises: UsageError: it cannot work."""
    options.check()
    if final.mesh:
        raise UsageError(f"mesh = {final.mesh!r}: trials lie side by side on all devices; leave it out.")
    check_study(config)
    parsed = parse_space(config, default_space(config) if space is None else space)
    if final.init_from and (given := {"observation_clip", "log_std_init"} & parsed.keys()):
        raise UsageError(f"space: {min(given)} is that of the run in init_from; take it out of the space.")
    check_unused(options, config, parsed)
    reserved = options.final_steps(config, parsed, len(seeds))
    options.ladder(config, parsed, reserved)
    options.search_seeds(seeds)
    for own in combinations(config, parsed) if final.init_from else ():  # refused before anything is made
        read_learnt(Path(final.init_from), with_settings(config, own))
    everything = choose_devices(devices)
    size = options.lot_size(config, everything)
    chosen = final.place(config, size * options.seeds_per_trial, everything)
    return Study(start_record(config, seeds, out, chosen, final), parsed, options, size, reserved), chosen


def read_study(
    directory: Path, progress: ProgressLine, devices: int | Sequence[jax.Device] | None = None, *own: Any
) -> tuple[Study, list[jax.Device]]:
    """One that was interrupted; its `own` environment, networks and optimiser again, as `read_record` takes them.

    Raises:
        UsageError: its tune.json is damaged, or cannot work here.
    """
    path = directory / TUNE
    record = read_record(directory, *own, name=TUNE)
    with refusing(path):
        about = read_json(path)["tune"]
        if not isinstance(about["lot_size"], int) or not 0 < about["lot_size"] <= 10**5:
            raise malformed(path, "lot_size is no number of trials")
        if not isinstance(reserved := about["reserved"], int) or reserved < 0:
            raise malformed(path, "reserved is no number of steps")
        try:
            options = StudyOptions(**about["options"])
            options.check()
            space = parse_space(record.config, {**from_json(about["space"])})
        except UsageError as error:
            raise UsageError(f"{path}: {error!s:.300}") from error
    check_study(record.config)
    runs = about["lot_size"] * options.seeds_per_trial
    record, here = devices_again(record, [(record.config, runs)], devices, None, progress)
    return Study(record, space, options, about["lot_size"], reserved), here


def same_study(there: Study, wanted: Study) -> None:
    """Raises: UsageError: the directory holds another study."""
    same_run(there.record, wanted.record.config, wanted.record.seeds, HostOptions.of(wanted.record.options))
    out = there.record.directory
    if plain(there.space) != plain(wanted.space):
        raise UsageError(f"out = {str(out)!r} holds a study of another space; choose another --out.")
    ours, theirs = (as_dict(dataclasses.replace(x, rungs=x.rung_count)) for x in (wanted.options, there.options))
    for name, value in ours.items():
        if theirs[name] != value:
            raise UsageError(
                f"out = {str(out)!r} holds a study with {name} = {theirs[name]!r}, not {value!r}; go on with that one "
                "by --resume, or choose another --out."
            )
