"""Gymnasium environments (https://gymnasium.farama.org), Atari's included, stepped by the host."""

import functools
import importlib.util
import math
import operator
from collections.abc import Mapping
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from purejaxppo.envs.common import quiet
from purejaxppo.envs.host.env import HostEnv
from purejaxppo.envs.host.pool import Plan
from purejaxppo.envs.host.worker import WORDS, Layout, make
from purejaxppo.errors import UsageError, reason
from purejaxppo.spaces import ACTION_MASK, Box, Discrete, MultiBinary, MultiDiscrete, Space
from purejaxppo.types import Observation

_PACKAGES = {  # Gymnasium's modules ↦ what they are made with
    "gymnasium.envs.mujoco": "mujoco",
    "gymnasium.envs.box2d": "Box2D",
}
_ELSEWHERE = ("gymnasium.envs.phys2d", "gymnasium.envs.tabular")  # environments in JAX, stepped as others are
_QUICK = ("gymnasium.envs.classic_control", "gymnasium.envs.toy_text")  # whose steps take some 20 µs


def names() -> list[str]:
    """Those registered that can be made with what is installed."""
    try:
        import ale_py

        gymnasium.register_envs(ale_py)
    except ModuleNotFoundError:  # the games of Atari are not installed
        pass
    absent = [where for where, package in _PACKAGES.items() if importlib.util.find_spec(package) is None]

    def usable(spec: Any) -> bool:
        entry = spec.entry_point
        retired = getattr(entry, "__name__", "").startswith("_raise")  # mujoco-py's, gym's
        return not retired and not str(entry).startswith((*_ELSEWHERE, *absent))

    return sorted(name for name, spec in gymnasium.registry.items() if usable(spec))


class GymnasiumEnv(HostEnv):
    """One environment. Each episode is reset with a seed of its own; ends are those that the environment tells.

    Tuples and nested dictionaries of observations become one dictionary; an entry `action_mask` that fits the actions
    is one.

    Args:
        name: `LunarLander-v3`, say; `module:Name-v0` imports the module first.
        workers: processes that share the environments of each device; None is one per core at the most, of all devices
            together.
        params: what `gymnasium.make` takes. Atari has `preprocess`, true unless given: Gymnasium's AtariPreprocessing
            (Machado et al., 2018, arXiv:1709.06009), gray frames of 84 × 84, one in four.

    Raises:
        UsageError: a space is not supported, or a package is missing.
    """

    def __init__(self, name: str, workers: int | None = None, **params: Any) -> None:
        if workers is not None and (type(workers) is not int or workers < 1):
            raise UsageError(
                f"workers = {workers!r} must be a whole number in [1, inf); leave it out for one per core."
            )
        try:
            with quiet():
                env = make(name, params)
        except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError) as error:
            raise UsageError(
                f"env = 'gymnasium/{name}' needs what is not installed ({reason(error)}); pip install "
                "'purejaxppo[gymnasium]', or the environment's own package."
            ) from error
        fps = env.metadata.get("render_fps")
        frames = env.spec.kwargs.get("max_num_frames_per_episode")  # Atari's limit
        self.has_time_limit = bool(env.spec.max_episode_steps or frames)
        try:
            acted = _action_space(name, env.action_space)
            entries = dict(_entries(name, env.observation_space))
        finally:
            env.close()
        self.name, self.params = name, params
        if fps:
            self.render_fps = float(fps)
        ours = {entry: _observation_space(entry, space, acted) for entry, (_, space) in entries.items()}
        dtypes = {entry: _dtype(ours[entry], space) for entry, (_, space) in entries.items()}
        told = ("int32", [WORDS + math.prod(acted.shape)])
        layout: Layout = {"do": ("uint8", []), "told": told, "terminated": ("bool", []), "truncated": ("bool", [])}
        for entry, space in ours.items():
            for when in ("reached", "start"):
                layout[f"{when}:{entry}"] = (np.dtype(dtypes[entry]).name, list(space.shape))
        layout["reward"] = ("float32", [])
        plan = Plan(
            name=name,
            params=params,
            layout=layout,
            paths={entry: path for entry, (path, _) in entries.items()},
            starts={entry: _first(space) for entry, (_, space) in entries.items()},
            action=("float32" if isinstance(acted, Box) else "int32", tuple(acted.shape)),
        )
        self._mapped = {entry: (*path_and_space, dtypes[entry]) for entry, path_and_space in entries.items()}
        self._acted = env.action_space
        worth_a_worker = 8 if str(env.spec.entry_point).startswith(_QUICK) else 2
        super().__init__(plan, ours[""] if [*ours] == [""] else ours, acted, dtypes, worth_a_worker, workers)

    def from_gymnasium(self, obs: Any, action_mask: Any = None) -> Observation:
        """Ours for an observation of Gymnasium's, one or a batch: a flat dictionary, integers from 0, our dtypes.

        Entries of nested dictionaries may also be given by their names in the flat one.
        """
        ours = {}
        for entry, (path, space, dtype) in self._mapped.items():
            flat = isinstance(obs, Mapping) and entry in obs
            part = obs[entry] if flat else functools.reduce(operator.getitem, path, obs)
            part = part if isinstance(part, jax.Array) else np.asarray(part)
            ours[entry] = jnp.asarray(part - _first(space) if _first(space) else part).astype(dtype)
        return ours if isinstance(self.observation_space, dict) else ours[""]

    def to_gymnasium(self, action: Any) -> Any:
        """What Gymnasium's `step` takes for an action of ours, one or a batch: integers from the space's `start` on.

        NumPy's, of Gymnasium's type; under a trace JAX's, of ours.
        """
        dtype, start = self._acted.dtype, getattr(self._acted, "start", 0)
        if isinstance(action, jax.core.Tracer):
            return action + jnp.asarray(start, action.dtype)
        return (np.asarray(action).astype(dtype) + np.asarray(start, dtype))[()]


def _entries(name: str, space: Any, path: tuple[Any, ...] = ()) -> Any:
    """`(entry, (path, space))` of each part of an observation; entries of a dictionary in a dictionary are `a.b`."""
    parts: Any = ()
    if isinstance(space, spaces.Dict):
        parts = space.spaces.items()
    elif isinstance(space, spaces.Tuple):
        parts = enumerate(space.spaces)
    elif not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete):
        raise UsageError(
            f"env = 'gymnasium/{name}' has observations {type(space).__name__}; only Box, Discrete, MultiDiscrete, "
            "MultiBinary, and Dict or Tuple of them are supported: choose another one."
        )
    else:
        yield ".".join(map(str, path)), (list(path), space)
    for key, part in parts:
        yield from _entries(name, part, (*path, key))


def _first(space: Any) -> int:
    return int(space.start) if isinstance(space, spaces.Discrete) else 0


def _observation_space(entry: str, space: Any, acted: Space) -> Any:
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    size = sum(acted.nvec) if isinstance(acted, MultiDiscrete) else getattr(acted, "n", 0)
    if entry == ACTION_MASK and space.shape == (size,) and np.issubdtype(space.dtype, np.integer):
        return MultiBinary(size)
    if isinstance(space, spaces.Box):
        return Box(space.low, space.high, tuple(space.shape))
    if isinstance(space, spaces.MultiBinary):
        return Box(0.0, 1.0, tuple(space.shape))
    return Box(space.start, space.start + space.nvec - 1, tuple(space.shape))


def _dtype(ours: Any, space: Any) -> Any:
    if isinstance(ours, Discrete):
        return jnp.int32
    if isinstance(ours, MultiBinary):
        return jnp.bool_
    return jnp.uint8 if space.dtype == np.uint8 and len(space.shape) > 1 else jnp.float32


def _action_space(name: str, space: Any) -> Space:
    if isinstance(space, spaces.Box):
        return Box(np.float32(space.low), np.float32(space.high), tuple(space.shape))
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) == 1:
        return MultiDiscrete(tuple(int(n) for n in space.nvec))
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return MultiBinary(int(space.shape[0]))
    raise UsageError(
        f"env = 'gymnasium/{name}' has actions {space}; only Box, Discrete, and vectors MultiDiscrete and MultiBinary "
        "are supported: choose another one."
    )
