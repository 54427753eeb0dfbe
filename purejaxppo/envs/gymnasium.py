"""Gymnasium environments (https://gymnasium.farama.org), Atari's included, stepped by the host."""

import contextlib
import functools
import importlib.metadata
import importlib.util
import math
import operator
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from purejaxppo.envs.common import quiet
from purejaxppo.envs.host.env import HostEnv
from purejaxppo.envs.host.pool import Plan
from purejaxppo.envs.host.worker import WORDS, Layout, bounded, make, mask_shape
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


class Part(NamedTuple):
    """An entry of our observation, and where it comes from."""

    path: list[Any]  # in Gymnasium's observation
    space: Any  # ours
    dtype: str  # ours
    start: int = 0  # what Gymnasium counts integers from
    n: int = 0  # of integers how many there are


class GymnasiumEnv(HostEnv):
    """One environment. Each episode is reset with a seed of its own; ends are those that the environment tells.

    Python's and NumPy's global generators are seeded, too. Environments of one worker share them, so what they draw
    from these depends on how many are in it.

    Tuples and nested dictionaries of observations become one dictionary. Its entry `action_mask` are the valid actions,
    whether Gymnasium's observation has it, sb3-contrib's method `action_masks()`, or `info`; what else is observed is
    then the entry `obs`, if it is no dictionary.

    Where `info` has `is_success`, which a reset must show, or Gymnasium-Robotics' method `_is_success`, that of an
    episode's last step is counted: metrics `success_rate` and `eval_success_rate`.

    Args:
        name: `LunarLander-v3`, say; `module:Name-v0` imports the module first.
        workers: processes that share the environments of each device; None is one per core at the most, of all devices
            together.
        step_timeout: seconds in which an environment must answer; one that does not ends the run, which can be resumed.
            None: it is named after 60 s, and waited for.
        params: what `gymnasium.make` takes. Of images, `grayscale=true` is Gymnasium's GrayscaleObservation, and
            `resize=84`, or `resize=[84,96]`, its ResizeObservation, which comes after it. Atari has `preprocess`, true
            unless given: Gymnasium's AtariPreprocessing (Machado et al., 2018, arXiv:1709.06009), gray frames of
            84 × 84, one in four; its own arguments, such as `terminal_on_life_loss`, may be given, too.

    Raises:
        UsageError: a space is not supported, a package is missing, or workers cannot make it by its name.
    """

    def __init__(self, name: str, workers: int | None = None, step_timeout: float | None = None, **params: Any) -> None:
        if workers is not None and (type(workers) is not int or workers < 1):
            raise UsageError(f"workers = {workers!r} must be a whole number from 1 on; leave it out for one per core.")
        if step_timeout is not None and not (isinstance(step_timeout, int | float) and 0 < step_timeout < 1e9):
            raise UsageError(f"step_timeout = {step_timeout!r} must be seconds in (0, 1e9); leave it out to wait on.")
        try:
            with quiet():
                env = make(name, params)
        except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError) as error:
            module, colon, _ = name.partition(":")
            missing = getattr(error.__cause__ or error, "name", None)  # Gymnasium raises it anew, without the name
            if colon and missing and f"{module}.".startswith(f"{missing}."):
                raise UsageError(
                    f"env = 'gymnasium/{name}': there is no module {missing!r}; correct its name, or put the directory "
                    "that it is in on PYTHONPATH."
                ) from error
            raise UsageError(
                f"env = 'gymnasium/{name}' needs what is not installed ({reason(error)}); pip install "
                "'purejaxppo[gymnasium]', or the environment's own package."
            ) from error
        with contextlib.closing(env), quiet():
            _check_registered(name, env.spec)
            self._acted, acted = env.action_space, _action_space(name, env.action_space)
            inside = ACTION_MASK in getattr(env.observation_space, "spaces", ())
            _, info = env.reset(seed=0)
            mask = None if inside else mask_shape(env, info)
            tells_success = "is_success" in info or hasattr(env.unwrapped, "_is_success")  # as Gymnasium-Robotics' have
        self._separate_mask = mask is not None and mask == (_num_masked(acted),)
        if mask is not None and not self._separate_mask:
            warnings.warn(f"gymnasium/{name}: masks {mask} do not fit {acted!r}, and are not used.", stacklevel=2)
        spec, fps = env.spec, env.metadata.get("render_fps")
        frames = spec.kwargs.get("max_num_frames_per_episode")  # Atari's limit
        self.name, self.params, self.has_time_limit = name, params, bool(spec.max_episode_steps or frames)
        if fps:
            self.render_fps = float(fps)
        whole = env.observation_space
        if self._separate_mask:  # the pair (observation, mask) is what there is to see
            whole = spaces.Tuple((whole, spaces.MultiBinary(_num_masked(acted))))
        self._parts = _parts(name, whole, _num_masked(acted), self._separate_mask)
        ours = {entry: part.space for entry, part in self._parts.items()}
        each = {entry: (part.dtype, list(part.space.shape)) for entry, part in self._parts.items()}
        rows = {f"{when}:{entry}": x for when in ("reached", "start") for entry, x in each.items()}
        commands = ("int32", [WORDS + math.prod(acted.shape)])
        flags: Layout = {"do": ("uint8", []), "terminated": ("bool", []), "truncated": ("bool", [])}
        flags |= {"success": ("bool", [])} if tells_success else {}
        plan = Plan(
            name=name,
            params=params,
            layout={"commands": commands, "reward": ("float32", []), **flags, **rows},
            entries={entry: (part.path, part.start, part.n) for entry, part in self._parts.items()},
            separate_mask=self._separate_mask,
            tells_success=tells_success,
            step_timeout=step_timeout,
            action=("float32" if isinstance(acted, Box) else "int32", tuple(acted.shape)),
        )
        worth_a_worker = 8 if str(spec.entry_point).startswith(_QUICK) else 2
        super().__init__(plan, ours[""] if [*ours] == [""] else ours, acted, worth_a_worker, workers)

    def from_gymnasium(self, obs: Any, action_mask: Any = None) -> Observation:
        """Ours for an observation of Gymnasium's, one or a batch: a flat dictionary, integers from 0, our dtypes.

        `action_mask` is for environments that tell it beside the observation; left out, it is one of all valid. Entries
        may also be given by their names in the flat dictionary.

        Raises:
            UsageError: a number that our dtype, uint8 or int32, does not hold.
        """
        ours: dict[str, jax.Array] = {}
        for entry, part in self._parts.items():
            if isinstance(obs, Mapping) and entry in obs:
                x = obs[entry]
            elif self._separate_mask and part.path == [1] and action_mask is None:
                x = np.ones(part.space.shape, bool)
            else:
                x = functools.reduce(operator.getitem, part.path, (obs, action_mask) if self._separate_mask else obs)
            ours[entry] = _converted(x, part)
        return ours if isinstance(self.observation_space, dict) else ours[""]

    def to_gymnasium(self, action: Any) -> Any:
        """What Gymnasium's `step` takes for an action of ours, one or a batch: integers from the space's `start` on.

        NumPy's, of Gymnasium's type; under a trace JAX's, of ours. A Box of integers gets the nearest.
        """
        dtype, start = self._acted.dtype, getattr(self._acted, "start", 0)
        if isinstance(action, jax.core.Tracer):
            if isinstance(self._acted, spaces.Box) and np.issubdtype(dtype, np.integer):
                ends = (
                    jnp.broadcast_to(end.astype(np.float32), action.shape)
                    for end in (self._acted.low, self._acted.high)
                )
                return jnp.clip(jnp.rint(action), *ends)
            return action + jnp.asarray(start, action.dtype)
        if isinstance(self._acted, spaces.Box):
            return bounded(self._acted, np.asarray(action))[()]
        return (np.asarray(action).astype(dtype) + np.asarray(start, dtype))[()]


def _converted(given: Any, part: Part) -> jax.Array:
    """An entry of an observation in our dtype. Raises: UsageError: it cannot hold a number that was given."""
    x = given if isinstance(given, jax.Array) else np.asarray(given)
    if part.dtype in ("uint8", "int32") and not isinstance(x, jax.core.Tracer):
        numbers = np.asarray(x)
        with np.errstate(invalid="ignore"):  # NaN, which is refused
            held = numbers.astype(part.dtype) == numbers
        if not np.all(held):
            raise UsageError(f"{numbers[~held].flat[0]} is no {part.dtype}")
    elif not isinstance(x, jax.Array):
        x = x.astype(part.dtype)  # as a worker does: JAX would cut int64 first
    return (jnp.asarray(x) - part.start).astype(part.dtype)


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


def _parts(name: str, space: Any, num_masked: int, separate_mask: bool = False) -> dict[str, Part]:
    """Entries of an observation by name: `a.b`, or `a/b` where that is ambiguous. Raises: UsageError."""
    leaves = list(_leaves(name, space))
    for separator in ".", "/", ":", "|":
        names = [separator.join(map(str, path[separate_mask:])) for path, _ in leaves]
        if separate_mask:
            names = [name or "obs" for name in names[:-1]] + [ACTION_MASK]
        if len({*names}) == len(names):
            found = zip(names, leaves, strict=True)
            return {entry: _part(*leaf, entry == ACTION_MASK and num_masked) for entry, leaf in found}
    raise UsageError(f"env = 'gymnasium/{name}' has entries of an observation with the same name: {', '.join(names)}.")


def _part(path: list[Any], space: Any, num_masked: int) -> Part:
    """An entry, which may be the mask of `num_masked` actions."""
    shape = tuple(space.shape)
    if isinstance(space, spaces.Discrete):
        return Part(path, Discrete(int(space.n)), "int32", int(space.start), int(space.n))
    if num_masked and shape == (num_masked,):
        return Part(path, MultiBinary(num_masked), "bool")
    low: Any = getattr(space, "low", getattr(space, "start", 0.0))  # of Box, MultiDiscrete; MultiBinary has neither
    high: Any = space.high if isinstance(space, spaces.Box) else low + getattr(space, "nvec", 2) - 1
    return Part(path, Box(low, high, shape), "uint8" if space.dtype == np.uint8 and len(shape) > 1 else "float32")


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
