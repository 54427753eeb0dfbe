"""Settings that are said to be somebody's are theirs: each against a small table of what the source says."""

import math
import types

import pytest
from environments import ActionRecorder

from purejaxppo.experiment.run_batch import RunBatch
from purejaxppo.presets import PRESETS, SOURCES, lacks_preset, preset, settings_of

CLEANRL_PPO = {  # vwxyzjn/cleanrl, cleanrl/ppo.py
    "num_envs": 4,
    "num_steps": 128,
    "total_steps": 500_000,
    "learning_rate": 2.5e-4,
    "anneal_learning_rate": True,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "num_minibatches": 4,
    "num_epochs": 4,
    "normalize_advantages": "minibatch",
    "clip_eps": 0.2,
    "value_clip_eps": 0.2,
    "entropy_coef": 0.01,
    "value_coef": 0.5,
    "max_grad_norm": 0.5,
    "target_kl": math.inf,
    "hidden_sizes": (64, 64),
    "activation": "tanh",
}
CLEANRL_CONTINUOUS = CLEANRL_PPO | {  # cleanrl/ppo_continuous_action.py; observations and rewards clipped to ±10
    "num_envs": 1,
    "num_steps": 2048,
    "total_steps": 1_000_000,
    "learning_rate": 3e-4,
    "num_minibatches": 32,
    "num_epochs": 10,
    "entropy_coef": 0.0,
    "normalize_observations": True,
    "normalize_rewards": True,
    "action_distribution": "gaussian",
}
SB3_CONTRIB_TRPO = {  # sb3_contrib/trpo/trpo.py: the constructor's defaults; its 2,048 steps are 2 × 1,024 here
    "learning_rate": 1e-3,
    "anneal_learning_rate": False,
    "num_minibatches": 2048 // 128,
    "gamma": 0.99,
    "cg_iterations": 15,
    "damping": 0.1,
    "backtrack_factor": 0.8,
    "num_epochs": 10,
    "gae_lambda": 0.95,
    "normalize_advantages": True,
    "max_kl": 0.01,
    "fisher_subsample": 1,
    "max_grad_norm": math.inf,  # 0.0 there, which nothing reads
    "value_clip_eps": math.inf,
    "hidden_sizes": (64, 64),
    "activation": "tanh",
}
ZOO_TRPO_MUJOCO = SB3_CONTRIB_TRPO | {  # rl-baselines3-zoo, hyperparams/trpo.yml
    "num_envs": 2,
    "num_steps": 1024,
    "num_epochs": 20,
    "cg_iterations": 25,
    "normalize_observations": True,
    "normalize_rewards": True,
    "total_steps": 1_000_000,
}
ZOO_TRPO_LANDER = SB3_CONTRIB_TRPO | {
    "num_envs": 2,
    "num_steps": 512,
    "num_minibatches": 1024 // 128,
    "damping": 0.01,
    "gae_lambda": 0.98,
    "num_epochs": 15,
    "normalize_observations": False,
    "normalize_rewards": False,
    "total_steps": 200_000,
}
ZOO_PPO_LANDER = {  # rl-baselines3-zoo, hyperparams/ppo.yml, and the defaults of Stable-Baselines3
    "num_envs": 16,
    "num_steps": 1024,
    "num_minibatches": 16 * 1024 // 64,
    "gae_lambda": 0.98,
    "gamma": 0.999,
    "num_epochs": 4,
    "entropy_coef": 0.01,
    "total_steps": 1_000_000,
    "learning_rate": 3e-4,
    "anneal_learning_rate": False,
    "clip_eps": 0.2,
    "value_clip_eps": math.inf,
    "max_grad_norm": 0.5,
    "normalize_observations": False,
    "normalize_rewards": False,
}
PUREJAXRL_MINATAR = CLEANRL_PPO | {  # luchris429/purejaxrl, examples/brax_minatar.ipynb
    "num_envs": 64,
    "num_minibatches": 8,
    "learning_rate": 5e-3,
    "activation": "relu",
    "total_steps": 10_000_000,
}
PAPER_PENALTY = {  # Schulman et al., 2017, arXiv:1707.06347: table 3 and section 4
    "learning_rate": 3e-4,
    "num_epochs": 10,
    "num_minibatches": 2048 // 64,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "entropy_coef": 0.0,
    "kl_coef": 1.0,
    "hidden_sizes": (64, 64),
    "activation": "tanh",
}
MUJOCO = ("Ant", "HalfCheetah", "Hopper", "Humanoid", "Swimmer", "Walker2d")
OF_ONE = {"HalfCheetah": {"max_kl": 0.04}, "Swimmer": {"gamma": 0.9999}, "Humanoid": {"total_steps": 2_000_000}}
TABLES = {
    ("ppo", "CartPole-v1"): CLEANRL_PPO,
    ("ppo", "Acrobot-v1"): CLEANRL_PPO,
    ("trpo", "MountainCar-v0"): SB3_CONTRIB_TRPO,
    ("npg", "MountainCar-v0"): {x: y for x, y in SB3_CONTRIB_TRPO.items() if x != "backtrack_factor"},
    ("ppo-penalty", "CartPole-v1"): PAPER_PENALTY,
    ("ppo", "gymnasium/LunarLander-v3"): ZOO_PPO_LANDER,
    ("trpo", "gymnasium/LunarLander-v3"): ZOO_TRPO_LANDER,
    ("trpo", "gymnasium/BipedalWalker-v3"): ZOO_TRPO_MUJOCO,
    **{("trpo", f"gymnasium/{name}-v5"): ZOO_TRPO_MUJOCO | OF_ONE.get(name, {}) for name in MUJOCO},
    **{("ppo", f"gymnasium/{name}-v5"): CLEANRL_CONTINUOUS for name in MUJOCO},
    **{
        ("ppo", f"{name}-MinAtar"): PUREJAXRL_MINATAR
        for name in ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
    },
}


@pytest.mark.parametrize(("algo", "env"), TABLES)
def test_settings_are_those_of_the_source_that_they_name(algo, env):
    config = preset(algo, env)
    assert {name: settings_of(config)[name] for name in TABLES[algo, env]} == TABLES[algo, env]
    if algo in ("trpo", "npg", "ppo-penalty") and (algo, env) not in PRESETS:
        assert config.num_envs * config.num_steps == 2048


def test_every_preset_says_where_it_is_from_and_what_names_a_source_is_held_to_it():
    assert SOURCES.keys() == PRESETS.keys()
    others = {which for which, source in SOURCES.items() if not source.startswith(("ours", "as published"))}
    assert others <= TABLES.keys()


def test_ppo_on_continuous_actions_without_a_preset_is_told_of():
    own = ActionRecorder()
    assert [lacks_preset(preset(algo, own)) for algo in ("ppo", "ppo-penalty", "trpo")] == [True, True, False]
    assert not lacks_preset(preset("ppo", own, normalize_observations=True))
    assert not any(lacks_preset(preset("ppo", env)) for env in ("CartPole-v1", "Pendulum-v1"))
    for rewards, told in ((False, "neither observations nor rewards are"), (True, "observations are not")):
        record = types.SimpleNamespace(config=preset("ppo", own, normalize_rewards=rewards))
        assert f"on {own!r}: {told} normalised; for continuous" in RunBatch([record], []).notes[-1]
