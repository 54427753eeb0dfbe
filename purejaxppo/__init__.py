"""The trust-region family of policy-gradient methods, compiled end to end in JAX."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from purejaxppo.algorithms import A2C, ALGORITHMS, NPG, PPO, REINFORCE, TRPO, PPOPenalty
from purejaxppo.config import Config
from purejaxppo.envs import GymnaxEnv
from purejaxppo.evaluation import evaluate
from purejaxppo.experiment.devices import over_runs, use_cpu_cores
from purejaxppo.presets import preset
from purejaxppo.train import init, make_train, update_step
from purejaxppo.types import Box, Discrete, MultiBinary, MultiDiscrete, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import jax
    import numpy as np

    from purejaxppo.experiment.trained import Trained

__version__ = "0.1.0"


def load(directory: str | Path, seed: int | str = "best", checkpoint: int | str = "last", env: Any = None) -> "Trained":
    """One seed of a run directory, with its config, its state and a ready `act(obs, key=None)`; see `Trained`."""
    from purejaxppo.experiment.trained import load

    return load(directory, seed, checkpoint, env)


def sweep(config: Config, axes: "Mapping[str, Any]", keys: "jax.Array") -> "dict[str, np.ndarray]":
    """Train every combination of the axes' values with every key: tidy columns; see `sweeps.function.sweep`."""
    from purejaxppo.sweeps.function import sweep

    return sweep(config, axes, keys)


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
    "MultiBinary",
    "MultiDiscrete",
    "PPOPenalty",
    "UsageError",
    "evaluate",
    "init",
    "load",
    "make_train",
    "over_runs",
    "preset",
    "sweep",
    "update_step",
    "use_cpu_cores",
]
