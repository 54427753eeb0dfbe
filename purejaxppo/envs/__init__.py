"""Environments by name. One file per suite; each adapts its suite to the `Env` protocol."""

import difflib
import functools
import importlib
import json
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from purejaxppo.envs.common import quiet
from purejaxppo.envs.gymnax import GymnaxEnv
from purejaxppo.types import ACTION_MASK, Box, Discrete, Env, MultiBinary, MultiDiscrete, UsageError, reason

__all__ = ["SUITES", "GymnaxEnv", "check_env", "env_names", "make_env"]

SUITES = {  # suite ↦ its adapter, in the module and with the extra of the suite's name
    "gymnax": "GymnaxEnv",
    "brax": "BraxEnv",
    "playground": "PlaygroundEnv",
    "craftax": "CraftaxEnv",
    "navix": "NavixEnv",
    "jumanji": "JumanjiEnv",
    "pgx": "PgxEnv",
    "gymnasium": "GymnasiumEnv",
}


def env_names(suite: str = "gymnax") -> list[str]:
    """The names of a suite's environments, without the suite's.

    Raises:
        UsageError: no such suite, or its package is not installed.
    """
    return _adapter(suite).names()


@functools.cache
def make_env(name: str) -> Env:
    """The environment called `name`: `suite/environment`, or `module:Class` for one of your own.

    gymnax's need no suite: `CartPole-v1`. Parameters follow after commas: `brax/ant,backend=spring`.

    Raises:
        UsageError: no such environment, or one that cannot be made; its suite is not installed, or refuses the
            parameters.
    """
    path, *settings = name.split(",")
    suite, slash, bare = path.partition("/")
    if not slash:
        suite, bare = "gymnax", path
    if ":" in name and suite != "gymnasium":
        return _user_env(name)
    adapter = _adapter(suite)
    if bare not in (known := adapter.names()) and ":" not in bare:
        by_lower = {name.lower(): name for name in known}
        close = [by_lower[match] for match in difflib.get_close_matches(bare.lower(), by_lower, n=3, cutoff=0.4)]
        hint = f"did you mean {' or '.join(close)}?" if close else "python -m purejaxppo.run --list-envs shows all."
        raise UsageError(f"env = {name!r} is not a registered environment; {hint}")
    params = dict(_setting(name, text) for text in settings)
    try:
        with jax.ensure_compile_time_eval():  # this may be the first use of the environment, and under a trace
            return getattr(adapter, SUITES[suite])(bare, **params)
    except UsageError:
        raise
    except Exception as error:  # whatever the suite's code raises
        raise UsageError(
            f"env = {name!r} cannot be made: {suite} raised {reason(error)}; correct its parameters, or choose another "
            "one."
        ) from error


def _adapter(suite: str) -> ModuleType:
    if suite not in SUITES:
        raise UsageError(f"env: {suite!r} is not a suite of environments; those are {', '.join(SUITES)}.")
    try:
        with quiet():
            return importlib.import_module(f"purejaxppo.envs.{suite}")
    except ModuleNotFoundError as error:
        raise UsageError(f"{suite} is not installed ({error}); pip install 'purejaxppo[{suite}]'.") from error
    except Exception as error:  # of another version, say, or without the OpenGL that MUJOCO_GL asks for
        raise UsageError(
            f"{suite} is installed but cannot be imported ({reason(error)}); pip install -U 'purejaxppo[{suite}]', "
            "and unset MUJOCO_GL if it is set."
        ) from error


def _setting(name: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise UsageError(f"env = {name!r}: {text!r} is not key=value; write {name.partition(',')[0]},key=value.")
    try:
        return key, json.loads(value.lower())
    except ValueError:  # a word
        return key, value


def _user_env(name: str) -> Env:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)()
    except Exception as error:  # whatever the user's code raises
        raise UsageError(
            f"env = {name!r} cannot be made ({reason(error)}); "
            "give module:Class, with the module on PYTHONPATH and a class that needs no arguments."
        ) from error


def check_env(env: Any, name: str) -> None:
    """Hold an environment against the protocol, without running it.

    Raises:
        UsageError: a part is missing, a space is not supported, or `step` does not return what it should.
    """
    missing = [part for part in ("reset", "step", "observation_space", "action_space") if not hasattr(env, part)]
    if missing:
        raise UsageError(f"env = {name} has no {', '.join(missing)}; give a name, or what types.Env describes.")
    seen, acted = env.observation_space, env.action_space
    _check_spaces(seen, acted)
    key = jax.random.key(0)
    action = jnp.zeros(acted.shape, jnp.float32 if isinstance(acted, Box) else jnp.int32)
    try:
        state, obs = jax.eval_shape(env.reset, key)
        returned = jax.eval_shape(env.step, key, state, action)
    except Exception as error:  # whatever the user's code raises
        raise UsageError(f"env = {name}: reset or step fails under jax.jit ({reason(error)}).") from error
    if not isinstance(returned, tuple) or len(returned) != 5:
        raise UsageError(f"env = {name}: step must return (state, obs, reward, terminated, truncated); see types.Env.")
    flag, scalar = jax.ShapeDtypeStruct((), bool), jax.ShapeDtypeStruct((), jnp.float32)
    expected = (state, obs, scalar, flag, flag)
    for part, actual, wanted in zip(
        ("state", "obs", "reward", "terminated", "truncated"), returned, expected, strict=True
    ):
        if _shapes(actual) != _shapes(wanted):
            raise UsageError(
                f"env = {name}: step's {part} is {_shapes(actual)} but must be {_shapes(wanted)}, as in reset and the "
                "spaces; cast or reshape it."
            )
    entries = seen if isinstance(seen, Mapping) else {"": seen}
    arrays = obs if isinstance(seen, Mapping) and isinstance(obs, Mapping) else {"": obs}
    if {*entries} != {*arrays}:
        raise UsageError(
            f"env = {name}: reset's obs has entries {[*arrays]} but its space {[*entries]}; make them agree."
        )
    for entry, space in entries.items():
        kind = {Discrete: jnp.integer, MultiBinary: jnp.bool_}.get(type(space), jnp.generic)
        if arrays[entry].shape != space.shape or not jnp.issubdtype(arrays[entry].dtype, kind):
            raise UsageError(
                f"env = {name}: reset's obs{entry and f'[{entry!r}]'} is {_shapes(arrays[entry])} but its space is "
                f"{space!r:.80}; make them agree (Discrete is a whole number, MultiBinary bool)."
            )


def _check_spaces(seen: Any, acted: Any) -> None:
    """Raises: UsageError: the networks know no such observation, or the distributions no such action."""
    entries = dict(seen) if isinstance(seen, Mapping) else {"": seen}
    mask = entries.pop(ACTION_MASK, None)
    for name, space in entries.items():
        label = f"observation_space{name and f'[{name!r}]'} = {space!r}"
        if not isinstance(space, Box | Discrete) or len(space.shape) > 3:
            raise UsageError(f"{label} is neither a Box of rank ≤ 3 nor Discrete; flatten it.")
        if len(space.shape) == 3 and min(space.shape[:2]) < 3:
            raise UsageError(f"{label} holds images smaller than 3 × 3; flatten them.")
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
    if mask is not None:
        if not isinstance(acted, Discrete | MultiDiscrete):
            raise UsageError(f"observation_space has an action_mask, but action_space = {acted!r} takes none; drop it.")
        wanted = MultiBinary(sum(acted.nvec) if isinstance(acted, MultiDiscrete) else acted.n)
        if mask != wanted:
            raise UsageError(f"observation_space['action_mask'] = {mask!r} must be {wanted!r}, for {acted!r}.")


def _shapes(tree: Any) -> str:
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree))
