"""The trust-region family of policy-gradient methods, compiled end to end in JAX."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from purejaxppo._version import __version__ as __version__
from purejaxppo.algorithms import A2C, ALGORITHMS, NPG, PPO, REINFORCE, TRPO, PPOPenalty
from purejaxppo.config import Config
from purejaxppo.envs.gymnax import GymnaxEnv
from purejaxppo.errors import UsageError
from purejaxppo.evaluation import evaluate
from purejaxppo.parallel.devices import use_cpu_cores
from purejaxppo.parallel.runs import over_runs
from purejaxppo.presets import preset
from purejaxppo.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from purejaxppo.train import init, make_train, update_step

if TYPE_CHECKING:
    from collections.abc import Mapping

    import jax
    import numpy as np

    from purejaxppo.policy.load import Trained


def load(directory: str | Path, seed: int | str = "best", checkpoint: int | str = "last", env: Any = None) -> "Trained":
    """One seed of a run directory, with its config, its state and a ready `act(obs, key=None)`; see `Trained`."""
    from purejaxppo.policy.load import load

    return load(directory, seed, checkpoint, env)


def sweep(config: Config, axes: "Mapping[str, Any]", keys: "jax.Array") -> "dict[str, np.ndarray]":
    """Train every combination of the axes' values with every key: tidy columns; see `sweeps.function.sweep`."""
    from purejaxppo.sweeps.table import sweep

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
