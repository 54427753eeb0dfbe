"""How an experiment begins: anew, or where it was interrupted."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.experiment.loop import Run, padded
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.program import check_memory
from purejaxppo.experiment.progress import ProgressLine
from purejaxppo.parallel.devices import choose_devices, threads
from purejaxppo.rundir.files import lock, new_directory
from purejaxppo.rundir.record import RunRecord, read_record, versions, write_record
from purejaxppo.rundir.summary import Summary


def run_experiment(
    config: Config,
    seeds: list[int],
    out: Path,
    devices: list[jax.Device],
    progress: ProgressLine,
    options: HostOptions | None = None,
    debug: bool = False,
) -> Summary:
    """Train all seeds, leave the run directory's files, return its summary.

    The result is that of `make_train(config)` bit for bit, whatever the options but `mesh` and `seed_mode`. A seed
    whose numbers turn non-finite is frozen and named in the summary.

    Raises:
        UsageError: the run cannot work; with `debug`, also once a seed fails, naming the operation.
        OSError: a file cannot be written. The last checkpoint is whole.
        HostEnvironmentError: an environment on the host failed. The last checkpoint is whole.
        Stopped: SIGTERM or SIGINT; everything is saved.
    """
    options = options or HostOptions()
    config.check()
    options.check()
    devices = options.place(config, len(seeds), devices)
    check_memory(config, padded(config, len(seeds), devices, options), devices, options)
    new_directory(out)
    with lock(out):
        record = begin_record(config, seeds, out, devices, options)
        write_record(record)
        return Run([record], devices, progress, debug).drive()[0]


def begin_record(
    config: Config, seeds: list[int], out: Path, devices: list[jax.Device], options: HostOptions
) -> RunRecord:
    """What config.json says of a new run."""
    interval = min(options.log_interval or -(-config.num_updates // 100), config.num_updates)
    host = dataclasses.asdict(dataclasses.replace(options, log_interval=interval))
    prng = str(jax.random.key_impl(jax.random.key(0)))
    return RunRecord(out, config, seeds, host, prng, len(devices), versions(), threads())


def resume_experiment(
    directory: Path,
    devices: int | None,
    progress: ProgressLine,
    total_steps: int | None = None,
    env: Any = None,
    debug: bool = False,
    mesh: str | None = None,
) -> Summary:
    """Go on exactly where a run was; from its beginning, if there is no checkpoint yet. Raises as `run_experiment`."""
    record = read_record(directory, env)
    if total_steps is not None and total_steps != record.config.total_steps:
        record = record._replace(config=_longer(record.config, total_steps))
    record, here = devices_again(record, [(record.config, len(record.seeds))], devices, mesh, progress)
    options = HostOptions.of(record.options)
    check_memory(record.config, padded(record.config, len(record.seeds), here, options), here, options)
    with lock(directory):
        run = Run([record], here, progress, debug)
        snapshot = run.newest()
        write_record(record)
        return run.drive(snapshot)[0]


def devices_again(
    record: RunRecord, programs: list[tuple[Config, int]], devices: int | None, mesh: str | None, progress: ProgressLine
) -> tuple[RunRecord, list[jax.Device]]:
    """Devices for what goes on: those asked for; else as many as before, or fewer if there are no more here.

    `programs` are the configs that they must fit, and how many runs each has. Says what may differ for it, and returns
    the record as it now is.
    """
    options = HostOptions.of(record.options)
    everything = choose_devices(devices)
    if mesh is not None:
        options = dataclasses.replace(options, mesh=mesh)
        options.check()
    elif options.mesh and len(everything) < record.devices:
        progress.warn(f"mesh = {options.mesh} is more than the {len(everything)} devices here: each run gets one")
        options = dataclasses.replace(options, mesh="")
    wanted = len(everything) if devices or mesh is not None else min(record.devices, len(everything))
    here = choose_devices(wanted)  # and what the record says is checked
    for config, runs in programs:
        here = options.place(config, runs, here)
    now = record._replace(
        options=dataclasses.asdict(options), devices=len(here), versions=versions(), threads=threads()
    )
    old = HostOptions.of(record.options)
    if options.env_shards != old.env_shards:
        progress.warn(f"mesh = {options.mesh!r} instead of {old.mesh!r}: episodes will be others")
    elif options.net_shards != old.net_shards:
        progress.warn(f"mesh = {options.mesh!r} instead of {old.mesh!r}: the last digits of what follows may differ")
    elif len(here) != record.devices:
        progress.warn(f"on {len(here)} devices instead of {record.devices}: the last digits of what follows may differ")
    elif record.threads and now.threads and now.threads != record.threads:
        progress.warn(f"{now.threads} threads instead of {record.threads}: the last digits of what follows may differ")
    for package, version in now.versions.items():
        if (before := record.versions.get(package)) != version:
            progress.warn(f"{package} is {version} and was {before}: the last digits of what follows may differ")
    return now, here


def _longer(config: Config, total_steps: int) -> Config:
    if config.anneal_learning_rate:
        raise UsageError(
            f"total_steps = {total_steps} cannot replace {config.total_steps} on resume: the learning rate is annealed "
            "over them; resume without --total-steps."
        )
    longer = config.replace(total_steps=total_steps)
    longer.check()
    return longer
