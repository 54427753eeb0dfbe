"""T steps in B environments as one scan: auto-reset, and the statistics of episodes that ended."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.envs.base import BaseEnv
from purejaxppo.parallel.vmapping import any_run
from purejaxppo.precision import single_precision
from purejaxppo.spaces import Box, Space
from purejaxppo.types import RolloutState, Transition


class EpisodeSums(NamedTuple):
    """Totals over the episodes that ended within a rollout: O(1) memory, however long it is."""

    episodes: jax.Array  # [] how many
    returns: jax.Array  # [] sum of undiscounted returns
    lengths: jax.Array  # [] sum of lengths


@single_precision
def begin_episodes(key: jax.Array, env: BaseEnv, num_envs: int) -> RolloutState:
    """B fresh episodes."""
    state, obs = jax.vmap(env.reset)(jax.random.split(key, num_envs))
    return RolloutState(state, obs, jnp.zeros(num_envs), jnp.zeros(num_envs, jnp.int32))


def environment_action(space: Space, distribution: Any, action: jax.Array) -> jax.Array:
    """What the environment receives for an action [..., A] of a policy's distribution: as its space is, and bounded."""
    if not isinstance(space, Box):
        return action
    shape = (*action.shape[:-1], *space.shape)
    low, high = (jnp.broadcast_to(jnp.asarray(end), shape) for end in (space.low, space.high))
    return distribution.bound(action.reshape(shape), low, high)


def step_envs(keys: jax.Array, env: BaseEnv, env_state: Any, distribution: Any, action: jax.Array) -> Any:
    """One step in each of B environments: `Env.step` with a leading axis B everywhere."""
    return jax.vmap(env.step)(keys, env_state, environment_action(env.action_space, distribution, action))


@single_precision
def rollout(
    key: jax.Array, env: BaseEnv, policy: Callable[..., tuple[Any, Any]], state: RolloutState, num_steps: int
) -> tuple[RolloutState, Transition, EpisodeSums]:
    """Let `policy` (obs [B, O], hidden [B, H], start [B] → distribution [B], hidden) act for `num_steps` steps.

    Where an episode ends, the next step starts a fresh one; `Transition.next_obs` keeps what the step really led to.
    """
    num_envs = state.episode_length.shape[0]

    def step(
        carry: tuple[RolloutState, EpisodeSums], chance: tuple[jax.Array, Any]
    ) -> tuple[tuple[RolloutState, EpisodeSums], Transition]:
        state, sums = carry
        (step_keys, reset_keys), noise = jnp.split(chance[0], 2), chance[1]
        distribution, hidden = policy(state.obs, state.hidden, state.episode_length == 0)
        action = distribution.sample_with(noise)
        env_state, next_obs, reward, terminated, truncated = step_envs(step_keys, env, state.env, distribution, action)
        done = terminated | truncated
        transition = Transition(state.obs, action, reward, terminated, truncated, next_obs, distribution)

        returns, lengths = state.episode_return + reward, state.episode_length + 1
        sums = EpisodeSums(
            sums.episodes + jnp.sum(done),
            sums.returns + jnp.sum(jnp.where(done, returns, 0.0)),
            sums.lengths + jnp.sum(jnp.where(done, lengths, 0)),
        )
        env_state, obs = _reset_where(done, reset_keys, env, env_state, next_obs)
        state = RolloutState(
            env_state, obs, jnp.where(done, 0.0, returns), jnp.where(done, 0, lengths), hidden, state.critic_hidden
        )
        return (state, sums), transition

    keys = jax.random.split(key, (num_steps, 1 + 2 * num_envs))
    shapes, _ = jax.eval_shape(policy, state.obs, state.hidden, state.episode_length == 0)
    noise = jax.vmap(shapes.noise)(keys[:, 0])  # one draw: many small ones are slow
    (state, sums), transitions = jax.lax.scan(step, (state, EpisodeSums(*jnp.zeros((3,)))), (keys[:, 1:], noise))
    return state, transitions, sums


def _reset_where(done: jax.Array, keys: jax.Array, env: BaseEnv, env_state: Any, obs: Any) -> tuple[Any, Any]:
    """Fresh start states where `done` [B]; the work is skipped in steps where no episode of any run ended."""

    def reset(env_state: Any, obs: Any) -> tuple[Any, Any]:
        def choose(fresh: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(done.reshape(done.shape + (1,) * (old.ndim - 1)), fresh, old)

        fresh = jax.vmap(env.restart)(keys, env_state)
        return jax.tree.map(choose, fresh, (env_state, obs))

    return jax.lax.cond(any_run(done), reset, lambda *unchanged: unchanged, env_state, obs)
