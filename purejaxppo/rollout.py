"""T steps in B environments as one scan: auto-reset, and the statistics of episodes that ended."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.envs.base import BaseEnv
from purejaxppo.kernels.choice import kernel_or_xla
from purejaxppo.kernels.loops import scan_in_kernel
from purejaxppo.kernels.padding import NoKernelError
from purejaxppo.networks.gsde import marginal, noise_of_steps
from purejaxppo.parallel.packing import packed_scan
from purejaxppo.parallel.vmapping import any_run
from purejaxppo.platforms import is_small, on_cpu
from purejaxppo.precision import single_precision
from purejaxppo.spaces import Box, Space
from purejaxppo.types import Metrics, RolloutState, Transition

STEPS_AT_ONCE = 8  # in one iteration of an accelerator's loop: one store, one counter, fewer copies for all
FEW_NUMBERS = 32  # of a start state and its observation, that those of all steps may be kept


class EpisodeSums(NamedTuple):
    """Totals over the episodes that ended within a rollout: O(1) memory, however long it is."""

    episodes: jax.Array  # [] how many
    returns: jax.Array  # [] sum of undiscounted returns
    lengths: jax.Array  # [] sum of lengths
    successes: Any = ()  # [] how many were one; () where the environment does not tell

    def metrics(self) -> Metrics:
        """Means over the episodes, NaN where none ended, and how many did."""
        told = {} if isinstance(self.successes, tuple) else {"success_rate": self.successes / self.episodes}
        return told | {
            "episode_return": self.returns / self.episodes,
            "episode_length": self.lengths / self.episodes,
            "episodes": self.episodes,
        }


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
    """One step in each of B environments: `BaseEnv.step_with_success` with a leading axis B everywhere."""
    return jax.vmap(env.step_with_success)(keys, env_state, environment_action(env.action_space, distribution, action))


@single_precision
@jax.named_scope("rollout")
def rollout(
    key: jax.Array,
    env: BaseEnv,
    policy: Callable[..., tuple[Any, Any]],
    state: RolloutState,
    num_steps: int,
    kernels: str = "xla",
) -> tuple[RolloutState, Transition, EpisodeSums]:
    """Let `policy` (obs [B, O], hidden [B, H], start [B] → distribution [B], hidden) act for `num_steps` steps.

    Where an episode ends, the next step starts a fresh one; `Transition.next_obs` keeps what the step really led to.
    """
    num_envs = state.episode_length.shape[0]

    def step(
        carry: tuple[RolloutState, EpisodeSums], chance: tuple[jax.Array, Any, Any]
    ) -> tuple[tuple[RolloutState, EpisodeSums], Transition]:
        state, sums = carry
        step_keys, fresh, noise = chance
        distribution, hidden = policy(state.obs, state.hidden, state.episode_length == 0)
        action = distribution.sample_with(noise)
        stepped, success = step_envs(step_keys, env, state.env, distribution, action)
        env_state, next_obs, reward, terminated, truncated = stepped
        done = terminated | truncated
        transition = Transition(state.obs, action, reward, terminated, truncated, next_obs, marginal(distribution))

        returns, lengths = state.episode_return + reward, state.episode_length + 1
        successes = jax.tree.map(lambda x: done & x, success)
        ended = EpisodeSums(done, jnp.where(done, returns, 0.0), jnp.where(done, lengths, 0), successes)
        sums = jax.tree.map(lambda total, x: total + (x if total.ndim else jnp.sum(x)), sums, ended)
        env_state, obs = _reset_where(done, fresh, env, env_state, next_obs)
        state = RolloutState(
            env_state, obs, jnp.where(done, 0.0, returns), jnp.where(done, 0, lengths), hidden, state.critic_hidden
        )
        return (state, sums), transition

    keys = jax.random.split(key, (num_steps, 1 + 2 * num_envs))
    shapes, _ = jax.eval_shape(policy, state.obs, state.hidden, state.episode_length == 0)
    noise = noise_of_steps(shapes, keys[:, 0])  # one draw: many small ones are slow
    step_keys, reset_keys = jnp.split(keys[:, 1:], 2, axis=1)
    totals = 3 + env.tells_success
    in_all, of_each = EpisodeSums(*jnp.zeros((totals,))), EpisodeSums(*jnp.zeros((totals, num_envs)))

    def by_xla() -> tuple[Any, Transition]:
        if on_cpu():
            return _scan_of_flat(step, (state, in_all), (step_keys, reset_keys, noise))
        starts = jax.vmap(jax.vmap(env.reset))(reset_keys) if _starts_alike(env) else reset_keys
        chance, first = (step_keys, starts, noise), (state, of_each)  # in every step a sum would be a launch
        small = is_small(step, first, jax.tree.map(lambda x: x[0], chance))
        return packed_scan(step, first, chance, unroll=STEPS_AT_ONCE if small else 1)

    def by_kernel() -> tuple[Any, Transition]:
        if env.on_host:
            raise NoKernelError("the host steps its environments")
        if not _starts_alike(env):
            raise NoKernelError("an episode's start is not small, or depends on the episode before")
        starts = jax.vmap(jax.vmap(env.reset))(reset_keys)
        return scan_in_kernel(step, (state, of_each), (step_keys, starts, noise))

    (state, sums), transitions = kernel_or_xla(kernels, "the rollout", by_kernel, by_xla)
    return state, transitions, jax.tree.map(jnp.sum, sums)


def _scan_of_flat(step: Any, carry: tuple[RolloutState, EpisodeSums], chance: Any) -> tuple[Any, Transition]:
    """`lax.scan` whose images and matrices are carried and stacked as vectors.

    XLA's loops on a CPU go over the last axis, and one of few channels takes many times as long: here, and in all that
    reads what was stacked.
    """
    like = carry[0].obs

    def flat(obs: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(x.shape[0], -1) if x.ndim > 2 else x, obs)

    def shaped(obs: Any) -> Any:
        return jax.tree.map(lambda x, y: x.reshape(*x.shape[:-1], *y.shape[1:]) if y.ndim > 2 else x, obs, like)

    def flat_step(carry: Any, chance: Any) -> tuple[Any, Transition]:
        (state, sums), made = step((carry[0]._replace(obs=shaped(carry[0].obs)), carry[1]), chance)
        made = made._replace(obs=flat(made.obs), next_obs=flat(made.next_obs))
        return (state._replace(obs=flat(state.obs)), sums), made

    (state, sums), made = jax.lax.scan(flat_step, (carry[0]._replace(obs=flat(like)), carry[1]), chance)
    made = made._replace(obs=shaped(made.obs), next_obs=shaped(made.next_obs))
    return (state._replace(obs=shaped(state.obs)), sums), made


def _starts_alike(env: BaseEnv) -> bool:
    """Whether each episode starts by a small reset that does not depend on the one before: all can be drawn ahead."""
    start = jax.eval_shape(env.reset, jax.random.key(0))
    numbers = sum(math.prod(x.shape) for x in jax.tree.leaves(start))
    return (
        getattr(env.restart, "__func__", None) is BaseEnv.restart
        and numbers <= FEW_NUMBERS
        and is_small(env.reset, jax.random.key(0))
    )


def _reset_where(done: jax.Array, fresh: Any, env: BaseEnv, env_state: Any, obs: Any) -> tuple[Any, Any]:
    """Fresh start states where `done` [B]; the work is skipped in steps where no episode of any run ended.

    `fresh` are the start states and observations themselves, or the keys [B] that they are to be made with.
    """

    def reset(env_state: Any, obs: Any) -> tuple[Any, Any]:
        def choose(fresh: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(done.reshape(done.shape + (1,) * (old.ndim - 1)), fresh, old)

        starts = fresh if isinstance(fresh, tuple) else jax.vmap(env.restart)(fresh, env_state)
        return jax.tree.map(choose, starts, (env_state, obs))

    if isinstance(fresh, tuple) or (not on_cpu() and is_small(reset, env_state, obs)):
        return reset(env_state, obs)  # a branch waits for the host, and cannot be fused
    return jax.lax.cond(any_run(done), reset, lambda *unchanged: unchanged, env_state, obs)
