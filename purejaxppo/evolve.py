"""One generation of a method that searches without gradients: members ─► whole episodes ─► fitness ─► the next mean."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from purejaxppo.agent import Agent
from purejaxppo.distributions import Distribution
from purejaxppo.health import cause_of_failure, freeze
from purejaxppo.networks.gsde import marginal
from purejaxppo.parallel.mesh import ENV_AXIS, key_of_shard, shards, sum_over_shards
from purejaxppo.rollout import rollout
from purejaxppo.types import Metrics, Params, RolloutState, TrainState


def evolve(agent: Agent, state: TrainState) -> tuple[TrainState, Metrics]:
    """One update of an `EvolutionStrategy`: all environments begin new episodes, and each member acts in its own.

    It acts greedily, for `num_steps` steps. The policy of the state is the mean of the search distribution; it does not
    act here. The metrics are `episode_return`, `episode_length` and `episodes` of the members' episodes that ended,
    `policy_loss` (minus the members' mean fitness), `fitness_best`, and those of the strategy: `search_std`, the root
    mean square of the standard deviations that members were drawn with, and in CMA-ES `sigma`.
    """
    config, strategy = agent.config, agent.config.algo
    key, rollout_key, member_key = jax.random.split(state.key, 3)
    step_key, start_key = jax.random.split(key_of_shard(rollout_key))
    mean, unravel = ravel_pytree(state.policy)
    members = strategy.ask(member_key, mean, state.algorithm, config.num_envs // strategy.envs_per_member)
    here = members  # of several devices that share a run, each has a part of the members, and their environments
    if shards() > 1:
        here = members.reshape(shards(), -1, mean.size)[jax.lax.axis_index(ENV_AXIS)]
    policy = members_policy(agent, state, jax.vmap(unravel)(here))
    begun = begin_generation(start_key, agent, state.rollout)
    episodes, transitions, sums = rollout(step_key, agent.env, policy, begun, config.num_steps, "xla")
    done = transitions.terminated | transitions.truncated
    fitness = fitness_of(transitions.reward, done, strategy.envs_per_member)
    if shards() > 1:
        fitness = jax.lax.all_gather(fitness, ENV_AXIS, tiled=True)
    mean, moved, metrics = strategy.tell(mean, state.algorithm, members, fitness)

    metrics |= sum_over_shards(sums).metrics()
    metrics |= {"policy_loss": -jnp.mean(fitness), "fitness_best": jnp.max(fitness)}
    statistics, overflow = agent.take_in(state, transitions.obs)
    updated = state.replace(
        policy=unravel(mean),
        algorithm=moved,
        observation_statistics=statistics,
        rollout=episodes,
        key=key,
        update=state.update + 1,
    )
    return freeze(state, updated, metrics, cause_of_failure(transitions, None, metrics, updated, overflow))


def begin_generation(key: jax.Array, agent: Agent, before: RolloutState) -> RolloutState:
    """New episodes in all environments, whether the present ones have ended or not."""
    num_envs = len(before.episode_length)
    env_state, obs = jax.vmap(agent.env.begin_anew)(jax.random.split(key, num_envs), before.env)
    returns, lengths = jax.tree.map(jnp.zeros_like, (before.episode_return, before.episode_length))
    return RolloutState(env_state, obs, returns, lengths, agent.policy.initial_hidden(obs), before.critic_hidden)


class Greedy(Distribution):
    """All probability on the mode of another distribution."""

    base: Any

    def noise(self, key: jax.Array) -> tuple[()]:
        return ()

    def sample_with(self, noise: tuple[()]) -> jax.Array:
        return self.base.mode()

    def bound(self, action: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
        """The environment's action, as the other distribution has it."""
        return self.base.bound(action, low, high)


def members_policy(agent: Agent, state: TrainState, members: Params) -> Callable[..., tuple[Any, Any]]:
    """The policy of a rollout in which `members`, parameters [P, ...], act in equally many environments each, in order.

    It normalises observations as `state` does.
    """
    count = len(jax.tree.leaves(members)[0])

    def act_as(member: Params, inputs: Any) -> tuple[Any, Any]:
        distribution, hidden = agent.make_policy(state.replace(policy=member))(*inputs)
        return marginal(distribution), hidden

    def act(*inputs: Any) -> tuple[Any, Any]:
        by_member = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), inputs)
        results = jax.vmap(act_as)(members, by_member)
        distribution, hidden = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)
        return Greedy(distribution), hidden

    return act


def fitness_of(reward: jax.Array, done: jax.Array, envs_per_member: int) -> jax.Array:
    """[P] From reward and done [T, B] of episodes that begin in the first step: each member's mean undiscounted return.

    Of the episodes that it completed; or of the unfinished ones, if it completed none.
    """
    completed = jax.lax.cummax(done.astype(jnp.int32), axis=0, reverse=True)  # 1 up to the last end
    sums = jnp.stack([jnp.sum(x, axis=0) for x in (reward * completed, reward, done.astype(reward.dtype))])
    returns, all_rewards, episodes = jnp.sum(sums.reshape(3, -1, envs_per_member), axis=-1)
    return jnp.where(episodes > 0, returns / jnp.maximum(episodes, 1), all_rewards / envs_per_member)
