"""Compiled evaluation of a policy."""

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.agent import Agent
from purejaxppo.config import Config
from purejaxppo.envs.base import host_failures
from purejaxppo.errors import UsageError
from purejaxppo.keys import ACTIONS, EVALUATION, as_key
from purejaxppo.networks.gsde import step_of_noise
from purejaxppo.parallel.vmapping import any_run
from purejaxppo.precision import at_its_precision, single_precision
from purejaxppo.rollout import begin_episodes, step_envs
from purejaxppo.types import Metrics, RolloutState, TrainState


class Evaluation(NamedTuple):
    """One entry per episode, each complete from its start to its end, or to `config.eval_max_steps`."""

    returns: jax.Array  # [..., E] undiscounted
    lengths: jax.Array  # [..., E] steps
    cut: jax.Array  # [..., E] bool: it had not ended after `config.eval_max_steps`
    success: Any = ()  # [..., E] bool: it ended as one; () where the environment does not tell

    def means(self) -> Metrics:
        told = {} if isinstance(self.success, tuple) else {"eval_success_rate": jnp.mean(self.success, axis=-1)}
        return told | {"eval_return": jnp.mean(self.returns, axis=-1), "eval_length": jnp.mean(self.lengths, axis=-1)}


class Playing(NamedTuple):
    """Where an evaluation stands."""

    steps: jax.Array  # [] int32, the same for all runs that are vmapped: so the loop's condition stays a scalar
    episodes: RolloutState
    playing: jax.Array  # [E] bool: which of them have not ended
    key: jax.Array
    success: Any  # [E] bool, of those that have ended; () where the environment does not tell


@single_precision
@at_its_precision
def evaluate(config: Config, state: TrainState, key: jax.Array, num_episodes: int) -> Evaluation:
    """Play exactly `num_episodes` episodes, in as many environments at once, with the policy and normalisers frozen.

    Each environment plays one episode: to stop after E episodes of a few environments would favour short ones. An
    episode that has not ended after `config.eval_max_steps` is cut off there. Greedy (the policy's mode) or sampled,
    as `config.eval_greedy` says. Nothing of `state` is changed. Environments on the host play `episodes_at_once`.
    `key` may be one that the run uses: it is tagged here.

    Raises:
        UsageError: `num_episodes` is no positive whole number, or `key` is not one PRNG key.
        HostEnvironmentError: an environment on the host failed.
    """
    if not isinstance(num_episodes, numbers.Integral) or num_episodes < 1:
        raise UsageError(f"num_episodes = {num_episodes!r} must be a whole number in [1, inf); pass 100, say.")
    agent, key = Agent.of(config), jax.random.fold_in(as_key(key), EVALUATION)
    at_once = agent.env.episodes_at_once or num_episodes
    with host_failures(agent.env):
        if num_episodes <= at_once:
            played = _play(agent, state, key, num_episodes)
        else:
            keys = jax.random.split(key, -(-num_episodes // at_once))
            parts = jax.lax.map(lambda key: _play(agent, state, key, at_once), keys)
            played = jax.tree.map(lambda part: part.reshape(-1)[:num_episodes], parts)
        return jax.block_until_ready(played) if agent.env.on_host else played


def _play(agent: Agent, state: TrainState, key: jax.Array, num_episodes: int) -> Evaluation:
    env, policy = agent.env, agent.make_policy(state)
    start_key, play_key = jax.random.split(key)
    held_key = jax.random.fold_in(play_key, ACTIONS)
    start = begin_episodes(start_key, env, num_episodes)
    start = start._replace(hidden=agent.policy.initial_hidden(start.obs))

    def step(carry: Playing) -> Playing:
        steps, episodes, playing, key, success = carry
        key, action_key, step_key = jax.random.split(key, 3)
        distribution, hidden = policy(episodes.obs, episodes.hidden)
        if agent.config.action_distribution == "gsde":
            action_key = jax.random.fold_in(held_key, step_of_noise(agent.config, steps))
        action = distribution.mode() if agent.config.eval_greedy else distribution.sample(action_key)
        keys = jax.random.split(step_key, num_episodes)
        stepped, told = step_envs(keys, env, episodes.env, distribution, action)
        env_state, obs, reward, terminated, truncated = stepped
        returns = episodes.episode_return + jnp.where(playing, reward, 0.0)
        lengths = episodes.episode_length + playing
        episodes = RolloutState(env_state, obs, returns, lengths, hidden)
        steps, done = steps + 1, terminated | truncated
        success = jax.tree.map(lambda before, now: before | (playing & done & now), success, told)
        return Playing(steps, episodes, playing & ~done, key, success)

    def unfinished(carry: Playing) -> jax.Array:
        return (carry.steps < agent.config.eval_max_steps) & any_run(carry.playing)

    nothing = jnp.zeros(num_episodes, bool) if env.tells_success else ()
    begun = Playing(jnp.zeros((), jnp.int32), start, jnp.ones(num_episodes, bool), play_key, nothing)
    _, episodes, playing, _, success = jax.lax.while_loop(unfinished, step, begun)
    if env.on_host:
        jax.vmap(env.release)(episodes.env)
    return Evaluation(episodes.episode_return, episodes.episode_length, playing, success)
