"""Experiments from Python and from the command line: begun anew, or gone on with where they were interrupted."""

import dataclasses
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purejaxppo.config import Config, as_config
from purejaxppo.errors import UsageError, plural
from purejaxppo.experiment.chunk_report import ChunkReport
from purejaxppo.experiment.loop import Loop
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.program import check_memory
from purejaxppo.experiment.progress import ProgressLine, plain_console
from purejaxppo.experiment.run_batch import RunBatch
from purejaxppo.experiment.timetable import least_rows_every, most_rows
from purejaxppo.keys import default_implementation, is_key, stay_apart
from purejaxppo.parallel.devices import choose_devices, threads
from purejaxppo.parallel.hosts import group
from purejaxppo.parallel.machine import fingerprint
from purejaxppo.policy.load import Trained, best_index, load_all, trained
from purejaxppo.presets import settings_of
from purejaxppo.rundir.files import shown, to_json
from purejaxppo.rundir.learnt import read_learnt
from purejaxppo.rundir.lock import held_for_all, lock, new_directory
from purejaxppo.rundir.logs import read_log
from purejaxppo.rundir.record import RunRecord, read_record, versions, write_record
from purejaxppo.rundir.summary import Summary
from purejaxppo.types import TrainState

OnChunk = Callable[[ChunkReport], Any]
MOST_SEEDS = 2**20


@dataclasses.dataclass(frozen=True)
class ExperimentResult:
    """What came of an experiment."""

    config: Config
    seeds: list[int]
    out: Path | None  # the run directory; None: nothing was kept
    summary: Summary  # as summary.json
    kept_metrics: dict[str, np.ndarray] | None = dataclasses.field(repr=False)  # see `metrics`
    padded_state: TrainState = dataclasses.field(repr=False)  # on the devices; see `state`

    @cached_property
    def metrics(self) -> dict[str, np.ndarray]:
        """The log: tidy columns `seed`, `update`, `env_steps`, then metrics. Of several processes', read when asked."""
        return self.kept_metrics or read_log(self.out or Path(), self.seeds).tidy()

    @cached_property
    def state(self) -> TrainState:
        """The final states [seeds], on the host: all that a checkpoint holds."""
        if group().count > 1 and self.out:
            prng = default_implementation()
            return load_all(RunRecord(self.out, self.config, self.seeds, {}, prng, 0, {}))[1]
        return jax.tree.map(lambda x: x[: len(self.seeds)], jax.device_get(self.padded_state))

    @cached_property
    def policy(self) -> Trained:
        """The best seed by the final evaluation, ready to act; as `purejaxppo.load` returns it."""
        best = best_index(self.summary["eval_return"]["per_seed"])
        return trained(self.config, self.seeds, self.state, best, self.summary["env_steps"])


def run_experiment(
    config: Config,
    seeds: int | Sequence[int] = 8,
    out: str | Path | None = None,
    *,
    first_seed: int = 0,
    devices: int | Sequence[jax.Device] | None = None,
    options: HostOptions | Mapping[str, Any] | None = None,
    on_chunk: OnChunk | None = None,
    debug: bool = False,
    quiet: bool = True,
    progress: ProgressLine | None = None,
    resume_or_start: bool = False,
) -> ExperimentResult:
    """Train all seeds, as `python -m purejaxppo.run` does, and return what came of it.

    Each seed learns what `make_train(config)(jax.random.key(seed))` learns, whatever the options, but for three:
    `init_from` begins with what another run has learnt; a `mesh` with `env=M` gives other episodes; any other mesh, and
    `seed_mode`, may change the last digits. A seed whose numbers turn non-finite is frozen and named in the summary.

    Args:
        seeds: how many, from `first_seed` on; or a list of them.
        out: the run directory, which must be new or empty. None: nothing is kept on disk, and there are no checkpoints.
        devices: how many, or which; None is all.
        options: `log_interval`, `checkpoint_interval`, `tensorboard` and the like: the fields of `HostOptions`.
        on_chunk: called with a `ChunkReport` every few seconds, between two chunks of updates. It can change nothing.
            An exception in it ends the run once a checkpoint is saved, and reaches the caller.
        debug: stop once a seed's numbers turn non-finite, and name the operation.
        quiet: print warnings only. Otherwise the progress goes to stdout, or to `progress`.
        resume_or_start: if `out` holds this run already, go on with it, with the `options` that it began with, of which
            `init_from` must be the same. So a job that is stopped and queued again need not know whether it is the
            first.

    Raises:
        UsageError: the run cannot work; or with `debug` a seed has failed; or all seeds have.
        OSError: a file cannot be written. The message says whether a checkpoint can be resumed.
        HostEnvironmentError: an environment on the host failed; likewise.
        Stopped: SIGTERM or SIGINT, a KeyboardInterrupt; everything is saved.
    """
    as_config(config)
    seeds, progress = seed_list(seeds, first_seed), progress or ProgressLine(plain_console(), quiet)
    if resume_or_start:
        if out is None:
            raise UsageError("resume_or_start needs a run directory to look into; pass out=DIR.")
        if group().by_leader((Path(out) / "config.json").exists):
            own = config.policy_network, config.critic_network, config.optimizer
            record = read_record(Path(out), config.env, *own)
            same_run(record, config, seeds, HostOptions.of(options))
            return _go_on(record, devices, None, on_chunk, debug, progress)
    config.check()
    options = HostOptions.of(options)
    learnt = read_learnt(Path(options.init_from), config) if options.init_from else None  # before anything is made
    keep = out is not None
    if not keep and (options.tensorboard or options.wandb):
        raise UsageError("tensorboard and wandb log into a run directory, and there is none; pass out=DIR.")
    group().agree({**to_json(settings_of(config)), "seeds": seeds, "debug": debug, **dataclasses.asdict(options)})
    if not keep and group().count > 1:
        raise UsageError("several processes train in a run directory that they share; pass out=DIR.")
    chosen = options.place(config, len(seeds), choose_devices(devices))
    check_memory(config, len(seeds), chosen, options)
    with ExitStack() as stack:
        where = out if out is not None else stack.enter_context(tempfile.TemporaryDirectory(prefix="purejaxppo-"))
        directory = Path(where)
        stack.enter_context(held_for_all(directory, new_directory))
        record = start_record(config, seeds, directory, chosen, options)
        group().by_leader(lambda: write_record(record))
        loop = Loop(RunBatch([record], chosen, source=learnt), progress, debug, on_chunk, keep)
        return _result(loop, loop.run())


def resume_experiment(
    out: str | Path,
    total_steps: int | None = None,
    *,
    env: Any = None,
    policy_network: Any = None,
    critic_network: Any = None,
    optimizer: Any = None,
    devices: int | Sequence[jax.Device] | None = None,
    mesh: str | None = None,
    on_chunk: OnChunk | None = None,
    debug: bool = False,
    quiet: bool = True,
    progress: ProgressLine | None = None,
) -> ExperimentResult:
    """Go on exactly where a run was; from its beginning, if there is no checkpoint yet.

    Args:
        out: the run directory.
        total_steps: train longer than was planned; not if the learning rate, or another number, is annealed.
        env: the environment, again, if it is one of your own: a file is not trusted to run code.
        policy_network: the module, again, if it is your own.
        critic_network: likewise.
        optimizer: likewise, if it is a function.
        devices: None: as many as before, if there are as many. With others the last digits differ, which is said.
        mesh: likewise.

    The other arguments, and what is raised, are those of `run_experiment`.
    """
    record = read_record(Path(out), env, policy_network, critic_network, optimizer)
    if total_steps is not None and total_steps != record.config.total_steps:
        if record.config.anneal_learning_rate or record.config.anneal:
            raise UsageError(f"total_steps = {total_steps} cannot change: numbers are annealed over it; leave it out.")
        record = record._replace(config=record.config.replace(total_steps=total_steps))
        record.config.check()
    progress = progress or ProgressLine(plain_console(), quiet)
    return _go_on(record, devices, mesh, on_chunk, debug, progress)


def _go_on(
    record: RunRecord,
    devices: int | Sequence[jax.Device] | None,
    mesh: str | None,
    on_chunk: OnChunk | None,
    debug: bool,
    progress: ProgressLine,
) -> ExperimentResult:
    """Train what a record says, from its newest checkpoint on."""
    group().agree({**to_json(settings_of(record.config)), "seeds": record.seeds, "debug": debug})
    record, here = devices_again(record, [(record.config, len(record.seeds))], devices, mesh, progress)
    config, options = record.config, HostOptions.of(record.options)
    if (options.log_interval or 1) < least_rows_every(config, len(record.seeds)):
        own = shlex.quote(str(record.directory))
        raise UsageError(
            f"total_steps = {config.total_steps:,} makes more rows of metrics.csv than the {most_rows():,} that can be "
            f"read again; go on with more processes, or in a run of its own, with --init-from {own}."
        )
    check_memory(config, len(record.seeds), here, options)
    with held_for_all(record.directory, lock):
        runs = RunBatch([record], here)
        snapshot = runs.newest_checkpoint(progress.warn)
        what = f"{record.config.algo_name} on {record.config.env_name}, {plural(len(record.seeds), 'seed')}"
        where = "from the beginning: no checkpoint"
        if snapshot:
            where = f"at step {snapshot.about['env_steps']:,} of {record.config.env_steps:,} per seed"
        progress.say(f"resuming {record.directory}: {what}, {where}")
        group().by_leader(lambda: write_record(record))
        loop = Loop(runs, progress, debug, on_chunk)
        return _result(loop, loop.run(snapshot))


def same_run(record: RunRecord, config: Config, seeds: list[int], options: HostOptions) -> None:
    """Raises: UsageError: a directory holds another run than this."""
    theirs, ours = to_json(settings_of(record.config)), to_json(settings_of(config))
    theirs["init_from"], ours["init_from"] = record.options.get("init_from", ""), options.init_from
    for name in ours:
        if ours[name] != theirs[name]:
            raise UsageError(
                f"out = {str(record.directory)!r} holds a run with {name} = {theirs[name]!r:.80}, not "
                f"{ours[name]!r:.80}; choose another --out."
            )
    if record.seeds != seeds:
        raise UsageError(f"out = {str(record.directory)!r} holds a run of other seeds; choose another --out.")


def seed_list(seeds: int | Sequence[int], first_seed: int = 0) -> list[int]:
    """`first_seed`, `first_seed` + 1, … if `seeds` is a number. Raises: UsageError."""
    if isinstance(seeds, int | np.integer):
        if not 1 <= seeds <= MOST_SEEDS:
            raise UsageError(f"num_seeds = {seeds} must be a whole number in [1, {MOST_SEEDS:,}]; the default is 8.")
        if not 0 <= first_seed <= 2**32 - seeds:
            raise UsageError(f"seed = {first_seed} must be within 0 … 2³² - num_seeds; the default is 0.")
        return list(range(int(first_seed), int(first_seed + seeds)))
    if isinstance(seeds, jax.Array) and is_key(seeds):
        raise UsageError("seeds are whole numbers, not keys; pass 8, or range(8), say.")
    chosen = np.ravel(seeds).tolist()
    valid = all(type(seed) is int and 0 <= seed < 2**32 for seed in chosen)
    if not valid or not 0 < len(chosen) == len({*chosen}) <= MOST_SEEDS:
        raise UsageError(f"seeds = {chosen!r:.80} must be different whole numbers in [0, 2³²); pass range(8), say.")
    return chosen


def start_record(
    config: Config, seeds: list[int], out: Path, devices: list[jax.Device], options: HostOptions
) -> RunRecord:
    """What config.json says of a new run. Raises: UsageError: its log would be too long to be read."""
    least = least_rows_every(config, len(seeds))
    interval = min(options.log_interval or max(-(-config.num_updates // 100), least), config.num_updates)
    if interval < least:
        raise UsageError(
            f"log_interval = {interval} makes more rows of metrics.csv, for {len(seeds):,} seeds, than the "
            f"{most_rows():,} that can be read again; pass --log-interval {least}, or leave it out."
        )
    host = dataclasses.asdict(dataclasses.replace(options, log_interval=interval))
    prng = default_implementation()
    if config.on_host and not stay_apart(()):
        raise UsageError(f"jax_default_prng_impl = {prng!r} is not for {config.env!r}; unset JAX_DEFAULT_PRNG_IMPL.")
    return RunRecord(out, config, seeds, host, prng, len(devices), versions(config.env), threads(), fingerprint())


def devices_again(
    record: RunRecord,
    programs: list[tuple[Config, int]],
    devices: int | Sequence[jax.Device] | None,
    mesh: str | None,
    progress: ProgressLine,
) -> tuple[RunRecord, list[jax.Device]]:
    """Devices for what goes on: those asked for; else as many as before, or fewer if there are no more here.

    `programs` are the configs that they must fit, and how many runs each has. Says what may differ for it, and returns
    the record as it now is.
    """
    before = HostOptions.of(record.options)
    options, everything = before, choose_devices(devices)
    if mesh is not None:
        options = dataclasses.replace(options, mesh=mesh)
        options.check()
    elif before.mesh_shape.needed > len(everything):
        options = dataclasses.replace(options, mesh=before.mesh_shape.within(len(everything)))
        fits = f"it is now {options.mesh!r}" if options.mesh else "each run gets one"
        progress.warn(f"mesh = {before.mesh!r} takes more than the {len(everything)} devices here: {fits}")
    as_many = min(record.devices, len(everything))
    chosen = devices or mesh is not None or as_many % group().count  # not for fewer devices than processes
    here = everything if chosen else choose_devices(as_many)
    here = max((options.place(config, runs, here) for config, runs in programs), key=len)
    given, found = dataclasses.asdict(options), versions(record.config.env)
    now = record._replace(options=given, devices=len(here), versions=found, threads=threads(), machine=fingerprint())
    shape, old = options.mesh_shape, before.mesh_shape
    if shape.env != old.env:
        progress.warn(f"mesh = {options.mesh!r} instead of {before.mesh!r}: episodes will be others")
    elif shape.net != old.net:
        progress.warn(f"mesh = {options.mesh!r} instead of {before.mesh!r}: the last digits of what follows may differ")
    elif len(here) != record.devices:
        progress.warn(f"on {len(here)} devices instead of {record.devices}: the last digits of what follows may differ")
    elif record.threads and now.threads and now.threads != record.threads:
        progress.warn(f"{now.threads} threads instead of {record.threads}: the last digits of what follows may differ")
    then = record.versions | (record.machine or {})
    for name, value in (now.versions | (now.machine or {})).items():
        if (old_value := then.get(name, shown(value, 200))) != shown(value, 200):
            what = f"{name} is {value or 'not set'} and was {old_value or 'not set'}"
            others = "random numbers" if "threefry" in name else "last digits"
            progress.warn(f"{what}: the {others} of what follows may differ")
    return now, here


def _result(loop: Loop, summaries: list[Summary]) -> ExperimentResult:
    (record,) = loop.runs.records
    metrics = read_log(record.directory, record.seeds).tidy() if group().count == 1 else None
    out = record.directory if loop.keep else None
    return ExperimentResult(record.config, record.seeds, out, summaries[0], metrics, loop.state)
