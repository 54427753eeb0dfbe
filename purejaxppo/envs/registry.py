"""Environments by name. One file per suite; each adapts its suite to the `Env` protocol."""

import difflib
import functools
import importlib
import json
import re
import sys
from types import ModuleType
from typing import Any

import jax

from purejaxppo.envs.common import quiet
from purejaxppo.errors import OTHERS_ERRORS, UsageError, reason
from purejaxppo.types import Env

# each has its adapter in the module, and its packages in the extra, of its name
SUITES = ("gymnax", "brax", "playground", "craftax", "navix", "jumanji", "pgx", "gymnasium")
_WELL_KNOWN = {  # what people ask for, and may have to install first
    "gymnasium": (
        "LunarLander-v3 LunarLanderContinuous-v3 BipedalWalker-v3 BipedalWalkerHardcore-v3 CarRacing-v3 Ant-v5 "
        "HalfCheetah-v5 Hopper-v5 Humanoid-v5 HumanoidStandup-v5 InvertedDoublePendulum-v5 InvertedPendulum-v5 "
        "Pusher-v5 Reacher-v5 Swimmer-v5 Walker2d-v5 ALE/Asterix-v5 ALE/BeamRider-v5 ALE/Breakout-v5 ALE/Enduro-v5 "
        "ALE/Freeway-v5 ALE/MsPacman-v5 ALE/Pong-v5 ALE/Qbert-v5 ALE/Seaquest-v5 ALE/SpaceInvaders-v5"
    ),
    "brax": (
        "ant halfcheetah hopper humanoid humanoidstandup inverted_double_pendulum inverted_pendulum pusher reacher "
        "walker2d"
    ),
    "playground": "CartpoleBalance CartpoleSwingup CheetahRun HopperHop HumanoidWalk ReacherEasy WalkerWalk",
    "craftax": "Craftax-Symbolic-v1 Craftax-Pixels-v1 Craftax-Classic-Symbolic-v1 Craftax-Classic-Pixels-v1",
    "navix": "Navix-Empty-8x8-v0 Navix-DoorKey-8x8-v0 Navix-FourRooms-v0 Navix-KeyCorridorS3R3-v0",
    "jumanji": "Snake-v1 Game2048-v1 Maze-v0 PacMan-v1 Sokoban-v0 RubiksCube-v0 Tetris-v0 TSP-v1 CVRP-v1 Knapsack-v1",
    "pgx": "2048 chess connect_four go_9x9 go_19x19 othello tic_tac_toe minatar-asterix minatar-breakout",
}
_UNUSABLE = {  # without their versions: rewards or actions of several agents; what JAX has removed
    "jumanji": ("Connector", "LevelBasedForaging", "MultiCVRP", "SearchAndRescue"),
    "brax": ("swimmer",),
}


def env_names(suite: str = "gymnax") -> list[str]:
    """A suite's environments, without those known not to work. Raises: UsageError: no such suite, or not installed."""
    unusable = _UNUSABLE.get(suite, ())
    return [name for name in _adapter(suite).names() if name.partition("-v")[0] not in unusable]


def known_names(suite: str) -> list[str]:
    """Names that a suite is known to have, even where it is not installed; by far not all."""
    return _WELL_KNOWN.get(suite, "").split()


@functools.cache
def make_env(name: str) -> Env:
    """The environment called `name`: `suite/environment`, or `module:Class` for one of your own.

    gymnax's need no suite: `CartPole-v1`. Parameters follow after commas: `brax/ant,backend=spring`, `…,sizes=[3,4]`.

    Raises:
        UsageError: no such environment, or one that cannot be made; its suite is not installed, or refuses the
            parameters.
    """
    path, *settings = name.split(",")
    suite, slash, bare = path.partition("/")
    if not slash:
        suite, bare = "gymnax", path
    params = _params(name, settings)
    if ":" in path and suite != "gymnasium":
        return _user_env(name, path, params)
    if suite not in SUITES:
        raise UsageError(f"env = {name!r:.80}: {suite!r:.40} is no suite ({', '.join(SUITES)}); {_meant(path)}")
    try:
        adapter = _adapter(suite)
    except UsageError as missing:
        typo = "" if bare in known_names(suite) else f" And {_meant(path)}"
        raise UsageError(f"{missing}{typo}") from missing
    elsewhere = ":" in bare or bare.startswith("ALE/")  # registered by a package that may have to be imported first
    if not elsewhere and bare not in [*adapter.names(), *known_names(suite)]:
        own = f"if it is your own: gymnasium/MODULE:{bare:.40}; " if suite == "gymnasium" else ""
        raise UsageError(f"env = {name!r:.80} is not a registered environment; {own}{_meant(path)}")
    try:
        with jax.ensure_compile_time_eval():  # this may be the first use of the environment, and under a trace
            return getattr(adapter, f"{suite.capitalize()}Env")(bare, **params)
    except UsageError:
        raise
    except OTHERS_ERRORS as error:
        raise UsageError(f"env = {name!r} cannot be made ({reason(error)}); correct its parameters or name.") from error


def _meant(path: str) -> str:
    """Which environments were meant: of the suite that was named, else of all; of that name, else spelt alike."""
    asked, _, own = path.lower().rpartition("/")
    stems: dict[str, dict[str, str]] = {}  # stem ↦ suite ↦ the newest version's name
    for suite in SUITES:
        module = sys.modules.get(f"purejaxppo.envs.{suite}")  # none is imported for this
        for name in [*(module.names() if module else ()), *known_names(suite)]:
            stems.setdefault(_stem(name), {})[suite] = name if suite == "gymnax" else f"{suite}/{name}"
    for among in ({asked} & {*SUITES}, {*SUITES}):
        found = {stem: [names[suite] for suite in names if suite in among] for stem, names in stems.items()}
        found = {stem: names for stem, names in found.items() if names}
        close = [_stem(own)] if _stem(own) in found else difflib.get_close_matches(_stem(own), found, n=3, cutoff=0.5)
        if meant := [name for stem in close for name in found[stem]]:
            meant.sort(key=lambda name: name.lower().rpartition("/")[2] != own)  # stable: the same version first
            return f"did you mean {' or '.join(meant[:4])}?"
    return "purejaxppo envs lists all."


def _stem(name: str) -> str:
    """A name without its suite, version and variant: `ALE/Breakout-v5` and `Breakout-MinAtar` are both `breakout`."""
    plain = name.lower().rpartition("/")[2]
    return re.sub(r"-v\d+$|noframeskip|deterministic|minatar|navix|misc|bsuite|[^a-z0-9]", "", plain)


def _adapter(suite: str) -> ModuleType:
    if suite not in SUITES:
        raise UsageError(f"env: {suite!r} is not a suite of environments; those are {', '.join(SUITES)}.")
    try:
        with quiet():
            return importlib.import_module(f"purejaxppo.envs.{suite}")
    except ModuleNotFoundError as error:
        raise UsageError(f"{suite} is not installed ({error}); pip install 'purejaxppo[{suite}]'.") from error
    except Exception as error:  # of another version, say, or without the OpenGL that MUJOCO_GL asks for
        unset = ", or unset MUJOCO_GL" if suite in ("brax", "playground") else ""
        raise UsageError(
            f"{suite} cannot be imported ({reason(error)}); pip install -U 'purejaxppo[{suite}]'{unset}."
        ) from error


def _params(name: str, parts: list[str]) -> dict[str, Any]:
    """What is given as key=value: values are JSON, or words. Commas within brackets or quotes belong to them."""
    params, words = {}, {"true": True, "false": False}
    while parts:
        text, *parts = parts
        while parts and (sum(map(text.count, "[{")) > sum(map(text.count, "]}")) or text.count('"') % 2):
            text, parts = f"{text},{parts[0]}", parts[1:]
        key, equals, value = text.partition("=")
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            raise UsageError(f"env = {name!r}: {text!r} is not key=value; write {name.partition(',')[0]},key=value.")
        try:
            params[key] = words[value.lower()] if value.lower() in words else json.loads(value)
        except ValueError:  # a word
            params[key] = value
    return params


def _user_env(name: str, path: str, params: dict[str, Any]) -> Env:
    module, _, attribute = path.partition(":")
    if module.endswith(".py"):
        dotted = module.removesuffix(".py").replace("/", ".").lstrip(".")
        raise UsageError(f"env = {name!r:.80} names a file; name the module: {dotted:.80}:{attribute:.80}")
    try:
        with jax.ensure_compile_time_eval():  # this may be under a trace
            kind = getattr(importlib.import_module(module), attribute)
            return kind(**params)
    except OTHERS_ERRORS as error:
        registered = re.fullmatch(r".+-v\d+", attribute)
        way_out = f"if {module} registers it with Gymnasium: --env gymnasium/{path}." if registered else ""
        raise UsageError(
            f"env = {name!r} cannot be made ({reason(error)}); "
            + (way_out or "give module:Class,key=value, with the module on PYTHONPATH.")
        ) from error
