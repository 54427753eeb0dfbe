"""The trust-region family of policy-gradient methods, compiled end to end in JAX."""

from purejaxppo.algorithms import A2C, ALGORITHMS, NPG, PPO, REINFORCE, TRPO, PPOPenalty
from purejaxppo.config import Config
from purejaxppo.envs import GymnaxEnv
from purejaxppo.evaluate import evaluate
from purejaxppo.presets import preset
from purejaxppo.train import init, make_train, update_step
from purejaxppo.types import Box, Discrete, UsageError

__version__ = "0.1.0"

__all__ = [
    "A2C",
    "ALGORITHMS",
    "NPG",
    "PPO",
    "REINFORCE",
    "TRPO",
    "Box",
    "Config",
    "Discrete",
    "GymnaxEnv",
    "PPOPenalty",
    "UsageError",
    "evaluate",
    "init",
    "make_train",
    "preset",
    "update_step",
]
