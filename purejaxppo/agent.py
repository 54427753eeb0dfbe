"""What acts and what judges: a config's networks, with the parameters and statistics of a state."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purejaxppo.config import Config
from purejaxppo.networks import PolicyNetwork, ValueNetwork, visible
from purejaxppo.normalize import normalize_observation
from purejaxppo.types import Observation, TrainState


def networks(config: Config) -> tuple[Any, Any]:
    """`PolicyNetwork` and `ValueNetwork`, apart: neither shares a parameter with the other."""
    env, layers = config.environment, (config.hidden_sizes, config.activation, config.layer_norm)
    for_policy, for_critic = (visible(env.observation_space, x) for x in (config.policy_obs, config.critic_obs))
    return (
        PolicyNetwork(env.action_space, for_policy, *layers, config.action_distribution, config.policy_network),
        ValueNetwork(for_critic, *layers, config.critic_network),
    )


def normalize(config: Config, state: TrainState, obs: Observation) -> Observation:
    """What the networks see of an observation as the environment gave it."""
    obs = clip(config, obs)
    return normalize_observation(state.observation_statistics, obs) if config.normalize_observations else obs


def clip(config: Config, obs: Observation) -> Observation:
    """Real numbers of an observation, within ±`observation_clip`."""
    bound = config.observation_clip
    if not isinstance(bound, jax.Array) and bound == math.inf:
        return obs
    return jax.tree.map(lambda x: jnp.clip(x, -bound, bound) if jnp.issubdtype(x.dtype, jnp.floating) else x, obs)


def acting(config: Config, state: TrainState) -> Callable[[Observation], Any]:
    """The policy of a state: obs [..., O] as the environment gave it ↦ π(·|obs)."""
    policy, _ = networks(config)
    return lambda obs: policy.apply(state.policy, normalize(config, state, obs))
