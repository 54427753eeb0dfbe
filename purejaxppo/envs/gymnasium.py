"""Gymnasium environments (https://gymnasium.farama.org), Atari's included, stepped by the host."""

import contextlib
import functools
import importlib.metadata
import importlib.util
import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from purejaxppo.envs.common import quiet
from purejaxppo.envs.host.env import HostEnv
from purejaxppo.envs.host.pool import Plan
from purejaxppo.envs.host.worker import WORDS, Layout, has_separate_mask, make
from purejaxppo.errors import UsageError, reason
from purejaxppo.spaces import ACTION_MASK, Box, Discrete, MultiBinary, MultiDiscrete, Space, describe
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
    """One environment. Each episode is reset with a seed of its own, of Python's and NumPy's global generators, too;
    ends are those that the environment tells.

    Tuples and nested dictionaries of observations become one dictionary. Its entry `action_mask` are the valid actions,
    whether Gymnasium's observation has it, sb3-contrib's method `action_masks()`, or `info`; what else is observed is
    then the entry `obs`, if it is no dictionary.

    Args:
        name: `LunarLander-v3`, say; `module:Name-v0` imports the module first.
        workers: processes that share the environments of each device; None is one per core at the most, of all devices
            together.
        params: what `gymnasium.make` takes. Atari has `preprocess`, true unless given: Gymnasium's AtariPreprocessing
            (Machado et al., 2018, arXiv:1709.06009), gray frames of 84 × 84, one in four.

    Raises:
        UsageError: a space is not supported, a package is missing, or workers cannot make it by its name.
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
        with contextlib.closing(env), quiet():
            _check_registered(name, env.spec)
            self._acted, acted = env.action_space, _action_space(name, env.action_space)
            inside = ACTION_MASK in getattr(env.observation_space, "spaces", ())
            self._separate_mask = not inside and has_separate_mask(env, _num_masked(acted))
        spec, fps = env.spec, env.metadata.get("render_fps")
        frames = spec.kwargs.get("max_num_frames_per_episode")  # Atari's limit
        self.name, self.params, self.has_time_limit = name, params, bool(spec.max_episode_steps or frames)
        if fps:
            self.render_fps = float(fps)
        whole = env.observation_space
        if self._separate_mask:  # the pair (observation, mask) is what there is to see
            whole = spaces.Tuple((whole, spaces.MultiBinary(_num_masked(acted))))
        self._parts = _parts(name, whole, self._separate_mask)
        ours = {entry: _observation_space(entry, space, acted) for entry, (_, space) in self._parts.items()}
        dtypes = {entry: _dtype(ours[entry], space) for entry, (_, space) in self._parts.items()}
        commands = ("int32", [WORDS + math.prod(acted.shape)])
        layout: Layout = {
            **{"do": ("uint8", []), "commands": commands, "terminated": ("bool", []), "truncated": ("bool", [])},
            **{
                f"{when}:{entry}": (np.dtype(dtypes[entry]).name, list(space.shape))
                for entry, space in ours.items()
                for when in ("reached", "start")
            },
            "reward": ("float32", []),
        }
        plan = Plan(
            name=name,
            params=params,
            layout=layout,
            entries={
                entry: {
                    "path": path,
                    "start": _first(space),
                    "n": ours[entry].n if isinstance(space, spaces.Discrete) else 0,
                }
                for entry, (path, space) in self._parts.items()
            },
            separate_mask=self._separate_mask,
            action=("float32" if isinstance(acted, Box) else "int32", tuple(acted.shape)),
        )
        worth_a_worker = 8 if str(spec.entry_point).startswith(_QUICK) else 2
        super().__init__(plan, ours[""] if [*ours] == [""] else ours, acted, dtypes, worth_a_worker, workers)

    def from_gymnasium(self, obs: Any, action_mask: Any = None) -> Observation:
        """Ours for an observation of Gymnasium's, one or a batch: a flat dictionary, integers from 0, our dtypes.

        `action_mask` is for environments that tell it beside the observation; left out, all actions are valid. Entries
        may also be given by their names in the flat dictionary.
        """
        ours: dict[str, jax.Array] = {}
        for entry, (path, space) in self._parts.items():
            if isinstance(obs, Mapping) and entry in obs:
                part = obs[entry]
            elif self._separate_mask and path == [1] and action_mask is None:
                seen, rank = next((ours[name], len(self._parts[name][1].shape)) for name in ours)
                part = np.ones((*seen.shape[: seen.ndim - rank], *space.shape), bool)
            else:
                part = functools.reduce(operator.getitem, path, (obs, action_mask) if self._separate_mask else obs)
            part = part if isinstance(part, jax.Array) else np.asarray(part)
            ours[entry] = (jnp.asarray(part) - _first(space)).astype(self._dtypes[entry])
        return ours if isinstance(self.observation_space, dict) else ours[""]

    def to_gymnasium(self, action: Any) -> Any:
        """What Gymnasium's `step` takes for an action of ours, one or a batch: integers from the space's `start` on.

        NumPy's, of Gymnasium's type; under a trace JAX's, of ours.
        """
        dtype, start = self._acted.dtype, getattr(self._acted, "start", 0)
        if isinstance(action, jax.core.Tracer):
            return action + jnp.asarray(start, action.dtype)
        return (np.asarray(action).astype(dtype) + np.asarray(start, dtype))[()]


def _check_registered(name: str, spec: Any) -> None:
    """Raises: UsageError: the environment was registered in this process alone, and workers would not know it."""
    entry, colon = spec.entry_point, ":" in name
    source = entry.partition(":")[0] if isinstance(entry, str) else entry.__module__
    plugins = {point.module.partition(".")[0] for point in importlib.metadata.entry_points(group="gymnasium.envs")}
    known = {"gymnasium", "ale_py", *plugins}
    if source == "__main__" or not (colon or source.partition(".")[0] in known):
        where = "MODULE" if source == "__main__" else source
        raise UsageError(
            f"env = 'gymnasium/{name}' is registered in this process alone, and workers must make it, too; define and "
            f"register it in a module, and give 'gymnasium/{where}:{name.rpartition(':')[2]}'."
        )


def _num_masked(acted: Space) -> int:
    """The length of a mask of such actions; 0 where there is none."""
    return sum(acted.nvec) if isinstance(acted, MultiDiscrete) else acted.n if isinstance(acted, Discrete) else 0


def _parts(name: str, space: Any, separate_mask: bool) -> dict[str, tuple[list[Any], Any]]:
    """Each part of an observation: its name ↦ path and space. Names are `a.b`, or `a/b` where those would be ambiguous.

    Raises:
        UsageError: a part is not supported.
    """
    parts = list(_leaves(name, space))
    for separator in ".", "/", ":", "|":
        if not separate_mask:
            names = [separator.join(map(str, path)) for path, _ in parts]
        else:
            names = [separator.join(map(str, path[1:])) or "obs" for path, _ in parts[:-1]] + [ACTION_MASK]
        if len({*names}) == len(names):
            return dict(zip(names, parts, strict=True))
    raise UsageError(f"env = 'gymnasium/{name}' has entries of an observation with the same name: {', '.join(names)}.")


def _leaves(name: str, space: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[list[Any], Any]]:
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
        yield [*path], space
    for key, part in parts:
        yield from _leaves(name, part, (*path, key))


def _first(space: Any) -> int:
    return int(space.start) if isinstance(space, spaces.Discrete) else 0


def _observation_space(entry: str, space: Any, acted: Space) -> Any:
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if entry == ACTION_MASK and _num_masked(acted) and space.shape == (_num_masked(acted),):
        return MultiBinary(_num_masked(acted))
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
        f"env = 'gymnasium/{name}' has actions {describe(space)}; only Box, Discrete, and vectors MultiDiscrete and "
        "MultiBinary are supported: choose another one."
    )
