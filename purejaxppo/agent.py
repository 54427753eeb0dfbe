"""What acts and what judges: a config's networks, with the parameters and statistics of a state."""

from collections.abc import Callable
from typing import Any

import jax

from purejaxppo.config import Config
from purejaxppo.networks import PolicyNetwork, ValueNetwork
from purejaxppo.types import TrainState


def networks(config: Config) -> tuple[Any, Any]:
    """`PolicyNetwork` and `ValueNetwork`, apart: neither shares a parameter with the other."""
    env = config.environment
    torso = (len(env.observation_space.shape), config.hidden_sizes, config.activation)
    return PolicyNetwork(env.action_space, *torso), ValueNetwork(*torso)


def normalize(config: Config, state: TrainState, obs: jax.Array) -> jax.Array:
    """What the networks see of an observation as the environment gave it."""
    if not config.normalize_observations:
        return obs
    normalized: jax.Array = state.observation_statistics.normalize(obs)
    return normalized


def acting(config: Config, state: TrainState) -> Callable[[jax.Array], Any]:
    """The policy of a state: obs [..., O] as the environment gave it ↦ π(·|obs)."""
    policy, _ = networks(config)
    return lambda obs: policy.apply(state.policy, normalize(config, state, obs))
