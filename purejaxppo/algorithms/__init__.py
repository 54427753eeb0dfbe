"""The methods, by name. Each differs from the others only in how it moves the policy."""

import dataclasses
from typing import Any

from purejaxppo.algorithms.a2c import A2C
from purejaxppo.algorithms.a2c_tr import A2CTrustRegion
from purejaxppo.algorithms.cem import CEM
from purejaxppo.algorithms.cma_es import CMAES
from purejaxppo.algorithms.npg import NPG
from purejaxppo.algorithms.ppo import PPO
from purejaxppo.algorithms.ppo_penalty import PPOPenalty
from purejaxppo.algorithms.reinforce import REINFORCE
from purejaxppo.algorithms.trpo import TRPO
from purejaxppo.types import Algorithm, EvolutionStrategy

ALGORITHMS: dict[str, type[Algorithm | EvolutionStrategy]] = {
    "reinforce": REINFORCE,
    "a2c": A2C,
    "a2c-tr": A2CTrustRegion,
    "npg": NPG,
    "trpo": TRPO,
    "ppo": PPO,
    "ppo-penalty": PPOPenalty,
    "cem": CEM,
    "cma-es": CMAES,
}


def hyperparameters() -> dict[str, list[str]]:
    """The names of the algorithms' own hyperparameters, and which algorithms have them."""
    kinds: dict[str, Any] = {**ALGORITHMS}
    owners: dict[str, list[str]] = {}
    for algo, kind in kinds.items():
        for field in dataclasses.fields(kind):
            owners.setdefault(field.name, []).append(algo)
    return owners


__all__ = [
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
    "hyperparameters",
]
