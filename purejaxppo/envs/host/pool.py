"""Environments in processes of their own: a few workers, each with several, over memory shared with this process."""

import contextlib
import itertools
import json
import math
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from purejaxppo.envs.host import worker as gymnasium_worker
from purejaxppo.envs.host.worker import SKIP, Layout, size, views

_NUMBERS = itertools.count(1)


class EnvironmentBrokenError(RuntimeError):
    """An environment failed: `index` is which of the pool's, the message how."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


class Plan(NamedTuple):
    """What a worker must know to make environments."""

    name: str
    params: dict[str, Any]
    layout: Layout  # of one environment's rows
    paths: dict[str, list[Any]]  # entry of the observation ↦ where it is in Gymnasium's
    starts: dict[str, int]  # entry ↦ what its first integer is
    action: tuple[str, tuple[int, ...]]  # dtype and shape of what the last columns of `told` are


class _Process(NamedTuple):
    process: "subprocess.Popen[bytes]"
    first: int  # of its environments
    ask: int  # pipes
    answer: int


class Pool:
    """N environments. Nothing of it outlives this process: the memory has no name, and workers end with their parent.

    Workers that are `awake` wait for a turn without sleeping, for a while: there should be no more of them than cores.

    `arrays` [N, …], to be read after a turn: `reward`, `terminated`, `truncated`, `reached:entry` (what a step led to)
    and `start:entry` (of the episode that begins after an end, or with a reset).
    """

    def __init__(self, plan: Plan, num_envs: int, workers: int, awake: bool) -> None:
        self.number, self.num_envs, self.lock = next(_NUMBERS), num_envs, threading.Lock()
        self.slots = np.arange(num_envs, dtype=np.int32)
        self.named = np.stack([np.full_like(self.slots, self.number), self.slots], axis=1).tobytes()  # all of them
        floats_first = sorted(plan.layout.items(), key=lambda x: x[1][0] != "float32")
        plan = plan._replace(layout=dict(floats_first))
        total = size(plan.layout, num_envs)
        with _nameless() as file:
            file.truncate(total)
            memory = mmap.mmap(file.fileno(), total)
            self.arrays = views(memory, plan.layout, num_envs)
            edges = np.linspace(0, num_envs, min(workers, num_envs) + 1).astype(int).tolist()
            self._workers = [
                self._start(plan, file.fileno(), awake, first, last) for first, last in itertools.pairwise(edges)
            ]
        self._floats = [name for name, x in self.arrays.items() if x.dtype == np.float32]
        bytes_of_floats = size({name: plan.layout[name] for name in self._floats}, num_envs)
        self._all_floats = np.frombuffer(memory, np.float32, bytes_of_floats // 4)  # 0 between arrays

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
            start_new_session=True,  # Ctrl-C is the parent's alone
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        os.close(asked)
        os.close(answered)
        return _Process(process, first, ask, answer)

    def turn(self, slots: np.ndarray | slice, todo: int, told: np.ndarray) -> None:
        """Let the environments `slots` do what `todo` says; `told` [n, …] int32 are their rows, see the worker.

        Raises:
            EnvironmentBrokenError: one failed, gave a number that is not finite, or its process ended. All are closed.
        """
        if not self._workers:
            raise EnvironmentBrokenError(0, "was closed after a failure")
        self.arrays["do"].fill(SKIP)
        self.arrays["do"][slots] = todo
        self.arrays["told"][slots] = told
        try:
            for worker in self._workers:
                with contextlib.suppress(BrokenPipeError):  # it is not there any more: it will be heard
                    os.write(worker.ask, b".")
            for worker in self._workers:
                self._hear(worker)
            self._check_finite()
        except BaseException:
            self.close()
            raise

    def _hear(self, worker: _Process) -> None:
        """Wait for a worker. Raises: EnvironmentBrokenError."""
        said = os.read(worker.answer, 1)
        if said == gymnasium_worker.DONE:
            return
        if said == gymnasium_worker.FAILED:
            with os.fdopen(os.dup(worker.answer), "rb") as answer:
                told = json.loads(answer.readline())
            raise EnvironmentBrokenError(told["index"], f"raised {told['error']}")
        code = worker.process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise EnvironmentBrokenError(worker.first, f"or one beside it in its process ended the process ({name})")

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
                raise EnvironmentBrokenError(int(np.flatnonzero(~finite)[0]), f"gave {what} that is not finite")

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.wait()
            os.close(worker.ask)
            os.close(worker.answer)
        self._workers = []


def _nameless() -> Any:
    """A file without a name, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("purejaxppo"), "r+b")
    return tempfile.TemporaryFile()
