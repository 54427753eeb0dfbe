"""Holding an environment against the protocol."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.envs.base import BaseEnv, adapt
from purejaxppo.errors import OTHERS_ERRORS, UsageError, reason
from purejaxppo.spaces import ACTION_MASK, Box, Discrete, MultiBinary, MultiDiscrete, channels_first


def check_env(env: Any, name: str) -> None:
    """Hold an environment against the protocol, without running it. Raises: UsageError: it does not keep to it."""
    env = adapt(env)
    own = [getattr(getattr(env, each), "__func__", None) for each in ("step", "step_with_success")]
    if own == [BaseEnv.step, BaseEnv.step_with_success]:  # each would be made of the other
        raise UsageError(f"env = {name} has no step; see the guide Your own environment.")
    seen, acted = env.observation_space, env.action_space
    _check_spaces(seen, acted)
    key = jax.random.key(0)
    action = jnp.zeros(acted.shape, jnp.float32 if isinstance(acted, Box) else jnp.int32)
    try:
        state, obs = jax.eval_shape(env.reset, key)
        returned = jax.eval_shape(env.step, key, state, action)
    except OTHERS_ERRORS as error:
        raise UsageError(f"env = {name}: reset or step fails under jax.jit ({reason(error)}).") from error
    if not isinstance(returned, tuple) or len(returned) != 5:
        found = f"{len(returned)} values" if isinstance(returned, tuple) else f"a {type(returned).__name__}"
        what = "(state, obs, reward, terminated, truncated)"
        raise UsageError(f"env = {name}: step must return {what}, not {found}; see the guide Your own environment.")
    flag, scalar = jax.ShapeDtypeStruct((), bool), jax.ShapeDtypeStruct((), jnp.float32)
    expected = (state, obs, scalar, flag, flag)
    for part, actual, wanted in zip(
        ("state", "obs", "reward", "terminated", "truncated"), returned, expected, strict=True
    ):
        if _shapes(actual) != _shapes(wanted):
            raise UsageError(
                f"env = {name}: step's {part} is {_shapes(actual)} but must be {_shapes(wanted)}; cast or reshape it."
            )
    if env.tells_success:
        _check_success(env, name, key, state, action, returned)
    entries = seen if isinstance(seen, Mapping) else {"": seen}
    arrays = obs if isinstance(seen, Mapping) and isinstance(obs, Mapping) else {"": obs}
    if {*entries} != {*arrays}:
        raise UsageError(f"env = {name}: reset's obs has {[*arrays]} but its space {[*entries]}; make them agree.")
    for entry, space in entries.items():
        kind = {Discrete: jnp.integer, MultiBinary: jnp.bool_}.get(type(space), jnp.generic)
        array = arrays[entry]
        if getattr(array, "shape", None) != space.shape or not jnp.issubdtype(array.dtype, kind):
            raise UsageError(
                f"env = {name}: reset's obs{entry and f'[{entry!r}]'} is {_shapes(array)} but its space is "
                f"{space!r}; make them agree (Discrete is a whole number, MultiBinary bool)."
            )


def _check_success(env: Any, name: str, key: jax.Array, state: Any, action: jax.Array, step: Any) -> None:
    """Raises: UsageError: `step_with_success` does not return a step and whether it ended in success."""
    try:
        told = jax.eval_shape(env.step_with_success, key, state, action)
    except OTHERS_ERRORS as error:
        raise UsageError(f"env = {name}: step_with_success fails under jax.jit ({reason(error)}).") from error
    wanted = (step, jax.ShapeDtypeStruct((), bool))
    if not isinstance(told, tuple) or len(told) != 2 or _shapes(told) != _shapes(wanted):
        raise UsageError(
            f"env = {name}: step_with_success must return (what step returns, success), success being bool[], not "
            f"{_shapes(told[1]) if isinstance(told, tuple) and len(told) == 2 else type(told).__name__}."
        )


def _check_spaces(seen: Any, acted: Any) -> None:
    """Raises: UsageError: the networks know no such observation, or the distributions no such action."""
    entries = dict(seen) if isinstance(seen, Mapping) else {"": seen}
    mask = entries.pop(ACTION_MASK, None)
    for space in (*entries.values(), acted):
        _check_shape(space)
    for name, space in entries.items():
        label = f"observation_space{name and f'[{name!r}]'} = {space!r}"
        if not isinstance(space, Box | Discrete):
            raise UsageError(f"{label} is no purejaxppo Box or Discrete; write purejaxppo.Box(low, high, shape), say.")
        if len(space.shape) > 3:
            raise UsageError(f"{label} has a rank above 3; flatten it.")
        _check_size(label, space)
        if len(space.shape) == 3 and channels_first(space.shape):
            warnings.warn(f"{label} is taken as images [C, H, W], channels first.", stacklevel=4)
    if not entries:
        raise UsageError(f"observation_space = {seen!r} leaves the networks nothing to see; add a Box.")
    valid = isinstance(acted, Box | Discrete | MultiDiscrete | MultiBinary)
    if isinstance(acted, MultiDiscrete):
        valid = isinstance(acted.nvec, tuple) and bool(acted.nvec) and all(type(n) is int and n > 0 for n in acted.nvec)
    if not valid:
        raise UsageError(
            f"action_space = {acted!r} is no purejaxppo Box, Discrete, MultiDiscrete (of a tuple of positive ints) or "
            "MultiBinary; adapt the environment."
        )
    _check_size(f"action_space = {acted!r}", acted)
    if mask is not None:
        if not isinstance(acted, Discrete | MultiDiscrete):
            raise UsageError(f"observation_space has an action_mask, but action_space = {acted!r} takes none; drop it.")
        wanted = MultiBinary(sum(acted.nvec) if isinstance(acted, MultiDiscrete) else acted.n)
        if not (isinstance(mask, MultiBinary) and mask == wanted):
            raise UsageError(f"observation_space['action_mask'] = {mask!r} must be {wanted!r}, for {acted!r}.")


def _check_shape(space: Any) -> None:
    """Raises: UsageError: that of a box is no tuple, so that it cannot even be printed."""
    shape = space.shape if isinstance(space, Box) else ()
    if not isinstance(shape, tuple) or not all(isinstance(n, int | np.integer) for n in shape):
        raise UsageError(f"a Box of shape {shape!r} needs a tuple of whole numbers; write Box(low, high, (3,)), say.")


def _check_size(label: str, space: Any) -> None:
    """Raises: UsageError: there is nothing in a space, or its size or bounds are none."""
    if not isinstance(getattr(space, "n", 1), int | np.integer):
        raise UsageError(f"{label} needs a whole number; write {type(space).__name__}(3), say.")
    if 0 in space.shape or getattr(space, "n", 1) < 1:
        raise UsageError(f"{label} has nothing in it; leave it out, or give it a size.")
    if isinstance(space, Box):
        low, high = (np.asarray(end, float) for end in (space.low, space.high))
        if not all(_spreads(end.shape, space.shape) for end in (low, high)):
            raise UsageError(f"{label} has bounds of shapes {low.shape} and {high.shape}; make them () or its own.")
        if not np.all(low <= high):  # nor if one is NaN
            raise UsageError(f"{label} must have low ≤ high everywhere, and no NaN; correct its bounds.")


def _spreads(own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether an array of its `own` shape can be broadcast to `shape`."""
    try:
        return np.broadcast_shapes(own, shape) == shape
    except ValueError:
        return False


def warn_of_bounds(acted: Any) -> None:
    """Of a Gaussian policy, N(0, 1) at first, nearly all of whose actions would be clipped to a bound."""
    if not isinstance(acted, Box):
        return
    below = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2.0)), otypes=[float])  # N(0, 1) is; not traced
    if np.min(below(acted.high) - below(acted.low), initial=1.0) < 0.05:
        warnings.warn(
            f"action_space = {acted!r}: a Gaussian policy begins as N(0, 1), so over 95% of its actions are clipped to "
            "a bound; --action-distribution beta (action_distribution='beta') scales them to the bounds instead.",
            stacklevel=4,
        )


def _shapes(tree: Any) -> str:
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree))
