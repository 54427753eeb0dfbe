"""Settings by algorithm and environment, as plain data."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from purejaxppo.algorithms import ALGORITHMS, hyperparameters
from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.fields import did_you_mean
from purejaxppo.spaces import Box

_OFF_POLICY = ("dqn", "qrdqn", "sac", "td3", "ddpg", "tqc")
_ZOO_TRPO, _ZOO_PPO = "rl-baselines3-zoo, hyperparams/trpo.yml", "rl-baselines3-zoo, hyperparams/ppo.yml"
_CLEANRL = "CleanRL, ppo_continuous_action.py"
_PUREJAXRL = "purejaxrl, brax_minatar.ipynb; but the network, which begins with MinAtar's own convolution"
_OURS = "ours"
_OUR_STEPS = "as published for the method; the number of steps is ours"
_OUR_BRAX = "ours: {}, for MuJoCo, with brax's environments"

_MINATAR = {"num_envs": 64, "num_minibatches": 8, "learning_rate": 5e-3, "activation": "relu", "total_steps": 10**7}
_SPARSE_REWARD = {"gamma": 0.999, "normalize_observations": True, "normalize_rewards": True, "total_steps": 300_000}

_NORMALIZED = {"normalize_observations": True, "normalize_rewards": True, "total_steps": 1_000_000}
_TRPO_MUJOCO = {**_NORMALIZED, "num_epochs": 20, "cg_iterations": 25}
_TRPO_MUJOCO_OWN: dict[str, dict[str, Any]] = {
    "HalfCheetah": {"max_kl": 0.04},
    "Swimmer": {"gamma": 0.9999},
    "Humanoid": {"total_steps": 2_000_000},
}
_PPO_MUJOCO = {
    **_NORMALIZED,
    "num_envs": 1,
    "num_steps": 2048,
    "learning_rate": 3e-4,
    "num_epochs": 10,
    "num_minibatches": 32,
    "entropy_coef": 0.0,
}
_PPO_BRAX = {**_PPO_MUJOCO, "num_envs": 8, "num_steps": 256}  # the same batch, from environments side by side
_BRAX = ("ant", "halfcheetah", "hopper", "humanoid", "inverted_pendulum", "reacher", "walker2d")
_MUJOCO = ("Ant", "HalfCheetah", "Hopper", "Humanoid", "Swimmer", "Walker2d")

_TABLE: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {  # (algo, env) → where the settings are from, settings
    ("npg", "CartPole-v1"): (_OUR_STEPS, {"total_steps": 100_000}),
    ("trpo", "CartPole-v1"): (_OUR_STEPS, {"total_steps": 100_000}),
    ("ppo-penalty", "CartPole-v1"): (_OUR_STEPS, {"total_steps": 100_000}),
    ("cem", "CartPole-v1"): (_OURS, {"num_envs": 50, "total_steps": 1_000_000}),
    ("cma-es", "CartPole-v1"): (_OURS, {"total_steps": 960_000}),
    ("trpo", "Acrobot-v1"): (_OUR_STEPS, {"total_steps": 100_000}),
    ("trpo", "Pendulum-v1"): (_OUR_STEPS, {"total_steps": 300_000}),
    ("ppo", "Pendulum-v1"): (
        _OURS,
        {
            "num_steps": 512,
            "gamma": 0.97,
            "learning_rate": 1e-3,
            "num_epochs": 10,
            "num_minibatches": 32,
            "value_clip_eps": math.inf,
            "normalize_rewards": True,
            "entropy_coef": 0.0,
            "total_steps": 300_000,
        },
    ),
    ("trpo", "MountainCarContinuous-v0"): (_OURS, _SPARSE_REWARD),
    ("ppo", "MountainCarContinuous-v0"): (
        _OURS,
        {
            **_SPARSE_REWARD,
            "num_envs": 8,
            "num_steps": 256,
            "learning_rate": 3e-4,
            "num_epochs": 10,
            "num_minibatches": 16,
        },
    ),
    **{
        ("ppo", f"{name}-MinAtar"): (_PUREJAXRL, _MINATAR)
        for name in ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
    },
    ("ppo", "gymnasium/LunarLander-v3"): (
        _ZOO_PPO,
        {
            "num_envs": 16,
            "num_steps": 1024,
            "gamma": 0.999,
            "gae_lambda": 0.98,
            "learning_rate": 3e-4,
            "anneal_learning_rate": False,
            "num_minibatches": 256,
            "value_clip_eps": math.inf,
            "total_steps": 1_000_000,
        },
    ),
    ("trpo", "gymnasium/LunarLander-v3"): (
        _ZOO_TRPO,
        {
            "num_steps": 512,
            "gae_lambda": 0.98,
            "damping": 0.01,
            "num_epochs": 15,
            "num_minibatches": 8,
            "total_steps": 200_000,
        },
    ),
    ("trpo", "gymnasium/BipedalWalker-v3"): (_ZOO_TRPO, _TRPO_MUJOCO),
    **{
        ("trpo", f"gymnasium/{name}-v5"): (_ZOO_TRPO, {**_TRPO_MUJOCO, **_TRPO_MUJOCO_OWN.get(name, {})})
        for name in _MUJOCO
    },
    **{("ppo", f"gymnasium/{name}-v5"): (_CLEANRL, _PPO_MUJOCO) for name in _MUJOCO},
    **{("trpo", f"brax/{name}"): (_OUR_BRAX.format(_ZOO_TRPO), _TRPO_MUJOCO) for name in _BRAX},
    **{("ppo", f"brax/{name}"): (_OUR_BRAX.format(_CLEANRL), _PPO_BRAX) for name in _BRAX},
}
PRESETS = {which: settings for which, (_, settings) in _TABLE.items()}
SOURCES = {which: source for which, (source, _) in _TABLE.items()}  # of what goes beyond the algorithm's `published`


def preset_of(algo: str, env: Any) -> dict[str, Any]:
    """The settings that (algo, env) has a preset for, whatever the environment's parameters; empty if none."""
    return PRESETS.get((algo, env.removeprefix("gymnax/").partition(",")[0] if isinstance(env, str) else ""), {})


def lacks_preset(config: Config) -> bool:
    """Whether PPO is left with the settings of discrete tasks where actions are continuous, and nobody chose others."""
    plain = not config.normalize_observations and not preset_of(config.algo_name, config.env)
    return plain and config.algo_name.startswith("ppo") and isinstance(config.environment.action_space, Box)


def preset(algo: str, env: Any = "CartPole-v1", **settings: Any) -> Config:
    """A `Config` from flat settings: those given, else the preset of (algo, env), else as published.

    What is left open is adapted: with recurrent networks, `num_minibatches` becomes the greatest common divisor of the
    preset's and `num_envs`, see `Config`.

    Raises:
        UsageError: an unknown algorithm or setting; the settings' values are judged by `Config.check`.
    """
    if not isinstance(algo, str):
        raise UsageError(f"algo = {algo!r:.80} is not a name; pass 'trpo', say, or make Config(env=…, algo=TRPO()).")
    if algo not in ALGORITHMS:
        hint = did_you_mean(algo, ALGORITHMS) or "choose one."
        hint += " An algorithm of your own is known by the name that you give it in purejaxppo.ALGORITHMS."
        if algo.lower() in _OFF_POLICY:
            hint = "off-policy methods are not here: see Stable-Baselines3 or rejax."
        raise UsageError(f"algo = {algo!r:.80} is not one of: {', '.join(ALGORITHMS)}; {hint}")
    known = {field.name for field in dataclasses.fields(Config)} - {"algo", "env"}
    own = {field.name for field in dataclasses.fields(ALGORITHMS[algo])}  # type: ignore[arg-type]
    chosen = {**preset_of(algo, env), **settings}
    for unknown in chosen.keys() - known - own:
        owners = hyperparameters().get(unknown)
        hint = did_you_mean(unknown, known | own, spelling=False)
        hint = hint or (f"it is one of {' and '.join(owners)}." if owners else did_you_mean(unknown, known | own))
        hint = hint or f"its own are: {', '.join(sorted(own))}."
        raise UsageError(f"{unknown!r:.80} is not a setting of {algo}; {hint}")
    try:
        algorithm = ALGORITHMS[algo](**{name: value for name, value in chosen.items() if name in own})
    except TypeError as error:  # one of the user's own
        raise UsageError(f"algo = {algo!r}: {error}; give each of its fields a default.") from error
    config = Config(env=env, algo=algorithm, **{name: value for name, value in chosen.items() if name in known})
    if config.num_minibatches != settings.get("num_minibatches", config.num_minibatches):
        raise UsageError(
            f"num_minibatches = {settings['num_minibatches']}, but minibatch_size = {config.minibatch_size} makes "
            f"{config.num_minibatches} of a rollout; leave one of them out."
        )
    return config if "num_minibatches" in settings else config.replace(num_minibatches=config.adapted_minibatches)


def settings_of(config: Config) -> dict[str, Any]:
    """The flat settings that `preset` takes: `preset(**settings_of(config))` is `config` again."""
    settings: dict[str, Any] = {"algo": config.algo_name}
    for owner in (config, config.algo):
        settings |= {f.name: getattr(owner, f.name) for f in dataclasses.fields(owner) if f.name != "algo"}
    return settings


def without_derived(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings without `num_minibatches`, if `minibatch_size` makes it."""
    derived = ("num_minibatches",) if settings.get("minibatch_size") else ()
    return {name: x for name, x in settings.items() if name not in derived}


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """`config` with flat settings replaced, the algorithm's own among them.

    All others stay as they are, but `num_minibatches`: where it is what `preset` makes it, and `num_envs` or
    `recurrent` are replaced, it is made anew.
    """
    own = {field.name for field in dataclasses.fields(config.algo)}
    algo = config.algo.replace(**{name: x for name, x in settings.items() if name in own})
    changed = config.replace(algo=algo, **{name: x for name, x in settings.items() if name not in own})
    if {"num_envs", "recurrent"} & settings.keys() and not changed.minibatch_size and "num_minibatches" not in settings:
        usual = preset_of(config.algo_name, config.env).get("num_minibatches")  # None: as published
        before, after = (one.replace(num_minibatches=usual).adapted_minibatches for one in (config, changed))
        if before == config.num_minibatches:
            return changed.replace(num_minibatches=after)
    return changed


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    """Flat settings as the flags of the command that say the same."""
    words = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple | list) else (value,))]
    return words
