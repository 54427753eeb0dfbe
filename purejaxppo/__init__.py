"""The trust-region family of policy-gradient methods, compiled end to end in JAX."""

import importlib
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
    from purejaxppo.experiment.experiment import resume_experiment, run_experiment
    from purejaxppo.policy.export import export_policy
    from purejaxppo.policy.load import load
    from purejaxppo.policy.video import render
    from purejaxppo.sweeps.table import sweep

# What works on files or draws is imported when it is asked for: all that it stands on takes as long as JAX itself.
_LAZY = {
    "export_policy": "purejaxppo.policy.export",
    "load": "purejaxppo.policy.load",
    "render": "purejaxppo.policy.video",
    "resume_experiment": "purejaxppo.experiment.experiment",
    "run_experiment": "purejaxppo.experiment.experiment",
    "sweep": "purejaxppo.sweeps.table",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


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
    "export_policy",
    "init",
    "load",
    "make_train",
    "over_runs",
    "preset",
    "render",
    "resume_experiment",
    "run_experiment",
    "sweep",
    "update_step",
    "use_cpu_cores",
]
