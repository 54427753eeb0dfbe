"""A process that steps some of a pool's Gymnasium environments. Run as a script: it must not import JAX.

It shares the pool's memory. One byte on a pipe asks it to do what `do` and `commands` say; it answers with one byte, or
with a line of JSON that says which environment failed, and how. It ends when its parent does, and with it all processes
that its environments have started.
"""

import contextlib
import importlib
import inspect
import json
import mmap
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from typing import Any

if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM):  # the parent's to answer; when it goes, so does this process
        signal.signal(ignored, signal.SIG_IGN)

import gymnasium
import numpy as np

SKIP, STEP, RESET = range(3)
IDLE, SEED, WORDS = range(3)  # columns of `commands`: has ended, stands still; seed of the next episode; the action
DONE, FAILED = b".", b"!"
CLOSE_SECONDS = 2.0  # that environments may take to close
AWAKE_SECONDS = 0.0005  # after a step; between two, a policy acts for 0.2 ms
Layout = dict[str, tuple[str, list[int]]]  # of one environment's rows: name ↦ dtype, shape


def make(name: str, params: dict[str, Any]) -> Any:
    """`gymnasium.make`, without its checks at each step, and with images as `grayscale` and `resize` will have them.

    Atari is preprocessed unless `preprocess` is false.

    Raises:
        ValueError: what is observed is no image, or there is no such size.
    """
    params = dict(params)
    gray, size = params.pop("grayscale", False), params.pop("resize", None)
    env = _unwrapped(name, params)
    if gray:
        _check_image(env, "grayscale", (3,))
        env = gymnasium.wrappers.GrayscaleObservation(env)
    if size is not None:
        _check_image(env, "resize", (2, 3))
        shape = (size, size) if type(size) is int else size
        if not isinstance(shape, list | tuple) or len(shape) != 2 or any(type(x) is not int or x < 1 for x in shape):
            raise ValueError(f"resize = {size!r:.40} is no height and width; write resize=84 or resize=[84,96]")
        env = gymnasium.wrappers.ResizeObservation(env, tuple(shape))
    return env


def _unwrapped(name: str, params: dict[str, Any]) -> Any:
    if not name.startswith("ALE/"):
        return gymnasium.make(name, disable_env_checker=True, **params)
    gymnasium.register_envs(importlib.import_module("ale_py"))
    if not params.pop("preprocess", True):
        return gymnasium.make(name, disable_env_checker=True, **params)
    known = [*inspect.signature(gymnasium.wrappers.AtariPreprocessing).parameters][1:]
    own = {key: params.pop(key) for key in known if key in params}
    raw = gymnasium.make(name, disable_env_checker=True, frameskip=1, **params)
    return gymnasium.wrappers.AtariPreprocessing(raw, **own)


def _check_image(env: Any, what: str, dimensions: tuple[int, ...]) -> None:
    space = env.observation_space
    image = isinstance(space, gymnasium.spaces.Box) and space.dtype == np.uint8 and len(space.shape) in dimensions
    if not image or (what == "grayscale" and space.shape[2] != 3):
        env.close()
        raise ValueError(f"{what} takes images, bytes [height, width, 3]; this environment observes {space}")


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


class OutsideSpaceError(ValueError):
    """What an environment gave is not in its own space."""


class Worker:
    """Environments `first` … `last` - 1 of a pool."""

    def __init__(self, about: dict[str, Any]) -> None:
        memory = mmap.mmap(about["memory"], size(about["layout"], about["num_envs"]))
        self.arrays = views(memory, about["layout"], about["num_envs"])
        self.index, self.slots = about["first"], []
        for i in range(about["first"], about["last"]):
            seed_everything(i)
            self.slots.append(Slot(i, make(about["name"], about["params"]), self.arrays, about))

    def step(self) -> None:
        """What the pool asks of each environment. `self.index` is the one at work."""
        do = self.arrays["do"]
        todo = do.tolist()
        for slot in self.slots:
            self.index = i = slot.index
            if todo[i] == STEP:
                slot.step()
            elif todo[i] == RESET:
                slot.reset()
            do[i] = SKIP  # so that the pool knows which one has not answered


class Slot:
    """An environment, and its rows of the pool's arrays."""

    def __init__(self, index: int, env: Any, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
        self.index, self._env, self._command = index, env, arrays["commands"][index]
        self._do = arrays["do"][index, ...]
        self._ends = [arrays[name][index, ...] for name in ("reward", "terminated", "truncated")]
        dtype, shape = about["action"]
        self._action = self._command[WORDS:].view(dtype).reshape(shape)
        self._scalar, self._dtype = isinstance(env.action_space, gymnasium.spaces.Discrete), env.action_space.dtype
        self._box = env.action_space if isinstance(env.action_space, gymnasium.spaces.Box) else None
        self._first = np.asarray(getattr(env.action_space, "start", 0)).astype(self._dtype)
        self._from_zero = not self._first.any()
        self._mask = action_masks(env) if about["separate_mask"] else None
        self._success = arrays["success"][index, ...] if about["tells_success"] else None
        entries = about["entries"].items()
        self._reached = [(name, entry, arrays[f"reached:{name}"][index, ...]) for name, entry in entries]
        self._start = [(name, entry, arrays[f"start:{name}"][index, ...]) for name, entry in entries]

    def step(self) -> None:
        """Act as told, and begin the next episode if this one ends; where it has ended before, stand still."""
        reward, terminated, truncated = 0.0, True, False
        if not self._command[IDLE]:
            obs, reward, terminated, truncated, info = self._env.step(self._chosen())
            self._show(obs, info, self._reached)
            if terminated or truncated:
                if self._success is not None:
                    self._success[...] = bool(info.get("is_success"))  # one that lacks it was none
                self._do[...] = RESET  # which may take longer
                self.reset()
        for row, x in zip(self._ends, (reward, terminated, truncated and not terminated), strict=True):
            row[...] = x

    def reset(self) -> None:
        seed = int(self._command[SEED])
        seed_everything(seed)
        obs, info = self._env.reset(seed=seed)
        self._show(obs, info, self._start)

    def close(self) -> None:
        """What fails here is nobody's concern any more."""
        with contextlib.suppress(Exception):
            self._env.close()

    def _chosen(self) -> Any:
        if self._scalar:
            return int(self._action + self._first)
        if self._box:
            return bounded(self._box, self._action)
        chosen = self._action.astype(self._dtype)
        return chosen if self._from_zero else chosen + self._first

    def _show(self, obs: Any, info: Any, rows: list[tuple[str, Any, np.ndarray]]) -> None:
        """Write the entries of an observation where the pool reads them."""
        if self._mask:
            obs = [obs, self._mask(info)]
        for name, (path, start, n), row in rows:
            part = obs
            for key in path:
                part = part[key]
            if getattr(part, "shape", None) != row.shape and np.shape(part) != row.shape:
                raise OutsideSpaceError(f"observation{name and f' {name}'} of shape {np.shape(part)}, not {row.shape}")
            if n:
                part = int(part) - start
                if not 0 <= part < n:
                    raise OutsideSpaceError(f"observation {name} {part + start}, not one of {n} from {start} on")
            elif row.dtype == np.uint8 != np.asarray(part).dtype and (np.asarray(part).astype(np.uint8) != part).any():
                raise OutsideSpaceError(f"observation{name and f' {name}'} that is no whole number within 0 … 255")
            row[...] = part


def bounded(box: gymnasium.spaces.Box, action: np.ndarray) -> np.ndarray:
    """Our float32 action, one or a batch, in the box's dtype and within its bounds, which float32 may have rounded."""
    if box.dtype == np.float32:
        return action.astype(np.float32)
    whole = np.rint(action) if np.issubdtype(box.dtype, np.integer) else action
    return np.clip(whole.astype(np.float64), box.low, box.high).astype(box.dtype)


def mask_shape(env: Any, info: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape of the valid actions that an environment tells beside its observation: by a method `action_masks`, as
    sb3-contrib asks for, or in the `info` of a reset, as Gymnasium's Taxi does. None if it does not.
    """
    told = env.has_wrapper_attr("action_masks") or "action_mask" in info
    return np.shape(action_masks(env)(info)) if told else None


def action_masks(env: Any) -> Any:
    """info ↦ which actions are valid, of an environment that tells it beside the observation."""
    if not env.has_wrapper_attr("action_masks"):
        return lambda info: flat_mask(info.get("action_mask"))
    masks = env.get_wrapper_attr("action_masks")
    return lambda info: flat_mask(masks())


def flat_mask(mask: Any) -> Any:
    """A mask of all actions; MultiDiscrete's own is a tuple of one for each part."""
    return np.hstack(mask) if isinstance(mask, tuple | list) else mask


def seed_everything(seed: int) -> None:
    """What an environment may draw from beside its own generator."""
    random.seed(seed)
    np.random.seed(seed)


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


def end() -> None:
    """At once, without what environments do at exit, which may take long; and the processes that they have started."""
    os.killpg(0, signal.SIGKILL)  # the group is this process's own, see `Pool`


def watch(parent: int) -> None:
    """End with the parent, even while an environment hangs."""
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(CLOSE_SECONDS)
    end()


def failure(index: int, error: BaseException) -> bytes:
    """The line that tells of an exception, and where the environment's code raised it."""
    text = " ".join(str(error).split())
    if isinstance(error, OutsideSpaceError):
        how = f"gave an {text} as its space says"
    elif isinstance(error, gymnasium.error.UnregisteredEnv):
        how = f"is unknown to worker processes ({text}); give gymnasium/MODULE:ID, with the module that registers it"
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        how = f"raised {type(error).__name__}: {text} ({os.path.basename(frame.filename)}:{frame.lineno})"
    return FAILED + json.dumps({"index": index, "how": how}).encode()


def main() -> None:
    warnings.simplefilter("ignore")  # the suite's own
    about = json.loads(sys.argv[1])
    threading.Thread(target=watch, args=(about["parent"],), daemon=True).start()
    with contextlib.suppress(AttributeError, OSError):  # asked, not to take the core of the pool that asks others, too
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    sys.path[:0] = about["path"]
    for descriptor in (about["memory"], about["ask"], about["answer"]):
        os.set_inheritable(descriptor, False)  # not for what environments start
    worker = None
    try:
        worker = Worker(about)
        pipe = CommandPipe(about["ask"], about["awake"])
        while pipe.listen():
            worker.step()
            os.write(about["answer"], DONE)
        for slot in worker.slots:
            slot.close()
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(about["answer"], failure(worker.index if worker else about["first"], error) + b"\n")
    end()


if __name__ == "__main__":
    main()
