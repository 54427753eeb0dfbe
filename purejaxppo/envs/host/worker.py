"""A process that steps some of a pool's Gymnasium environments. Run as a script: it must not import JAX.

It shares the pool's memory, and is told by one byte on a pipe that `do` and `told` are set; it answers with one byte,
or with a line of JSON that says which environment failed, and how. It ends when its parent does.
"""

import contextlib
import importlib
import json
import mmap
import os
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from typing import Any

import gymnasium
import numpy as np

SKIP, STEP, RESET = range(3)
IDLE, SEED, WORDS = range(3)  # columns of `told`: it has ended and stands still; of the next episode; of the action
DONE, FAILED = b".", b"!"
AWAKE_SECONDS = 0.0005  # after a turn; between two, a policy acts for 0.2 ms
Layout = dict[str, tuple[str, list[int]]]  # of one environment's rows: name ↦ dtype, shape


def make(name: str, params: dict[str, Any]) -> Any:
    """`gymnasium.make`, without its checks at each step. Atari is preprocessed unless `preprocess` is false."""
    if not name.startswith("ALE/"):
        return gymnasium.make(name, disable_env_checker=True, **params)
    gymnasium.register_envs(importlib.import_module("ale_py"))
    params = dict(params)
    if not params.pop("preprocess", True):
        return gymnasium.make(name, disable_env_checker=True, **params)
    raw = gymnasium.make(name, disable_env_checker=True, frameskip=1, **params)
    return gymnasium.wrappers.AtariPreprocessing(raw)


def views(memory: mmap.mmap, layout: Layout, num_envs: int) -> dict[str, np.ndarray]:
    """The pool's arrays, each [N, …], in the order of their names; see `size`."""
    arrays, offset = {}, 0
    for name, (dtype, shape) in layout.items():
        count = num_envs * int(np.prod(shape))
        arrays[name] = np.frombuffer(memory, dtype, count, offset).reshape(num_envs, *shape)
        offset += -(-arrays[name].nbytes // 64) * 64
    return arrays


def size(layout: Layout, num_envs: int) -> int:
    """How many bytes they take, each array from a multiple of 64 on."""
    return sum(
        -(-num_envs * int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64 for dtype, shape in layout.values()
    )


class Worker:
    """Environments `first` … `last` - 1 of a pool."""

    def __init__(self, about: dict[str, Any]) -> None:
        memory = mmap.mmap(about["memory"], size(about["layout"], about["num_envs"]))
        self.arrays = views(memory, about["layout"], about["num_envs"])
        self.index = about["first"]
        rows = range(about["first"], about["last"])
        self.places = [Slot(i, make(about["name"], about["params"]), self.arrays, about) for i in rows]

    def turn(self) -> None:
        """What the pool asks of each environment. `self.index` is the one at work."""
        todo = self.arrays["do"].tolist()
        for place in self.places:
            self.index = i = place.index
            if todo[i] == STEP:
                place.step()
            elif todo[i] == RESET:
                place.reset()


class Slot:
    """An environment, and its rows of the pool's arrays."""

    def __init__(self, index: int, env: Any, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
        self.index, self._env, self._told = index, env, arrays["told"][index]
        self._ends = [arrays[name][index, ...] for name in ("reward", "terminated", "truncated")]
        dtype, shape = about["action"]
        self._action = self._told[WORDS:].view(dtype).reshape(shape)
        self._scalar, self._dtype = isinstance(env.action_space, gymnasium.spaces.Discrete), env.action_space.dtype
        self._first = np.asarray(getattr(env.action_space, "start", 0)).astype(self._dtype)
        self._from_zero = not self._first.any()

        def rows(when: str) -> list[tuple[list[Any], int, np.ndarray]]:
            entries = about["paths"].items()
            return [(path, about["starts"][entry], arrays[f"{when}:{entry}"][index, ...]) for entry, path in entries]

        self._reached, self._start = rows("reached"), rows("start")

    def step(self) -> None:
        """Act as told, and begin the next episode if this one ends; where it has ended before, stand still."""
        reward, terminated, truncated = 0.0, True, False
        if not self._told[IDLE]:
            obs, reward, terminated, truncated, _ = self._env.step(self._chosen())
            show(obs, self._reached)
            if terminated or truncated:
                self.reset()
        for row, x in zip(self._ends, (reward, terminated, truncated and not terminated), strict=True):
            row[...] = x

    def reset(self) -> None:
        obs, _ = self._env.reset(seed=int(self._told[SEED]))
        show(obs, self._start)

    def _chosen(self) -> Any:
        if self._scalar:
            return int(self._action + self._first)
        chosen = self._action.astype(self._dtype)
        return chosen if self._from_zero else chosen + self._first


def show(obs: Any, rows: list[tuple[list[Any], int, np.ndarray]]) -> None:
    """Write the entries of an observation where the pool reads them."""
    for path, first, row in rows:
        part = obs
        for key in path:
            part = part[key]
        row[...] = part - first if first else part


class CommandPipe:
    """The end of a pipe on which the pool asks. Some stay awake for a while, as waking a worker takes 50 to 100 µs."""

    def __init__(self, pipe: int, awake: bool) -> None:
        self._pipe, self._ready, self._awake_seconds = pipe, select.poll(), AWAKE_SECONDS if awake else 0.0
        self._ready.register(pipe)
        self._give_way = getattr(os, "sched_yield", lambda: time.sleep(0.0))  # to any other process

    def listen(self) -> bytes:
        """One byte, or none if the pool has gone."""
        asleep_from = time.perf_counter() + self._awake_seconds
        while not self._ready.poll(0) and time.perf_counter() < asleep_from:
            self._give_way()
        return os.read(self._pipe, 1)


def watch(parent: int) -> None:
    """End with the parent, even while an environment hangs."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def failure(worker: Worker | None, index: int, error: BaseException) -> bytes:
    """The line that tells of an exception, and where the environment's code raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    where = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    return FAILED + json.dumps({"index": worker.index if worker else index, "error": f"{text} ({where})"}).encode()


def main() -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM):  # the parent's to answer; when it goes, so does this process
        signal.signal(ignored, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # the suite's own
    about = json.loads(sys.argv[1])
    threading.Thread(target=watch, args=(about["parent"],), daemon=True).start()
    with contextlib.suppress(AttributeError, OSError):  # asked, not to take the core of the pool that asks others, too
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    sys.path[:0] = about["path"]
    worker = None
    try:
        worker, ear = Worker(about), CommandPipe(about["ask"], about["awake"])
        while ear.listen():
            worker.turn()
            os.write(about["answer"], DONE)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(about["answer"], failure(worker, about["first"], error) + b"\n")
    os._exit(0)  # without what environments do at exit, which may take long


if __name__ == "__main__":
    main()
