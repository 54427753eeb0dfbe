"""Environments in processes of their own: a few workers, each with several, over memory shared with this process."""

import contextlib
import itertools
import json
import math
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from purejaxppo.envs.host import worker as gymnasium_worker
from purejaxppo.envs.host.worker import SKIP, STEP, Layout, size, views

SILENT_SECONDS = 60.0  # after which an environment that has not answered is named
_NUMBERS = itertools.count(1)


class EnvironmentBrokenError(RuntimeError):
    """An environment failed: the `index`-th of the `run`-th of those that are vmapped and spread over devices."""

    def __init__(self, name: str, run: int, index: int, how: str) -> None:
        super().__init__(f"{name}: environment {index} of run {run} {how}")
        self.name, self.run, self.index, self.how = name, run, index, how


class Plan(NamedTuple):
    """What a worker must know to make environments."""

    name: str
    params: dict[str, Any]
    layout: Layout  # of one environment's rows
    # path in Gymnasium's observation; start and number of integers, or 0
    entries: dict[str, tuple[list[Any], int, int]]
    separate_mask: bool  # which actions are valid is told beside the observation
    tells_success: bool  # at the end of an episode, by `info["is_success"]`
    step_timeout: float | None  # seconds
    action: tuple[str, tuple[int, ...]]  # dtype and shape of what the last columns of `commands` are


class _Process(NamedTuple):
    process: "subprocess.Popen[bytes]"
    rows: slice  # its environments
    ask: int  # pipes
    answer: int


class Pool:
    """N environments. Nothing of it outlives this process: the memory has no name, and workers end with their parent.

    Workers that are `awake` wait for a step without sleeping, for a while: there should be no more of them than cores.

    `arrays` [N, …], to be read after a step: `reward`, `terminated`, `truncated`, `reached:entry` (what a step led to)
    and `start:entry` (of the episode that begins after an end, or with a reset).
    """

    def __init__(self, plan: Plan, num_envs: int, workers: int, awake: bool) -> None:
        self.name, self.num_envs, self.lock = plan.name, num_envs, threading.Lock()
        self._step_timeout = math.inf if plan.step_timeout is None else plan.step_timeout
        self.slots = np.arange(num_envs, dtype=np.int32)
        self.begin(0, num_envs)
        floats_first = sorted(plan.layout.items(), key=lambda x: x[1][0] != "float32")
        plan = plan._replace(layout=dict(floats_first))
        total = size(plan.layout, num_envs)
        with _nameless() as file:
            file.truncate(total)
            memory = mmap.mmap(file.fileno(), total)
            self.arrays = views(memory, plan.layout, num_envs)
            edges = np.linspace(0, num_envs, min(workers, num_envs) + 1).astype(int).tolist()
            parts = itertools.pairwise(edges)
            self._workers = [self._start(plan, file.fileno(), awake, first, last) for first, last in parts]
        self._floats = [name for name, x in self.arrays.items() if x.dtype == np.float32]
        bytes_of_floats = size({name: plan.layout[name] for name in self._floats}, num_envs)
        self._all_floats = np.frombuffer(memory, np.float32, bytes_of_floats // 4)  # 0 between arrays

    def begin(self, first_run: int, per_run: int) -> None:
        """Be another pool from here on: what names the old one finds it no more.

        Args:
            first_run: the first of its runs, of those that are spread over devices together.
            per_run: environments of each run, which lie next to one another.
        """
        self.number, self._first_run, self._per_run = next(_NUMBERS), first_run, per_run
        self.named = np.stack([np.full_like(self.slots, self.number), self.slots], axis=1).tobytes()  # all of them

    def broken(self, index: int, how: str) -> EnvironmentBrokenError:
        """What is to be raised of the environment in a slot."""
        return EnvironmentBrokenError(self.name, self._first_run + index // self._per_run, index % self._per_run, how)

    def _start(self, plan: Plan, memory: int, awake: bool, first: int, last: int) -> _Process:
        (asked, ask), (answer, answered) = os.pipe(), os.pipe()
        about = plan._asdict() | {
            **{"memory": memory, "ask": asked, "answer": answered, "parent": os.getpid(), "path": sys.path},
            **{"num_envs": self.num_envs, "first": first, "last": last, "awake": awake},
        }
        process = subprocess.Popen(
            [sys.executable, "-P", str(Path(gymnasium_worker.__file__)), json.dumps(about)],
            stdin=subprocess.DEVNULL,
            pass_fds=(memory, asked, answered),
            start_new_session=True,  # Ctrl-C is the parent's alone; and a group, to be killed with what it started
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        os.close(asked)
        os.close(answered)
        return _Process(process, slice(first, last), ask, answer)

    def step(self, slots: np.ndarray | slice, todo: int, commands: np.ndarray) -> None:
        """Let the environments `slots` do what `todo` says; `commands` [n, …] int32 are their rows, see the worker.

        Raises:
            EnvironmentBrokenError: one failed, gave a number that is not finite, or its process ended. All are closed.
        """
        if not self._workers:
            raise self.broken(0, "was closed after a failure")
        self.arrays["do"][slots] = todo  # all are SKIP once the workers have answered
        self.arrays["commands"][slots] = commands
        try:
            for worker in self._workers:
                with contextlib.suppress(BrokenPipeError):  # its process has ended: `_wait_for` says so
                    os.write(worker.ask, b".")
            for worker in self._workers:
                self._wait_for(worker)
            self._check_finite()
        except BaseException:
            self.close()
            raise

    def _wait_for(self, worker: _Process) -> None:
        """Until it answers. Raises: EnvironmentBrokenError, also if one environment takes too long."""
        at, ready, limit = (-1, SKIP), select.poll(), math.inf
        silent_at = ends = math.inf
        ready.register(worker.answer, select.POLLIN)
        while not ready.poll(1000.0 * min(1.0, SILENT_SECONDS, self._step_timeout)):
            index = self._at_work(worker)
            if at != (at := (index, int(self.arrays["do"][index]))):  # what was asked before is done
                limit = self._step_timeout if at[1] == STEP else max(self._step_timeout, SILENT_SECONDS)
                silent_at, ends = (time.monotonic() + seconds for seconds in (SILENT_SECONDS, limit))
            if worker.process.poll() is not None and not ready.poll(0):
                said = b""  # not an end of file: processes that it started may hold the pipe open
                break
            if time.monotonic() > ends:
                what = "a reset, for which it has" if limit != self._step_timeout else "step_timeout ="
                raise self.broken(self._at_work(worker), f"did not answer within {what} {limit:g} s")
            if time.monotonic() > silent_at:
                silent_at = math.inf
                self._warn_of_silence(worker)
        else:
            said = os.read(worker.answer, 1)
        if said == gymnasium_worker.DONE:
            return
        if said == gymnasium_worker.FAILED:
            with os.fdopen(os.dup(worker.answer), "rb") as answer:
                failure = json.loads(answer.readline())
            raise self.broken(failure["index"], failure["how"])
        code = worker.process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise self.broken(self._at_work(worker), f"ended its process ({name})")

    def _at_work(self, worker: _Process) -> int:
        """Which of a worker's environments has not answered: the first that was not done."""
        return worker.rows.start + int((self.arrays["do"][worker.rows] != SKIP).argmax())

    def _warn_of_silence(self, worker: _Process) -> None:
        silent = self.broken(self._at_work(worker), f"has not answered for {SILENT_SECONDS:g} s")
        with contextlib.suppress(OSError, ValueError):  # nobody may read it any more
            text = f"warning: {silent} (process {worker.process.pid}); waiting on. A second Ctrl-C ends the run."
            print(text, file=sys.stderr, flush=True)

    def _check_finite(self) -> None:
        """Raises: EnvironmentBrokenError."""
        with np.errstate(invalid="ignore"):  # inf - inf
            total = self._all_floats.sum(dtype=np.float64)  # in which large numbers do not overflow
        if math.isfinite(total):
            return
        for name in self._floats:
            finite = np.isfinite(self.arrays[name]).reshape(self.num_envs, -1).all(axis=1)
            if not finite.all():
                what = "a reward" if name == "reward" else "an observation"
                raise self.broken(int(np.flatnonzero(~finite)[0]), f"gave {what} that is not finite")

    def close(self) -> None:
        """Let the workers close their environments, and end them, and what those have started."""
        workers, self._workers = self._workers, []  # at once: another thread may close them, too
        for worker in workers:
            os.close(worker.ask)  # which asks them to
        ends = time.monotonic() + gymnasium_worker.CLOSE_SECONDS
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, ends - time.monotonic()))
            with contextlib.suppress(ProcessLookupError, PermissionError):  # none is left
                os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
            os.close(worker.answer)


def _nameless() -> Any:
    """A file without a name, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("purejaxppo"), "r+b")
    return tempfile.TemporaryFile()
