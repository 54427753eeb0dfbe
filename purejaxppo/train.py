"""Training as one pure function of a PRNG key.

key ─► init ─► TrainState ─► ┌ rollout ─► advantages ─► update ┐ ─► TrainState, Metrics
                             └───── lax.scan, num_updates ─────┘
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from purejaxppo.advantages import explained_variance, gae, monte_carlo_returns, td_targets
from purejaxppo.agent import clip, make_policy, networks, normalize
from purejaxppo.config import Config
from purejaxppo.evaluation import evaluate
from purejaxppo.health import cause_of_failure, freeze
from purejaxppo.networks.heads import initial_hidden
from purejaxppo.networks.recurrent import swap
from purejaxppo.networks.torso import orthogonalize
from purejaxppo.normalize import RewardNormalizer, observation_statistics, update_statistics
from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.parallel.mesh import NET_AXIS, key_of_shard, mean_over_shards, on_net_axis, shards, sum_over_shards
from purejaxppo.parallel.vmapping import opaque, run_by_run
from purejaxppo.rollout import begin_episodes, rollout
from purejaxppo.types import Batch, Failure, Metrics, Params, Sequences, TrainState, Transition


def make_train(config: Config) -> Callable[[jax.Array], tuple[TrainState, Metrics]]:
    """`train(key) -> (TrainState, Metrics)`, the whole of training, to be jitted and vmapped over keys.

    Metrics are a dict of arrays [num_updates]. In all methods: `episode_return`, `episode_length` (means over the
    episodes that ended, NaN where none did), `episodes`, `alive` (0 from the update on in which a number turned
    non-finite, see `health`; all others are then NaN), `policy_loss`, `value_loss`, `entropy`, `kl` (mean
    KL(π_old ‖ π_new) over the batch), `grad_norm`, `value_grad_norm`, `explained_variance`, `learning_rate`. In PPO
    `clip_fraction`; in PPO-penalty `kl_coef`; in NPG and TRPO `predicted_kl`, `predicted_gain`, `gain`, `step_norm`,
    `xFx`, `cg_residual`, `accepted`; in TRPO `backtracks`. `eval_return` and `eval_length`, present if
    `eval_interval` > 0, hold one value per evaluation: every `eval_interval` updates, and after the last.

    May be called under a trace, with traced numbers.

    Raises:
        UsageError: the config cannot work.
    """
    config.check()

    def train(key: jax.Array) -> tuple[TrainState, Metrics]:
        return train_updates(config, opaque(init(config, key)), config.num_updates)

    return train


def train_updates(config: Config, state: TrainState, num_updates: int) -> tuple[TrainState, Metrics]:
    """`num_updates` updates from `state` on. Any division into calls leads to the same state, bit for bit.

    Evaluations are counted from where the call begins.
    """

    def update(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        return update_step(config, state)

    def period(state: TrainState, length: int) -> tuple[TrainState, tuple[Metrics, Metrics]]:
        state, metrics = jax.lax.scan(update, state, None, length)
        return state, (metrics, evaluate(config, state, evaluation_key(state), config.eval_episodes).means())

    if not config.eval_interval:
        return jax.lax.scan(update, state, None, num_updates)
    whole, rest = divmod(num_updates, config.eval_interval)
    state, (metrics, evaluations) = jax.lax.scan(
        lambda state, _: period(state, config.eval_interval), state, None, whole
    )
    metrics = jax.tree.map(lambda x: x.reshape(-1), metrics)
    if rest:
        state, (last, evaluation) = period(state, rest)
        metrics = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), metrics, last)
        evaluations = jax.tree.map(jnp.append, evaluations, evaluation)
    return state, metrics | evaluations


def init(config: Config, key: jax.Array) -> TrainState:
    """The state before the first update. Raises: UsageError, devices cannot share a run, see `Config.check_mesh`."""
    config.check_mesh(shards(), shards(NET_AXIS))
    env = config.environment
    key, policy_key, critic_key, env_key, kernel_key = jax.random.split(key, 5)
    num_envs = config.num_envs // shards()
    episodes = begin_episodes(key_of_shard(env_key), env, num_envs)
    policy, critic = networks(config)
    hidden, critic_hidden = initial_hidden(policy, episodes.obs), initial_hidden(critic, episodes.obs)
    params = policy.init(policy_key, episodes.obs, hidden, method="advance")
    critic_params = critic.init(critic_key, episodes.obs, critic_hidden, method="advance")
    if config.shared_torso:
        critic_params = ()  # they are the policy's own
    params, critic_params = orthogonalize(kernel_key, (params, critic_params))
    return TrainState(
        policy=params,
        critic=critic_params,
        algorithm=config.algo.init(params),
        critic_optimizer=MinibatchAdam.init(critic_params),
        observation_statistics=observation_statistics(env.observation_space),
        reward_normalizer=RewardNormalizer.init(num_envs),
        rollout=episodes._replace(hidden=hidden, critic_hidden=critic_hidden),
        key=key,
        update=jnp.zeros((), jnp.int32),
        failure=Failure(*jnp.zeros((2,), jnp.int32)),
    )


def update_step(config: Config, state: TrainState) -> tuple[TrainState, Metrics]:
    """One update: rollout → advantages → policy and critic. The normalisers stand still while it lasts.

    If a number turns non-finite, the state stays as it was, but for `failure`, which says so.
    """
    key, rollout_key, minibatch_key = jax.random.split(state.key, 3)

    env, act = config.environment, make_policy(config, state)
    episodes, transitions, sums = rollout(key_of_shard(rollout_key), env, act, state.rollout, config.num_steps)
    sums = sum_over_shards(sums)
    batch, reward_normalizer, critic_hidden = learning_batch(config, state, transitions)

    adam = MinibatchAdam(
        learning_rate(config, state.update), config.max_grad_norm, config.num_epochs, config.num_minibatches
    )
    critic_loss = value_loss(config)
    improve_policy = partial(policy_update(config), config.algo, minibatch_key, state.policy, state.algorithm, batch)
    if config.shared_torso:
        params, algorithm_state, metrics = improve_policy(adam.replace(extra_loss=critic_loss))
        critic_params, critic_moments, critic_metrics = state.critic, state.critic_optimizer, metrics
    else:
        (params, algorithm_state, metrics), (critic_params, critic_moments, critic_metrics) = on_net_axis(
            lambda: improve_policy(adam),
            lambda: adam.minimize(  # on the policy's minibatches, if it has any
                minibatch_key, critic_loss, state.critic, state.critic_optimizer, batch
            ),
        )

    metrics |= {
        "episode_return": sums.returns / sums.episodes,  # NaN where no episode ended
        "episode_length": sums.lengths / sums.episodes,
        "episodes": sums.episodes,
        "entropy": mean_over_shards(jnp.mean(batch.distribution.entropy())),
        "value_loss": critic_metrics["value_loss"],
        "value_grad_norm": critic_metrics["grad_norm"],
        "explained_variance": explained_variance(batch.value, batch.value_target),
        "learning_rate": adam.learning_rate,
    }
    statistics = state.observation_statistics
    updated = state.replace(
        policy=params,
        critic=critic_params,
        algorithm=algorithm_state,
        critic_optimizer=critic_moments,
        observation_statistics=update_statistics(statistics, clip(config, transitions.obs))
        if config.normalize_observations
        else statistics,
        reward_normalizer=reward_normalizer,
        rollout=episodes._replace(critic_hidden=critic_hidden),
        key=key,
        update=state.update + 1,
    )
    return freeze(state, updated, metrics, cause_of_failure(transitions, batch, metrics, updated))


def policy_update(config: Config) -> Callable[..., Any]:
    """The algorithm's update rule: (algorithm, key, policy, state, batch, optimizer) ↦ (policy, state, metrics)."""
    policy, _ = networks(config)

    def update(algo: Any, key: jax.Array, *arguments: Any) -> Any:
        return algo.update(key, policy.apply, *arguments)

    return run_by_run(update) if getattr(config.algo, "run_by_run", False) else update


def learning_batch(config: Config, state: TrainState, transitions: Transition) -> tuple[Batch, RewardNormalizer, Any]:
    """Advantages and value targets of a rollout from `state`: a batch of samples [T·B], or of sequences [B, T].

    Beside it the reward statistics that went into them, and the critic's hidden state [B, H] after the rollout.
    """
    _, critic = networks(config)
    terminated, done = transitions.terminated, transitions.terminated | transitions.truncated
    start = jnp.concatenate([state.rollout.episode_length[None] == 0, done[:-1]])
    obs, next_obs = (normalize(config, state, x) for x in (transitions.obs, transitions.next_obs))
    params = state.policy if config.shared_torso else state.critic
    values, hidden = critic.apply(params, obs, state.rollout.critic_hidden, start, method="advance")
    next_values, _ = critic.apply(params, next_obs, hidden, method="advance")
    log_probs = transitions.distribution.log_prob(transitions.action)

    rewards = jnp.clip(transitions.reward * config.reward_scale, -config.reward_clip, config.reward_clip)
    normalizer = state.reward_normalizer
    if config.normalize_rewards:
        normalizer = normalizer.update(rewards, done, config.gamma)
        rewards = normalizer.normalize(rewards)
    rewards = rewards - config.entropy_reward_coef * log_probs

    advantages = gae(rewards, values, next_values, terminated, done, config.gamma, config.gae_lambda)
    returns = monte_carlo_returns(rewards, next_values, terminated, done, config.gamma)
    targets = {
        "lambda-return": advantages + values,
        "td0": td_targets(rewards, next_values, terminated, config.gamma),
        "monte-carlo": returns,
    }
    batch = Batch(
        obs=obs,
        action=transitions.action,
        log_prob=log_probs,
        distribution=transitions.distribution,
        value=values,
        advantage=advantages if config.advantage_estimator == "gae" else returns - values,
        value_target=targets[config.value_target],
    )
    if not config.is_recurrent:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch), normalizer, ()
    sequences = Sequences(swap(obs), swap(start), state.rollout.hidden, state.rollout.critic_hidden)
    return swap(batch)._replace(obs=sequences), normalizer, jax.tree.map(lambda x: x[-1], hidden)


def value_loss(config: Config) -> Callable[[Params, Batch], tuple[jax.Array, Metrics]]:
    """½ mean (V - target)²; with `value_clip_eps`, the larger of it and that of V kept within ±ε of its old value.

    Beside the policy's loss, on layers that they share, it is weighted by `value_coef`.
    """
    _, critic = networks(config)
    weight = config.value_coef if config.shared_torso else 1.0

    def loss(params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
        values = critic.apply(params, batch.obs)
        clipped = batch.value + jnp.clip(values - batch.value, -config.value_clip_eps, config.value_clip_eps)
        errors = jnp.maximum((values - batch.value_target) ** 2, (clipped - batch.value_target) ** 2)
        value = 0.5 * jnp.mean(errors)
        return weight * value, {"value_loss": value}

    return loss


def learning_rate(config: Config, update: jax.Array) -> jax.Array:
    """Of update u = 0 … U-1: constant, or annealed as α (1 - u/U), so the first is α and the last α/U."""
    updates = config.num_updates
    fraction = jnp.maximum(updates - update, 0) / updates if config.anneal_learning_rate else 1.0
    return jnp.asarray(config.learning_rate * fraction, jnp.float32)


def evaluation_key(state: TrainState) -> jax.Array:
    """A key for an evaluation at this state, which leaves the run's own keys as they are."""
    return jax.random.fold_in(state.key, 0x6576616C)
