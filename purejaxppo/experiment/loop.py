"""Experiments under way: chunks of updates, and what the host does between two of them."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.experiment.host_envs import closing, with_episodes_of
from purejaxppo.experiment.learning_curve import learning_curve
from purejaxppo.experiment.logging import Log
from purejaxppo.experiment.nonfinite import explain
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.program import ROWS, Program, compile_program, means
from purejaxppo.experiment.progress import ProgressLine
from purejaxppo.experiment.signals import Signals, Stopped
from purejaxppo.health import CAUSES
from purejaxppo.parallel.runs import differing_replica, padded_count
from purejaxppo.presets import settings_of, with_settings
from purejaxppo.rundir import checkpoint
from purejaxppo.rundir.checkpoint import Snapshot
from purejaxppo.rundir.metrics import read_metrics
from purejaxppo.rundir.record import RunRecord
from purejaxppo.rundir.summary import Summary, write_summary
from purejaxppo.statistics import iqm
from purejaxppo.train import init
from purejaxppo.types import TrainState

CHUNK_SECONDS = 2.0  # between two looks of the host, for which devices wait for each other: 1.0 costs 4%
CHECKPOINT_SECONDS = 30.0


def padded(config: Config, runs: int, devices: list[jax.Device], options: HostOptions) -> int:
    """Runs, equally many on all devices and in all lots: what is left over trains copies of the last one."""
    return padded_count(runs, len(devices) // options.devices_per_run, options.vmap_size(config, devices))


class Group(NamedTuple):
    """Several run directories that are trained as one program: what a sweep tells a `Run`."""

    swept: tuple[str, ...]  # the numbers in which their settings differ
    out: Path  # where checkpoints of all of them are kept until the end
    sweep: Path  # what is resumed
    runs: int  # that the program is made for
    program: Program | None = None  # compiled before


class Run:
    """A run under way: what its chunks share. With a `group`, all seeds of several run directories."""

    def __init__(
        self,
        records: Sequence[RunRecord],
        devices: list[jax.Device],
        progress: ProgressLine,
        debug: bool = False,
        group: Group | None = None,
    ) -> None:
        first = records[0]
        self.records, self.devices, self.progress, self.debug, self.group = records, devices, progress, debug, group
        self.config, self.seeds, self.out = first.config, first.seeds, group.out if group else first.directory
        self.options = HostOptions.of(first.options)
        self.batch = self.config.num_envs * self.config.num_steps
        self.interval = self.options.log_interval or 1
        self.each = [(record, seed) for record in records for seed in self.seeds]
        count = len(self.each)
        runs = group.runs if group else padded(self.config, count, devices, self.options)
        self.runs = np.asarray([*range(count), *[count - 1] * (runs - count)])
        settings = [settings_of(record.config) for record in records]
        own = {name: np.asarray([x[name] for x in settings], np.float64) for name in (group.swept if group else ())}
        self.swept = {name: np.repeat(np.float32(x), len(self.seeds))[self.runs] for name, x in own.items()}
        self.whole = with_settings(self.config, own)
        seeds = np.asarray([seed for _, seed in self.each], np.uint32)
        self.keys = jax.vmap(partial(jax.random.key, impl=first.prng))(seeds[self.runs])
        self.scores = np.full(count, np.nan)  # last returns of each
        self.sick: dict[int, dict[str, Any]] = {}
        self.seconds = {"compile": 0.0, "run": 0.0}

    @cached_property
    def like(self) -> TrainState:
        """The shapes of all states, which only a run that is resumed must know."""
        return jax.eval_shape(jax.vmap(partial(init, self.config)), self.keys[: len(self.each)])

    def newest(self) -> Snapshot | None:
        """The last checkpoint that is whole, None if none was saved. Raises: UsageError."""
        if not (saved := checkpoint.steps_saved(self.out / "checkpoints")):
            self.progress.say("no checkpoint was saved: beginning anew")
            return None
        seeds = [seed for _, seed in self.each]
        snapshot = checkpoint.newest_whole(
            saved, lambda found: found.check(self.whole, seeds, self.like), self.progress.warn
        )
        if snapshot.about["update"] > self.config.num_updates:
            raise UsageError(
                f"{snapshot.directory} has {snapshot.about['update']} updates already; raise --total-steps."
            )
        return snapshot

    def compile(self) -> Program:
        """All that the run needs."""
        return compile_program(self.config, self.devices, self.keys, self.options, self.swept)

    def drive(self, snapshot: Snapshot | None = None) -> list[Summary]:
        """Go on from a checkpoint, or from the beginning, to the end; what came of it, by run directory."""
        try:
            with closing(self.config.environment, [self.each[run][1] for run in self.runs], self._again):
                return self._drive(snapshot)
        except OSError as error:
            raise OSError(f"{error}; the last checkpoint is whole: make room, then --resume {self._again}") from error

    @property
    def _again(self) -> Path:
        return self.group.sweep if self.group else self.out

    def _drive(self, snapshot: Snapshot | None) -> list[Summary]:
        config, progress, count = self.config, self.progress, len(self.each)
        done = snapshot.about["update"] if snapshot else 0
        if snapshot:
            self.seconds = dict(snapshot.about["seconds"])
            self.scores = np.asarray(snapshot.about["scores"], np.float64)
        if config.env_steps != config.total_steps:
            progress.say(
                f"total_steps = {config.total_steps:,} is rounded up to {config.env_steps:,}: {config.num_updates:,} "
                f"updates of {self.batch:,} steps."
            )
        if not config.environment.has_time_limit:
            progress.say(
                f"{config.env} declares no time limit: evaluations cut episodes off after eval_max_steps = "
                f"{config.eval_max_steps:,}"
            )
        with Signals() as signals, progress, ExitStack() as stack:
            logs = [
                stack.enter_context(
                    Log(x.directory, self.seeds, self.options, settings_of(x.config), done, done * self.batch + 1)
                )
                for x in self.records
            ]
            program = self.group.program if self.group else None
            if program is None:
                progress.stage("compiling")
                program = signals.wait(self.compile, give_up=True)
            self.seconds["compile"] += program.compile_seconds
            progress.stage("training", done * self.batch * count, config.env_steps * count)
            starts = jax.vmap(jax.random.fold_in, (0, None))(self.keys, done) if config.on_host and done else self.keys
            state, totals = (
                program.init(starts, self.swept),
                np.zeros((len(self.runs), len(program.metrics)), np.float32),
            )
            if snapshot:
                fresh, restored = state, checkpoint.unflatten(snapshot, self.like, "state.")
                state = jax.tree.map(lambda new, old: jax.device_put(old[self.runs], new.sharding), fresh, restored)
                if config.on_host:
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
            state, totals = self.train(program, state, totals, done, signals, logs)
            progress.stage("evaluating")
            evaluation = signals.wait(lambda: jax.device_get(program.final(state)), give_up=True)
        if cut := int(np.sum(evaluation.cut[:count])):
            progress.warn(
                f"{cut:,} of {evaluation.cut[:count].size:,} episodes of the final evaluation were cut off after "
                f"eval_max_steps = {config.eval_max_steps:,}"
            )
        returns = np.asarray(evaluation.returns[:count]).mean(axis=1)
        if self.group:
            state = jax.device_get(state)  # once, for the checkpoints of all run directories
        return [self._conclude(i, returns, state, totals) for i in range(len(self.records))]

    def _conclude(self, i: int, returns: np.ndarray, state: TrainState, totals: Any) -> Summary:
        """What came of the i-th run directory. Of the seconds of a group it gets its share."""
        record, size = self.records[i], len(self.seeds)
        own = range(i * size, (i + 1) * size)
        if self.group:
            self._save(
                record.directory, slice(own.start, own.stop), record.config, state, totals, self.config.num_updates
            )
        seconds = {name: x / len(self.records) for name, x in self.seconds.items()}
        sick = [found for j, found in self.sick.items() if j in own]
        summary = write_summary(record, returns[own.start : own.stop], sick, seconds, self.devices)
        curve = read_metrics(record.directory / "metrics.csv", "episode_return", size)
        learning_curve(record.directory / "learning_curve.png", f"{summary['algo']} on {summary['env']}", *curve)
        return summary

    def train(
        self, program: Program, state: TrainState, totals: Any, done: int, signals: Signals, logs: list[Log]
    ) -> tuple[TrainState, Any]:
        """Make all updates after `done`, log and save; `totals` [runs, columns] are what the present row has so far."""
        config, runs, pace, saved_at = self.config, len(self.each), 1, time.monotonic()
        while done < config.num_updates:
            began = time.monotonic()
            count = min(self._next_stop(done) - done, pace, ROWS * self.interval - done % self.interval)
            chunk = program.advance(state, self.swept, totals, np.int32(done), np.int32(count))
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
                row = means(program.metrics, rows[:runs, i])
                if config.eval_interval:
                    now = evaluate and end == done
                    measured = program.evaluate(state).means() if now else dict.fromkeys(("eval_return", "eval_length"))
                    row |= {
                        name: np.full(runs, np.nan) if x is None else np.asarray(x)[:runs]
                        for name, x in measured.items()
                    }
                for j, log in enumerate(logs):
                    own = slice(j * len(self.seeds), (j + 1) * len(self.seeds))
                    log.write(end, end * self.batch, {name: x[own] for name, x in row.items()})
                returns = row.get("eval_return", row["episode_return"])
                self.scores = np.where(np.isnan(returns), self.scores, returns)
            self._find_sick(state)
            elapsed = time.monotonic() - began
            self.seconds["run"] += elapsed
            pace = int(max(1, min(config.num_updates, CHUNK_SECONDS * count / elapsed)))
            self.progress.advance(done * self.batch * runs, self.scores, runs - len(self.sick))

            every, young = self.options.checkpoint_interval, time.monotonic() - saved_at < CHECKPOINT_SECONDS
            if last or signals.received or len(self.sick) == runs or (done % every == 0 if every else not young):
                self._save(self.out, slice(runs), self.whole, state, totals, done)
                saved_at = time.monotonic()
            if len(self.sick) == runs and not self.group:
                first = min(self.sick.values(), key=lambda found: found["update"])
                raise UsageError(
                    f"all {runs} seeds have turned non-finite, seed {first['seed']} first: {first['cause']} in update "
                    f"{first['update']}; check the environment, or lower --learning-rate. --debug names the operation."
                )
            if signals.received:
                raise Stopped(signals.received, f"saved at update {done:,}; --resume {self._again} goes on from there")
        return state, totals

    def _next_stop(self, done: int) -> int:
        """The update at which an evaluation or a checkpoint is due next, or the last."""
        intervals = (self.config.eval_interval, self.options.checkpoint_interval)
        return min([(done // i + 1) * i for i in intervals if i] + [self.config.num_updates])

    def _find_sick(self, state: TrainState) -> None:
        """Name the seeds that failed since the last look."""
        updates, causes = (x[: len(self.each)] for x in jax.device_get(state.failure))
        for i in (int(i) for i in np.flatnonzero(updates) if i not in self.sick):
            record, seed = self.each[i]
            found = {"seed": seed, "update": int(updates[i]), "cause": CAUSES[causes[i] - 1]}
            self.sick[i] = found
            who = f"{record.directory.name}, seed {seed}" if self.group else f"seed {seed}"
            self.progress.say(
                f"{who}: {found['cause']} not finite in update {found['update']:,}; frozen as it was before"
            )
            if self.debug:
                raise UsageError(explain(record.config, jax.tree.map(lambda x, i=i: x[i], state), found))
        if self.debug and (name := differing_replica(state)):
            raise UsageError(f"{name} differs between devices that share a run; without --debug, it would not be told.")

    def _save(self, out: Path, runs: slice, config: Config, state: TrainState, totals: np.ndarray, done: int) -> None:
        """A checkpoint of some runs in `out`."""
        about = {
            "update": done,
            "env_steps": done * self.batch,
            "score": iqm(self.scores[runs]),
            "scores": self.scores[runs],
            "seconds": self.seconds,
            "seeds": [seed for _, seed in self.each[runs]],
            "settings": settings_of(config),
        }
        here = jax.device_get(state)  # cut on a device, each shape would need a kernel compiled for it
        kept = {"state": jax.tree.map(lambda x: x[runs], here), "totals": totals[runs]}
        checkpoint.save(out / "checkpoints" / str(done * self.batch), kept, about)
        checkpoint.prune(out / "checkpoints", self.options.keep_checkpoints)
