"""The trust-region family of policy-gradient methods, compiled end to end in JAX."""

from purejaxppo.algorithms import A2C, ALGORITHMS, NPG, PPO, REINFORCE, TRPO, PPOPenalty
from purejaxppo.config import Config
from purejaxppo.evaluate import evaluate
from purejaxppo.presets import preset
from purejaxppo.train import init, make_train, update_step

__version__ = "0.1.0"

__all__ = [
    "A2C",
    "ALGORITHMS",
    "NPG",
    "PPO",
    "REINFORCE",
    "TRPO",
    "Config",
    "PPOPenalty",
    "evaluate",
    "init",
    "make_train",
    "preset",
    "update_step",
]
