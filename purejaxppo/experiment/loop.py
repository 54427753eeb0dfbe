"""The training loop on the host: compiled chunks of updates, and what is logged, saved and said between two of them."""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purejaxppo.config import Config
from purejaxppo.envs.base import host_failures
from purejaxppo.errors import UsageError
from purejaxppo.experiment.batch_log import BatchLog
from purejaxppo.experiment.chunk_report import ChunkReport, tidy_rows
from purejaxppo.experiment.failures import explain, file_remedy
from purejaxppo.experiment.program import ROWS, Program, compile_program, means
from purejaxppo.experiment.progress import ProgressLine
from purejaxppo.experiment.run_batch import RunBatch
from purejaxppo.experiment.signals import Signals, Stopped
from purejaxppo.experiment.timetable import chunk_updates
from purejaxppo.health import CAUSES
from purejaxppo.keys import RESUMED
from purejaxppo.parallel.hosts import group
from purejaxppo.parallel.runs import differing_replica, on_host
from purejaxppo.rundir.checkpoint import steps_saved
from purejaxppo.rundir.snapshot import Snapshot
from purejaxppo.rundir.summary import FailedSeed, Summary
from purejaxppo.types import TrainState

PATIENCE = 6.0  # seconds after SIGTERM that a chunk, or an evaluation between two, may still take


class Loop:
    """One batch of runs on its way from the first update to the last."""

    def __init__(
        self,
        runs: RunBatch,
        progress: ProgressLine,
        debug: bool = False,
        on_chunk: Callable[[ChunkReport], Any] | None = None,
        keep: bool = True,
    ) -> None:
        """`keep`: write checkpoints. Raises, from all of its methods: as `run_experiment`."""
        self.runs, self.progress, self.debug, self.on_chunk, self.keep = runs, progress, debug, on_chunk, keep
        self.due = runs.timetable
        self.callback_error: BaseException | None = None  # which is no file's, even if it is an OSError
        self.done = self.saved = 0  # updates, and those that the last checkpoint has
        self.saved_at, self.logged = 0.0, False
        self.returns = np.full(len(runs.members), np.nan)  # the last known of each member
        self.failed: dict[int, FailedSeed] = {}  # by member; of others than this process's, process 0 alone knows
        self.seconds = {"compile": 0.0, "run": 0.0, "evaluation": 0.0, "saving": 0.0}
        # set by `_start`
        self.program: Program
        self.state: TrainState  # [runs]
        self.totals: np.ndarray  # [own runs, columns] sums of what the present row of the log has so far

    @property
    def config(self) -> Config:
        return self.runs.config

    @property
    def env_steps(self) -> int:
        """Made so far, of each seed."""
        return self.done * self.config.steps_per_update

    def run(self, snapshot: Snapshot | None = None, program: Program | None = None) -> list[Summary]:
        """Train from a checkpoint, or from the beginning, to the end, evaluate, and write the summaries."""
        runs, config = self.runs, self.config
        for note in runs.notes:
            self.progress.say(note)
        self.done = self.saved = snapshot.about["update"] if snapshot else 0
        seeds = [runs.members[row][1] for row in runs.rows]
        try:
            with (
                config.environment as env,
                host_failures(env, seeds, lambda: self.way_out("mend the environment, then ")),
                Signals(self.progress.tick) as self.signals,
                self.progress,
                contextlib.ExitStack() as stack,
            ):
                if group().count > 1:
                    group().way_out = self.way_out
                known = snapshot.about.get("logs") if snapshot else None  # older versions' checkpoints have none
                self.log = BatchLog(runs, self.done, known, stack, shows_rows=self.on_chunk is not None)
                self._start(snapshot, program)
                self._train()
                played = self._final_evaluation()
            if runs.out:  # the members' checkpoints are together, and now each gets its own
                self.state = jax.device_get(self.state)
                for i, x in enumerate(runs.records):
                    self._save(x.directory, runs.members_of(i), x.config, slice(i, i + 1))
            self._count_seconds()
            outcome = played, self.failed, self.seconds, self.done
            logs = [self.log.of_returns(i, self.done) for i in range(len(runs.records))]
            return [group().by_leader(partial(runs.write_outcome, i, log, *outcome)) for i, log in enumerate(logs)]
        except OSError as error:
            if error is self.callback_error:
                raise
            raise OSError(f"{error}; {self.way_out(file_remedy(error, runs.directory))}") from error

    def way_out(self, remedy: str = "") -> str:
        """How to go on after a failure; `remedy` is to be done before."""
        if not self.keep:
            return f"{remedy}begin anew: without out=DIR, nothing is kept"
        saved = self.saved or steps_saved(self.runs.directory / "checkpoints")  # by others, of several processes
        if not self.logged and not saved and group().count == 1:  # several leave config.json behind
            return f"nothing was saved yet: {remedy}begin anew"
        what = "the last checkpoint is whole" if saved else "no checkpoint was saved yet"
        return f"{what}: {remedy}{self.runs.resume_command}"

    def _start(self, snapshot: Snapshot | None, program: Program | None) -> None:
        """Compile, if that was not done before, and make or restore the state."""
        runs, config = self.runs, self.config
        if program is None:
            self.progress.stage("compiling")
            program = self.signals.wait(partial(compile_program, runs), patience=0.0)
            program.check_fit(runs.devices, "all seeds", "--num-seeds, --num-envs or --num-steps")
        self.program = program
        for note in program.notes if self.debug else ():
            self.progress.say(note)
        if snapshot:
            self.seconds |= snapshot.about["seconds"]
            self.returns = np.asarray(snapshot.about["scores"], np.float64)
        self.seconds["compile"] += program.compile_seconds
        self.began = time.monotonic() - self.seconds["run"]
        per_update = self.config.steps_per_update * len(runs.members)
        self.progress.stage("training", self.done * per_update, config.num_updates * per_update)
        keys = runs.keys
        if config.on_host and self.done:  # other episodes than at the beginning
            keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, RESUMED), self.done))(keys)
        self.state = self.signals.wait(lambda: program.init(keys, runs.swept, runs.learnt), patience=0.0)
        self.totals = np.zeros((runs.own_rows.stop - runs.own_rows.start, len(program.metrics)), np.float32)
        if snapshot:
            self.state, self.totals = runs.restored(snapshot, self.state, len(program.metrics))
            if runs.out:
                self.progress.say(f"going on from update {self.done:,} of {config.num_updates:,}")
            if config.on_host:
                self.progress.say("environments on the host cannot be restored: all begin new episodes")
        self._find_failed()

    def _train(self) -> None:
        """Make all updates, or as many as it takes until all members have failed."""
        runs, members, pace = self.runs, len(self.runs.members), 1
        self.saved_at = time.monotonic()
        rows: list[tuple[int, dict[str, np.ndarray]]] = []
        if self.due.row_ends(self.done) and self.totals[0, -1]:  # it was interrupted while it evaluated
            rows = [(self.done, self._end_row(self.done, self.totals))]
            self.totals = np.zeros_like(self.totals)
        ended = group().told(len(self.failed) == members)
        while self.done < self.config.num_updates and not ended:
            began, before = time.monotonic(), self.done
            rows += self._advance(pace)
            self._find_failed()
            own = time.monotonic() - began, self.signals.received
            pace, due, signum, ended = group().decided(own, partial(self._decide, self.done - before))
            alive, each = members - len(self.failed), "run" if runs.records[1:] else "seed"
            self.progress.advance(self.env_steps * members, self.returns, alive, each)
            if due:
                self.save()
            if self.on_chunk:
                self._report(self.on_chunk, rows)
            rows = []
            if signum:
                raise Stopped(signum, self._kept())
        if rows and self.on_chunk:  # of a run that was interrupted at its end
            self._report(self.on_chunk, rows)
        if ended and not runs.out:  # in a sweep, others may be better
            group().by_leader(self._tell_all_failed)

    def _decide(self, updates: int, values: list[tuple[float, int]]) -> tuple[int, bool, int, bool]:
        """What all processes do after a chunk of so many `updates`, of the seconds and signals of each.

        How many updates come next, whether to save, the signal to stop for, and whether all members have failed.
        """
        seconds, signum = (max(column) for column in zip(*values, strict=True))
        ended = len(self.failed) == len(self.runs.members)
        pace = chunk_updates(updates, seconds, self.config.num_updates)
        save = self.due.saves(self.done, time.monotonic() - self.saved_at)
        return pace, bool(signum) or ended or save, int(signum), ended

    def _tell_all_failed(self) -> None:
        first = min(self.failed.values(), key=lambda found: found["update"])
        raise UsageError(
            f"all {len(self.failed)} seeds have turned non-finite, seed {first['seed']} first: {first['cause']} in "
            f"update {first['update']}; check the environment, or lower --learning-rate. --debug names the operation."
        )

    def _advance(self, at_most: int) -> list[tuple[int, dict[str, np.ndarray]]]:
        """Make a chunk of updates and log its rows, which are returned: the update that each ends with, and metrics."""
        runs, done, program, interval = self.runs, self.done, self.program, self.due.rows_every
        count = min(self.due.next_stop(done) - done, at_most, ROWS * interval - done % interval)

        def chunk() -> Any:
            given = (self.state, runs.swept, runs.spread(self.totals), np.int32(done), np.int32(count))
            return jax.block_until_ready(program.advance(*given))

        self.state, sums = self.signals.wait(chunk, PATIENCE, f"the update under way takes long; {self.way_out()}")
        filled, sums = (done % interval + count) // interval, on_host(sums)
        ends = [(done // interval + 1 + i) * interval for i in range(filled)]
        self.done = done = done + count
        if self.due.row_ends(done) and done % interval:  # early
            filled, ends = filled + 1, [*ends, done]
        self.totals = sums[:, filled] if filled < ROWS else np.zeros_like(self.totals)
        return [(end, self._end_row(end, sums[:, i])) for i, end in enumerate(ends)]

    def _end_row(self, end: int, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Log the row that ends with update `end`, of sums [runs, columns], and return it: each metric [members].

        Raises:
            Stopped: by a signal while it evaluates. What is saved then ends the row when the run goes on.
        """
        own = means(self.program.metrics, sums[: self.runs.own_count])
        if self.config.eval_interval:
            due, signum = self.due.evaluates(end) and end == self.done, 0
            try:
                own |= self._evaluate(due)
            except Stopped:
                signum = self.signals.received
            if due and (signum := group().decided(signum, max)):
                self.totals = sums
                self.save()
                raise Stopped(signum, self._kept())
        row = self.log.write(end, own)
        self.logged = True
        returns = row.get("eval_return", row["episode_return"])
        self.returns = np.where(np.isnan(returns), self.returns, returns)
        return row

    def _kept(self) -> str:
        """What a signal leaves, in words."""
        saved = f"saved at update {self.done:,}; {self.runs.resume_command} goes on from there"
        return saved if self.keep else "nothing is kept without out=DIR"

    def _evaluate(self, now: bool) -> dict[str, np.ndarray]:
        """Means over the episodes of an evaluation at an interval, [own] each; NaN without one, or after a failure."""
        members = self.runs.own_count
        if not now:
            told = ["eval_success_rate"] if self.config.environment.tells_success else []
            return {name: np.full(members, np.nan) for name in ("eval_return", "eval_length", *told)}
        with self._timed("evaluation"):
            evaluate, failure = self.program.evaluate, self.state.failure.cause
            work = lambda: on_host((evaluate(self.state, self.runs.swept).means(), failure))  # noqa: E731
            measured, cause = self.signals.wait(work, PATIENCE)
        return {name: np.where(np.asarray(cause) > 0, np.nan, x)[:members] for name, x in measured.items()}

    def _final_evaluation(self) -> dict[str, np.ndarray]:
        """Means over the episodes of the evaluation after training, [members] each."""
        self.progress.stage("evaluating")
        with self._timed("evaluation"):
            played = self.signals.wait(lambda: on_host(self.program.final(self.state, self.runs.swept)), patience=0.0)
        own = slice(self.runs.own_count)
        returns, cuts = np.asarray(played.returns[own]).mean(axis=1), np.asarray(played.cut[own])
        found = {"eval_return": returns, "cut": cuts.sum(axis=1)}
        if self.config.environment.tells_success:
            found["eval_success_rate"] = np.asarray(played.success[own]).mean(axis=1)
        everybody = self.runs.of_all(found)
        if cut := int(np.sum(everybody["cut"])):
            self.progress.warn(
                f"{cut:,} of {len(everybody['cut']) * cuts.shape[1]:,} episodes of the final evaluation were cut off "
                f"after eval_max_steps = {self.config.eval_max_steps:,}"
            )
        return everybody

    def _find_failed(self) -> None:
        """Name the members that failed since the last look. Raises: UsageError, with `debug`, for the first."""
        members, own = self.runs.members, slice(self.runs.own_count)
        found_here = (np.asarray(x[own]) for x in on_host(self.state.failure))
        updates, causes = self.runs.of_all(dict(zip(("update", "cause"), found_here, strict=True))).values()
        for i in (int(i) for i in np.flatnonzero(updates) if i not in self.failed):
            record, seed = members[i]
            found = FailedSeed(seed=seed, update=int(updates[i]), cause=CAUSES[causes[i] - 1])
            self.failed[i] = found
            who = f"{record.directory.name}, seed {seed}" if self.runs.out else f"seed {seed}"
            what = f"{found['cause']} not finite in update {found['update']:,}"
            self.progress.say(f"{who}: {what}; frozen as it was before")
            here = i - self.runs.own.start
            if self.debug and self.runs.shared:
                raise UsageError(f"{who}: {what}; where others share a run, --debug cannot name the operation.")
            if self.debug and 0 <= here < self.runs.own_count:
                alone = jax.tree.map(lambda x, here=here: x[here], on_host(self.state))
                raise UsageError(self.signals.wait(partial(explain, record.config, alone, found), patience=0.0))
        if self.debug and (name := differing_replica(self.state)):
            raise UsageError(f"{name} differs between devices that share a run; without --debug, it would not be told.")

    def _report(self, on_chunk: Callable[[ChunkReport], Any], rows: list[tuple[int, dict[str, np.ndarray]]]) -> None:
        """Call back. What that raises ends the run, once all is saved."""
        columns = tidy_rows(rows, self.runs.records[0].seeds, self.config.steps_per_update)
        failed = [found.copy() for found in self.failed.values()]
        made = self.done, self.config.num_updates, self.env_steps
        try:
            on_chunk(ChunkReport(*made, columns, self.returns.copy(), failed))
        except BaseException as error:
            self.callback_error = error
            if self.saved < self.done and group().count == 1:  # others would have to come, too
                self.save()
            raise

    def save(self) -> None:
        """A checkpoint of all members."""
        if self.keep:
            self._save(self.runs.directory, slice(0, len(self.runs.members)), self.runs.full_config, slice(None))
            self.saved, self.saved_at = self.done, time.monotonic()

    def _save(self, directory: Path, members: slice, config: Config, records: slice) -> None:
        """A checkpoint of some members, which these run directories are of."""
        with self._timed("saving"):
            self._count_seconds()
            what = directory, members, config, self.done, self.state, self.totals, self.returns, self.seconds
            self.runs.write_checkpoint(*what, self.log.written(records))

    def _count_seconds(self) -> None:
        self.seconds["run"] = time.monotonic() - self.began

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - began
