"""The trust-region family of policy-gradient methods, compiled end to end in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

from purejaxppo._version import __version__ as __version__

if TYPE_CHECKING:
    from purejaxppo.algorithms import A2C, ALGORITHMS, NPG, PPO, REINFORCE, TRPO, A2CTrustRegion, PPOPenalty
    from purejaxppo.config import Config
    from purejaxppo.envs.gymnax import GymnaxEnv
    from purejaxppo.errors import UsageError
    from purejaxppo.evaluation import evaluate
    from purejaxppo.experiment.experiment import resume_experiment, run_experiment
    from purejaxppo.parallel.devices import use_cpu_cores
    from purejaxppo.parallel.runs import over_runs
    from purejaxppo.policy.export import export_policy
    from purejaxppo.policy.load import load
    from purejaxppo.policy.video import render
    from purejaxppo.presets import preset
    from purejaxppo.spaces import Box, Discrete, MultiBinary, MultiDiscrete
    from purejaxppo.sweeps.table import sweep
    from purejaxppo.train import init, make_train, update_step

# Everything is imported when it is asked for: `purejaxppo --version` need not wait for JAX, nor training for figures.
_MODULES = {
    "algorithms": ("A2C", "ALGORITHMS", "NPG", "PPO", "REINFORCE", "TRPO", "A2CTrustRegion", "PPOPenalty"),
    "config": ("Config",),
    "envs.gymnax": ("GymnaxEnv",),
    "errors": ("UsageError",),
    "evaluation": ("evaluate",),
    "experiment.experiment": ("resume_experiment", "run_experiment"),
    "parallel.devices": ("use_cpu_cores",),
    "parallel.runs": ("over_runs",),
    "policy.export": ("export_policy",),
    "policy.load": ("load",),
    "policy.video": ("render",),
    "presets": ("preset",),
    "spaces": ("Box", "Discrete", "MultiBinary", "MultiDiscrete"),
    "sweeps.table": ("sweep",),
    "train": ("init", "make_train", "update_step"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"purejaxppo.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "A2C",
    "ALGORITHMS",
    "NPG",
    "PPO",
    "REINFORCE",
    "TRPO",
    "A2CTrustRegion",
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
