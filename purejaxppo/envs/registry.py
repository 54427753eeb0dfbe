"""Environments by name. One file per suite; each adapts its suite to the `Env` protocol."""

import difflib
import functools
import importlib
import json
from types import ModuleType
from typing import Any

import jax

from purejaxppo.envs.common import quiet
from purejaxppo.errors import UsageError, reason
from purejaxppo.types import Env

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
    elsewhere = ":" in bare or bare.startswith("ALE/")  # registered by a package that may have to be imported first
    if bare not in (known := adapter.names()) and not elsewhere:
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
