"""One experiment, from a config to a run directory: chunks of updates, and what is done between two of them."""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purejaxppo.config import Config
from purejaxppo.experiment import checkpoint
from purejaxppo.experiment.checkpoint import Snapshot
from purejaxppo.experiment.debug import explain
from purejaxppo.experiment.devices import choose_devices
from purejaxppo.experiment.directory import RunRecord, lock, new_directory, read_record, versions, write_record
from purejaxppo.experiment.host import closing, with_episodes_of
from purejaxppo.experiment.logging import Log
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.program import ROWS, Program, check_memory, compile_program, means
from purejaxppo.experiment.progress import ProgressLine
from purejaxppo.experiment.signals import Signals, Stopped
from purejaxppo.experiment.statistics import iqm
from purejaxppo.experiment.summary import Summary, conclude
from purejaxppo.health import CAUSES
from purejaxppo.presets import settings_of
from purejaxppo.train import init
from purejaxppo.types import TrainState, UsageError

CHUNK_SECONDS = 2.0  # between two looks of the host, for which devices wait for each other: 1.0 costs 4%
CHECKPOINT_SECONDS = 30.0


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

    The result is that of `make_train(config)` bit for bit, whatever the options. A seed whose numbers turn non-finite
    is frozen and named in the summary.

    Raises:
        UsageError: the run cannot work; with `debug`, also once a seed fails, naming the operation.
        OSError: a file cannot be written. The last checkpoint is whole.
        HostEnvironmentError: an environment on the host failed. The last checkpoint is whole.
        Stopped: SIGTERM or SIGINT; everything is saved.
    """
    options = options or HostOptions()
    config.check()
    options.check()
    devices = devices[: len(seeds) * options.env_devices]
    options.check_devices(config, len(devices))
    check_memory(config, _padded(seeds, devices, options), devices, options.final_episodes)
    new_directory(out)
    with lock(out):
        record = begin_record(config, seeds, out, devices, options)
        write_record(record)
        return Run(record, devices, progress, debug).drive(None)


def begin_record(
    config: Config, seeds: list[int], out: Path, devices: list[jax.Device], options: HostOptions
) -> RunRecord:
    """What config.json says of a new run."""
    interval = min(options.log_interval or -(-config.num_updates // 100), config.num_updates)
    host = dataclasses.asdict(dataclasses.replace(options, log_interval=interval))
    prng = str(jax.random.key_impl(jax.random.key(0)))
    return RunRecord(out, config, seeds, host, prng, len(devices), versions())


def resume_experiment(
    directory: Path,
    devices: int | None,
    progress: ProgressLine,
    total_steps: int | None = None,
    env: Any = None,
    debug: bool = False,
) -> Summary:
    """Go on exactly where a run was; from its beginning, if there is no checkpoint yet. Raises as `run_experiment`."""
    record = read_record(directory, env)
    if total_steps is not None and total_steps != record.config.total_steps:
        record = record._replace(config=_longer(record.config, total_steps))
    options = HostOptions.of(record.options)
    wanted = min(devices or record.devices, len(record.seeds) * options.env_devices, len(jax.devices()))
    here = choose_devices(wanted)
    if len(here) % options.env_devices:
        progress.warn(f"{len(here)} devices cannot be shared {options.env_devices} to a seed: each seed gets one")
        options = dataclasses.replace(options, env_devices=1)
        record = record._replace(options=dataclasses.asdict(options))
    options.check_devices(record.config, len(here))
    if len(here) != record.devices:
        progress.warn(f"on {len(here)} devices instead of {record.devices}: the last digits of what follows may differ")
    for package, version in versions().items():
        if record.versions.get(package) != version:
            progress.warn(
                f"{package} is {version} and was {record.versions.get(package)}: the last digits of what follows may "
                "differ"
            )
    check_memory(record.config, _padded(record.seeds, here, options), here, options.final_episodes)
    with lock(directory):
        saved = checkpoint.steps_saved(directory / "checkpoints")
        run = Run(record, here, progress, debug)
        snapshot = checkpoint.newest_whole(saved, run.check, progress.warn) if saved else None
        if snapshot is None:
            progress.say("no checkpoint was saved: beginning anew")
        elif snapshot.about["update"] > record.config.num_updates:
            raise UsageError(
                f"{snapshot.directory} has {snapshot.about['update']} updates already; raise --total-steps."
            )
        write_record(record._replace(devices=len(here), versions=versions()))
        return run.drive(snapshot)


def _padded(seeds: list[int], devices: list[jax.Device], options: HostOptions) -> int:
    """Runs, equally many on all devices: what is left over trains copies of the last seed."""
    at_once = len(devices) // options.env_devices
    return -(-len(seeds) // at_once) * at_once


def _longer(config: Config, total_steps: int) -> Config:
    if config.anneal_learning_rate:
        raise UsageError(
            f"total_steps = {total_steps} cannot replace {config.total_steps} on resume: the learning rate is annealed "
            "over them; resume without --total-steps."
        )
    longer = config.replace(total_steps=total_steps)
    longer.check()
    return longer


class Run:
    """A run under way: what its chunks share."""

    def __init__(self, record: RunRecord, devices: list[jax.Device], progress: ProgressLine, debug: bool) -> None:
        self.record, self.devices, self.progress, self.debug = record, devices, progress, debug
        self.config, self.seeds, self.out = record.config, record.seeds, record.directory
        self.options = HostOptions.of(record.options)
        self.batch = self.config.num_envs * self.config.num_steps
        self.interval = self.options.log_interval or 1
        padding = _padded(self.seeds, devices, self.options) - len(self.seeds)
        self.runs = np.asarray([*range(len(self.seeds)), *[len(self.seeds) - 1] * padding])
        self.keys = jax.vmap(partial(jax.random.key, impl=record.prng))(np.asarray(self.seeds, np.uint32)[self.runs])
        self.like = jax.eval_shape(jax.vmap(partial(init, self.config)), self.keys[: len(self.seeds)])
        self.settings = settings_of(self.config)
        self.scores = np.full(len(self.seeds), np.nan)  # last returns of each seed
        self.sick: dict[int, dict[str, Any]] = {}
        self.seconds = {"compile": 0.0, "run": 0.0}

    def check(self, snapshot: Snapshot) -> None:
        snapshot.check(self.config, self.seeds, self.like)

    def drive(self, snapshot: Snapshot | None) -> Summary:
        """Go on from a checkpoint, or from the beginning, to the end."""
        try:
            with closing(self.config.environment, [self.seeds[run] for run in self.runs], self.out):
                return self._drive(snapshot)
        except OSError as error:
            raise OSError(f"{error}; the last checkpoint is whole: make room, then --resume {self.out}") from error

    def _drive(self, snapshot: Snapshot | None) -> Summary:
        config, progress = self.config, self.progress
        done = snapshot.about["update"] if snapshot else 0
        if snapshot:
            self.seconds = dict(snapshot.about["seconds"])
            self.scores = np.asarray(snapshot.about["scores"], np.float64)
        if config.env_steps != config.total_steps:
            progress.say(
                f"total_steps = {config.total_steps:,} is rounded up to {config.env_steps:,}: {config.num_updates:,} "
                f"updates of {self.batch:,} steps."
            )
        log = Log(self.out, self.seeds, self.options, self.settings, done, done * self.batch + 1)
        with Signals() as signals, progress, log:
            progress.stage("compiling")
            began = time.monotonic()
            build = partial(
                compile_program,
                config,
                self.devices,
                self.keys,
                self.interval,
                self.options.final_episodes,
                self.options.env_devices,
            )
            program = signals.wait(build, give_up=True)
            self.seconds["compile"] += time.monotonic() - began
            progress.stage("training", done * self.batch * len(self.seeds), config.env_steps * len(self.seeds))
            on_host = getattr(config.environment, "on_host", False)
            starts = jax.vmap(jax.random.fold_in, (0, None))(self.keys, done) if on_host and done else self.keys
            state, totals = program.init(starts), np.zeros((len(self.runs), len(program.metrics)), np.float32)
            if snapshot:
                fresh, restored = state, checkpoint.unflatten(snapshot, self.like, "state.")
                state = jax.tree.map(lambda new, old: jax.device_put(old[self.runs], new.sharding), fresh, restored)
                if on_host:
                    progress.say("environments on the host cannot be restored: all begin new episodes")
                    state = with_episodes_of(fresh, state)
                totals = snapshot.arrays["totals"][self.runs]
                if totals.shape[1] != len(program.metrics):
                    raise UsageError(
                        f"{snapshot.directory} logs {totals.shape[1]} metrics and this version {len(program.metrics)}; "
                        "resume with the version that began the run."
                    )
                progress.say(f"going on from update {done:,} of {config.num_updates:,}")
            self._find_sick(state)
            state = self.train(program, state, totals, done, signals, log)
            progress.stage("evaluating")
            evaluation = signals.wait(lambda: jax.device_get(program.final(state)), give_up=True)
        returns = np.asarray(evaluation.returns[: len(self.seeds)]).mean(axis=1)
        return conclude(self.record, returns, list(self.sick.values()), self.seconds, self.devices)

    def train(
        self, program: Program, state: TrainState, totals: Any, done: int, signals: Signals, log: Log
    ) -> TrainState:
        """Make all updates after `done`, log and save; `totals` [runs, columns] are what the present row has so far."""
        config, seeds, pace, saved_at = self.config, len(self.seeds), 1, time.monotonic()
        while done < config.num_updates:
            began = time.monotonic()
            count = min(self._next_stop(done) - done, pace, ROWS * self.interval - done % self.interval)
            chunk = program.advance(state, totals, np.int32(done), np.int32(count))
            state, rows = signals.wait(partial(jax.block_until_ready, chunk))
            filled, rows = (done % self.interval + count) // self.interval, np.asarray(rows)
            ends = [(done // self.interval + 1 + i) * self.interval for i in range(filled)]
            done += count
            last = done == config.num_updates
            evaluate = config.eval_interval and (done % config.eval_interval == 0 or last)
            if (evaluate or last) and done % self.interval:  # a row that ends early
                filled, ends = filled + 1, [*ends, done]
            totals = rows[:, filled] if filled < ROWS else np.zeros_like(totals)
            for i, end in enumerate(ends):
                row = means(program.metrics, rows[:seeds, i])
                if config.eval_interval:
                    now = evaluate and end == done
                    measured = program.evaluate(state).means() if now else dict.fromkeys(("eval_return", "eval_length"))
                    row |= {
                        name: np.full(seeds, np.nan) if x is None else np.asarray(x)[:seeds]
                        for name, x in measured.items()
                    }
                log.write(end, end * self.batch, row)
                returns = row.get("eval_return", row["episode_return"])
                self.scores = np.where(np.isnan(returns), self.scores, returns)
            self._find_sick(state)
            elapsed = time.monotonic() - began
            self.seconds["run"] += elapsed
            pace = int(max(1, min(8 * pace, CHUNK_SECONDS * count / elapsed)))
            self.progress.advance(done * self.batch * seeds, self.scores, seeds - len(self.sick))

            every, young = self.options.checkpoint_interval, time.monotonic() - saved_at < CHECKPOINT_SECONDS
            if last or signals.received or len(self.sick) == seeds or (done % every == 0 if every else not young):
                self._save(state, totals, done)
                saved_at = time.monotonic()
            if len(self.sick) == seeds:
                first = min(self.sick.values(), key=lambda found: found["update"])
                raise UsageError(
                    f"all {seeds} seeds have turned non-finite, seed {first['seed']} first: {first['cause']} in update "
                    f"{first['update']}; check the environment, or lower --learning-rate. --debug names the operation."
                )
            if signals.received:
                raise Stopped(signals.received, f"saved at update {done:,}; --resume {self.out} goes on from there")
        return state

    def _next_stop(self, done: int) -> int:
        """The update at which an evaluation or a checkpoint is due next, or the last."""
        intervals = (self.config.eval_interval, self.options.checkpoint_interval)
        return min([(done // i + 1) * i for i in intervals if i] + [self.config.num_updates])

    def _find_sick(self, state: TrainState) -> None:
        """Name the seeds that failed since the last look."""
        updates, causes = (x[: len(self.seeds)] for x in jax.device_get(state.failure))
        for i in (int(i) for i in np.flatnonzero(updates) if i not in self.sick):
            found = {"seed": self.seeds[i], "update": int(updates[i]), "cause": CAUSES[causes[i] - 1]}
            self.sick[i] = found
            self.progress.say(
                f"seed {found['seed']}: {found['cause']} not finite in update {found['update']:,}; "
                "frozen as it was before"
            )
            if self.debug:
                raise UsageError(explain(self.config, jax.tree.map(lambda x, i=i: x[i], state), found))

    def _save(self, state: TrainState, totals: np.ndarray, done: int) -> None:
        about = {
            "update": done,
            "env_steps": done * self.batch,
            "score": iqm(self.scores),
            "scores": self.scores,
            "seconds": self.seconds,
            "seeds": self.seeds,
            "settings": self.settings,
        }
        count = len(self.seeds)
        kept = {"state": jax.tree.map(lambda x: x[:count], state), "totals": totals[:count]}
        checkpoints = self.out / "checkpoints"
        checkpoint.save(checkpoints / str(done * self.batch), kept, about)
        checkpoint.prune(checkpoints, self.options.keep_checkpoints)
