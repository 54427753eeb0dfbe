"""Trials trained together: one compiled program for all lots whose static settings are equal."""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from purejaxppo.config import Config
from purejaxppo.experiment.loop import PATIENCE
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.program import Program, compile_program
from purejaxppo.experiment.progress import ProgressLine
from purejaxppo.experiment.run_batch import RunBatch
from purejaxppo.experiment.signals import Signals, Stopped
from purejaxppo.experiment.timetable import chunk_updates
from purejaxppo.parallel.runs import laid_out
from purejaxppo.rundir.learnt import read_learnt
from purejaxppo.rundir.record import RunRecord
from purejaxppo.rundir.snapshot import Arrays, Snapshot, flatten
from purejaxppo.types import Learnt

_NEVER = 10**9  # updates


class Trained(NamedTuple):
    """What came of some members that were trained together."""

    returns: np.ndarray  # [members, S] mean returns of an evaluation; NaN: the seed's numbers are not finite any more
    evaluation_steps: np.ndarray  # [members] int, of all seeds and episodes
    states: list[Arrays]  # of each member: its whole training state, arrays [S, ...] by path


class Trainer:
    """Trains lots of at most `size` configs, each on all seeds. Configs of one program differ in `numbers` alone."""

    def __init__(
        self,
        seeds: list[int],
        numbers: tuple[str, ...],
        size: int,
        devices: list[jax.Device],
        record: RunRecord,
        progress: ProgressLine,
        signals: Signals,
    ) -> None:
        """`record` is the study's."""
        self.seeds, self.numbers, self.devices, self.record = seeds, numbers, devices, record
        self.progress, self.signals, self.size = progress, signals, size
        self.way_out = ""  # what is said where a signal ends it
        self.programs: dict[str, Program] = {}
        self.learnt: dict[str, Learnt] = {}  # by the programs' names, if trials begin with what another run has learnt
        self._pace = 1  # updates per call, as the lots so far were found to take

    def train(self, static: str, configs: list[Config], done: int, until: int, states: list[Arrays] | None) -> Trained:
        """Train all from update `done`, where they have `states`, to update `until`, and evaluate them.

        Args:
            static: what the configs' static settings are known by: equal for all that share a program.
            states: None: from the beginning.

        Raises:
            UsageError: it does not fit into memory.
            Stopped: by a signal.
        """
        runs = self._batch(static, configs)
        program = self._program(static, runs)
        state = self.signals.wait(
            lambda: program.init(runs.keys, runs.swept, runs.learnt), patience=0.0, left=self.way_out
        )
        if states is not None:
            together = {f"state.{path}": np.concatenate([own[path] for own in states])[runs.rows] for path in states[0]}
            keys, directory = dict.fromkeys(together, self.record.prng), self.record.directory / "states"
            state = laid_out(Snapshot(together, keys, {}, directory).state(state), state)
        state = self._advance(program, runs, state, done, until)
        count, size, members = len(configs), len(self.seeds), len(runs.members)
        played = self.signals.wait(lambda: jax.device_get(program.final(state, runs.swept)), PATIENCE, self.way_out)
        sick = np.asarray(jax.device_get(state.failure.update))[:members] > 0  # frozen: what it last was is no result
        returns = np.where(sick[:, None], np.nan, np.asarray(played.returns[:members], np.float64))
        arrays = flatten(state)
        kept = [{path: x[i * size : (i + 1) * size] for path, x in arrays.items()} for i in range(count)]
        return Trained(
            returns.reshape(count, size, -1).mean(-1),
            np.asarray(played.lengths[:members], np.int64).reshape(count, -1).sum(-1),
            kept,
        )

    def _advance(self, program: Program, runs: RunBatch, state: Any, done: int, until: int) -> Any:
        """In chunks of a few seconds, between which signals are heard."""
        totals = np.zeros((len(runs.rows), len(program.metrics)), np.float32)
        while done < until:
            began, count = time.monotonic(), min(self._pace, until - done)

            def chunk(state: Any = state, done: int = done, count: int = count) -> Any:
                return jax.block_until_ready(
                    program.advance(state, runs.swept, totals, np.int32(done), np.int32(count))
                )

            state, _ = self.signals.wait(chunk, PATIENCE, self.way_out)
            if self.signals.received:
                raise Stopped(self.signals.received, self.way_out)
            done += count
            self._pace = chunk_updates(count, time.monotonic() - began, _NEVER)
        return state

    def _batch(self, static: str, configs: list[Config]) -> RunBatch:
        episodes, begin = configs[0].eval_episodes, self.record.options.get("init_from", "")
        if begin and static not in self.learnt:
            self.learnt[static] = read_learnt(Path(begin), configs[0])
        options = HostOptions(log_interval=_NEVER, final_episodes=episodes, init_from=begin)
        own = self.record._replace(
            directory=self.record.directory / "states", seeds=self.seeds, options=dataclasses.asdict(options)
        )
        records = [own._replace(config=config.replace(eval_interval=0)) for config in configs]
        size = options.padded(configs[0], self.size * len(self.seeds), self.devices)
        return RunBatch(records, self.devices, self.numbers, size, source=self.learnt.get(static))

    def _program(self, static: str, runs: RunBatch) -> Program:
        if static not in self.programs:
            self.progress.stage("compiling")
            program = self.signals.wait(partial(compile_program, runs), patience=0.0, left=self.way_out)
            program.check_fit(self.devices, "all trials of a lot", "--places, --seeds-per-trial or --num-envs")
            self.programs[static] = program
        return self.programs[static]
