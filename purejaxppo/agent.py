"""What acts and what judges: a config's networks, with the parameters and statistics of a state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purejaxppo.config import Config
from purejaxppo.fields import limitless
from purejaxppo.networks.heads import PolicyNetwork, SharedNetwork, ValueNetwork, initial_hidden, visible
from purejaxppo.networks.recurrent import restart
from purejaxppo.normalize import normalize_observation
from purejaxppo.types import Observation, TrainState


def networks(config: Config) -> tuple[Any, Any]:
    """`PolicyNetwork` and `ValueNetwork`, apart: neither shares a parameter with the other; or one `SharedNetwork`."""
    env, layers = config.environment, (config.hidden_sizes, config.activation, config.layer_norm)
    kind, memory = config.action_distribution, (config.recurrent, config.recurrent_size)
    for_policy, for_critic = (visible(env.observation_space, x) for x in (config.policy_obs, config.critic_obs))
    if config.shared_torso:
        shared = SharedNetwork(env.action_space, for_policy, *layers, kind, None, *memory)
        return shared, shared.clone(returns_value=True)
    return (
        PolicyNetwork(env.action_space, for_policy, *layers, kind, config.policy_network, *memory),
        ValueNetwork(for_critic, *layers, config.critic_network, *memory),
    )


def normalize(config: Config, state: TrainState, obs: Observation) -> Observation:
    """What the networks see of an observation as the environment gave it."""
    obs = clip(config, obs)
    return normalize_observation(state.observation_statistics, obs) if config.normalize_observations else obs


def clip(config: Config, obs: Observation) -> Observation:
    """Real numbers of an observation, within ±`observation_clip`."""
    bound = config.observation_clip
    if limitless(bound):
        return obs
    return jax.tree.map(lambda x: jnp.clip(x, -bound, bound) if jnp.issubdtype(x.dtype, jnp.floating) else x, obs)


def make_policy(config: Config, state: TrainState) -> Callable[..., tuple[Any, Any]]:
    """The policy of a state: (obs [..., O] as the environment gave it, hidden [..., H]) ↦ π(·|obs), hidden.

    The hidden state is () without memory. `start` [...] says where an episode begins, whatever the hidden state is;
    before the first, `begin` of networks.py gives one.
    """
    policy, _ = networks(config)

    def act(obs: Observation, hidden: Any = (), start: jax.Array | None = None) -> tuple[Any, Any]:
        if start is not None:
            hidden = restart(start, initial_hidden(policy, obs), hidden)
        return policy.apply(state.policy, normalize(config, state, obs), hidden, method="advance")

    return act
