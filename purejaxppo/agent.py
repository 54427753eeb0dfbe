"""What acts and what judges: a config's environment and networks, built once for each program that is traced."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.config import Config
from purejaxppo.envs.base import BaseEnv
from purejaxppo.errors import UsageError
from purejaxppo.fields import limitless
from purejaxppo.networks.heads import PolicyNetwork, SharedNetwork, ValueNetwork, visible
from purejaxppo.networks.recurrent import restart
from purejaxppo.networks.torso import LAYERS
from purejaxppo.normalize import normalize_observation, overflowed, update_statistics
from purejaxppo.types import Observation, Params, TrainState, traits_of


class Agent(NamedTuple):
    """The parts of a run that have no state: its settings, its environment, its two networks."""

    config: Config
    env: BaseEnv
    policy: Any  # PolicyNetwork, or the SharedNetwork that the critic is too
    critic: Any  # ValueNetwork

    @classmethod
    def of(cls, config: Config) -> "Agent":
        """Policy and critic share no parameter, unless the config asks for one torso."""
        env = config.environment
        for_policy, for_critic = (visible(env.observation_space, x) for x in (config.policy_obs, config.critic_obs))
        shape = {name: getattr(config, name) for name in (*LAYERS, "recurrent", "recurrent_size")}
        acting = shape | {name: getattr(config, name) for name in ("action_distribution", "noise_steps")}
        acting["action_space"] = env.action_space
        if config.shared_torso:
            shared = SharedNetwork(for_policy, **acting)
            return cls(config, env, shared, shared.clone(returns_value=True))
        policy = PolicyNetwork(for_policy, network=config.policy_network, **acting)
        if config.critic_hidden_sizes is not None:
            shape["hidden_sizes"] = config.critic_hidden_sizes
        return cls(config, env, policy, ValueNetwork(for_critic, network=config.critic_network, **shape))

    def clip(self, obs: Observation) -> Observation:
        """Real numbers of an observation, within ±`observation_clip`."""
        bound = self.config.observation_clip
        if limitless(bound):
            return obs
        return jax.tree.map(lambda x: jnp.clip(x, -bound, bound) if jnp.issubdtype(x.dtype, jnp.floating) else x, obs)

    def normalize(self, state: TrainState, obs: Observation) -> Observation:
        """What the networks see of an observation as the environment gave it."""
        obs = self.clip(obs)
        if not self.config.normalize_observations:
            return obs
        return normalize_observation(state.observation_statistics, obs)

    def take_in(self, state: TrainState, obs: Observation) -> tuple[Any, jax.Array | None]:
        """Statistics after a rollout's observations [..., O], and whether they overflow; where there are none, None."""
        if not self.config.normalize_observations:
            return state.observation_statistics, None
        statistics = update_statistics(state.observation_statistics, self.clip(obs))
        return statistics, overflowed(state.observation_statistics, statistics)

    def make_policy(self, state: TrainState) -> Callable[..., tuple[Any, Any]]:
        """The policy of a state: (obs [..., O] as the environment gave it, hidden [..., H]) ↦ π(·|obs), hidden.

        The hidden state is () without memory. `start` [...] says where an episode begins, whatever the hidden state is;
        before the first, `policy.initial_hidden` gives one.
        """

        def act(obs: Observation, hidden: Any = (), start: jax.Array | None = None) -> tuple[Any, Any]:
            if start is not None:
                hidden = restart(start, self.policy.initial_hidden(obs), hidden)
            return self.policy.apply(state.policy, self.normalize(state, obs), hidden, method="advance")

        return act

    def value(self, state: TrainState, obs: Observation) -> jax.Array:
        """V [...] of observations [..., O] as the environment gave them.

        V is of rewards as they are learnt from: scaled, clipped and normalised as the config says.

        Raises:
            UsageError: the method has no critic, or one with memory.
        """
        if traits_of(self.config.algo).evolves or self.config.is_recurrent:
            raise UsageError("there is no V of an observation alone: the method has no critic, or one with memory.")
        params = self.critic_params(state.policy, state.critic)
        return self.critic.apply(params, self.normalize(state, obs))

    # Where both networks are moved by one loss, `joined` are the parameters that it is a function of.

    def join(self, policy: Params, critic: Params) -> Params:
        """The joined parameters: those of a shared network, or of both."""
        return policy if self.config.shared_torso else (policy, critic)

    def split(self, joined: Params) -> tuple[Params, Params]:
        """Policy and critic of joined parameters."""
        return (joined, ()) if self.config.shared_torso else joined

    def critic_params(self, policy: Params, critic: Params) -> Params:
        """What the critic's network is applied with."""
        return policy if self.config.shared_torso else critic

    def joined_policy(self, joined: Params, obs: Any) -> Any:
        """π(·|obs) of joined parameters, as the algorithms call a policy."""
        return self.policy.apply(self.split(joined)[0], obs)
