"""The trust-region family of policy-gradient methods, compiled end to end in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

from purejaxppo._version import __version__ as __version__

if TYPE_CHECKING:
    from purejaxppo.algorithms import A2C as A2C
    from purejaxppo.algorithms import ALGORITHMS as ALGORITHMS
    from purejaxppo.algorithms import CEM as CEM
    from purejaxppo.algorithms import CMAES as CMAES
    from purejaxppo.algorithms import NPG as NPG
    from purejaxppo.algorithms import PPO as PPO
    from purejaxppo.algorithms import REINFORCE as REINFORCE
    from purejaxppo.algorithms import TRPO as TRPO
    from purejaxppo.algorithms import A2CTrustRegion as A2CTrustRegion
    from purejaxppo.algorithms import PPOPenalty as PPOPenalty
    from purejaxppo.config import Config as Config
    from purejaxppo.diagnosis.diagnose import diagnose as diagnose
    from purejaxppo.envs.gymnax import GymnaxEnv as GymnaxEnv
    from purejaxppo.errors import UsageError as UsageError
    from purejaxppo.evaluation import evaluate as evaluate
    from purejaxppo.experiment.experiment import resume_experiment as resume_experiment
    from purejaxppo.experiment.experiment import run_experiment as run_experiment
    from purejaxppo.parallel.devices import use_cpu_cores as use_cpu_cores
    from purejaxppo.parallel.runs import over_runs as over_runs
    from purejaxppo.policy.export import export_policy as export_policy
    from purejaxppo.policy.load import load as load
    from purejaxppo.policy.video import render as render
    from purejaxppo.presets import preset as preset
    from purejaxppo.spaces import Box as Box
    from purejaxppo.spaces import Discrete as Discrete
    from purejaxppo.spaces import MultiBinary as MultiBinary
    from purejaxppo.spaces import MultiDiscrete as MultiDiscrete
    from purejaxppo.sweeps.table import sweep as sweep
    from purejaxppo.train import init as init
    from purejaxppo.train import make_train as make_train
    from purejaxppo.train import update_step as update_step
    from purejaxppo.tuning.tune import tune as tune

# Everything is imported when it is asked for: `purejaxppo --version` need not wait for JAX, nor training for figures.
_MODULES = {
    "algorithms": (
        "A2C",
        "ALGORITHMS",
        "CEM",
        "CMAES",
        "NPG",
        "PPO",
        "REINFORCE",
        "TRPO",
        "A2CTrustRegion",
        "PPOPenalty",
    ),
    "config": ("Config",),
    "diagnosis.diagnose": ("diagnose",),
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
    "tuning.tune": ("tune",),
}

__all__ = [name for names in _MODULES.values() for name in names]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"purejaxppo.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
