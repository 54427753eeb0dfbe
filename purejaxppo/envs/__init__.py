"""Environments by name. One file per suite; each adapts its suite to the `Env` protocol."""

import difflib
import functools
import importlib
from typing import Any

from purejaxppo.envs.gymnax import GymnaxEnv, gymnax_names
from purejaxppo.types import Env, UsageError

__all__ = ["GymnaxEnv", "env_names", "make_env"]


def env_names() -> list[str]:
    """All names that `make_env` knows."""
    return gymnax_names()


@functools.cache
def make_env(name: str) -> Env:
    """The environment called `name`: `CartPole-v1`, `gymnax/CartPole-v1`, or `module:Class` for one of your own.

    Raises:
        UsageError: no such environment, or one whose spaces are neither Box nor Discrete.
    """
    if ":" in name:
        return _user_env(name)
    bare = name.removeprefix("gymnax/")
    if bare not in env_names():
        by_lower = {known.lower(): known for known in env_names()}
        close = [by_lower[match] for match in difflib.get_close_matches(bare.lower(), by_lower, n=3, cutoff=0.4)]
        hint = f"did you mean {' or '.join(close)}?" if close else "python -m purejaxppo.run --list-envs shows all."
        raise UsageError(f"env = {name!r} is not a registered environment; {hint}")
    return GymnaxEnv(bare)


def _user_env(name: str) -> Env:
    module, _, attribute = name.partition(":")
    try:
        factory: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"env = {name!r} cannot be imported ({error}); give module:Class with the module on PYTHONPATH."
        ) from error
    env = factory()
    missing = [part for part in ("reset", "step", "observation_space", "action_space") if not hasattr(env, part)]
    if missing:
        raise UsageError(f"env = {name!r} has no {', '.join(missing)}; an environment needs the parts of types.Env.")
    return env
