"""A process that steps some of a pool's Gymnasium environments. Run as a script: it must not import JAX.

It shares the pool's memory, and is told by one byte on a pipe that the rows of `do` are set; it answers with one byte,
or with a line of JSON that says which environment failed, and how. It ends when its parent does.
"""

import contextlib
import functools
import importlib
import json
import mmap
import operator
import os
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
DONE, FAILED = b".", b"!"
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
        self.rows = range(about["first"], about["last"])
        self.paths: dict[str, list[Any]] = about["paths"]
        self.starts: dict[str, int] = about["starts"]
        self.index = self.rows.start
        self.envs = {}
        for i in self.rows:
            self.index = i
            self.envs[i] = make(about["name"], about["params"])
        self.scalar = not self.envs[self.index].action_space.shape
        self.dtype = self.envs[self.index].action_space.dtype
        self.first_action = np.asarray(getattr(self.envs[self.index].action_space, "start", 0))

    def turn(self) -> None:
        """What the pool asks of each environment. `self.index` is the one at work."""
        arrays, todo = self.arrays, self.arrays["do"].tolist()
        for i, env in self.envs.items():
            self.index = i
            if todo[i] == STEP:
                action = arrays["action"][i]
                if self.scalar:
                    chosen = int(action + self.first_action)
                else:
                    chosen = action.astype(self.dtype) + self.first_action.astype(self.dtype)
                obs, reward, terminated, truncated, _ = env.step(chosen)
                self._show("reached", i, obs)
                arrays["reward"][i] = reward
                arrays["terminated"][i] = terminated
                arrays["truncated"][i] = truncated and not terminated
                if terminated or truncated:
                    self._reset(env, i)
            elif todo[i] == RESET:
                self._reset(env, i)

    def _reset(self, env: Any, i: int) -> None:
        obs, _ = env.reset(seed=int(self.arrays["seed"][i]))
        self._show("start", i, obs)

    def _show(self, when: str, i: int, obs: Any) -> None:
        for entry, path in self.paths.items():
            part = functools.reduce(operator.getitem, path, obs)
            self.arrays[f"{when}:{entry}"][i] = part - self.starts[entry] if self.starts[entry] else part


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
    sys.path[:0] = about["path"]
    worker = None
    try:
        worker = Worker(about)
        while os.read(about["ask"], 1):
            worker.turn()
            os.write(about["answer"], DONE)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(about["answer"], failure(worker, about["first"], error) + b"\n")
    os._exit(0)  # without what environments do at exit, which may take long


if __name__ == "__main__":
    main()
