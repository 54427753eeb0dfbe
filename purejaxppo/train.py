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
from purejaxppo.agent import Agent
from purejaxppo.config import Config, as_config
from purejaxppo.consistency import one_number_each
from purejaxppo.evaluation import evaluate
from purejaxppo.evolve import evolve
from purejaxppo.fields import limitless
from purejaxppo.health import cause_of_failure, freeze
from purejaxppo.improvement import improvement, told
from purejaxppo.keys import as_key
from purejaxppo.networks.heads import with_log_std
from purejaxppo.networks.recurrent import swap
from purejaxppo.networks.torso import orthogonalize
from purejaxppo.normalize import RewardNormalizer, observation_statistics
from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.optimize.optimizers import with_moments_of
from purejaxppo.parallel.mesh import NET_AXIS, key_of_shard, mean_over_shards, shards, sum_over_shards
from purejaxppo.parallel.packing import packed_scan
from purejaxppo.parallel.vmapping import in_chunks, opaque
from purejaxppo.platforms import on_cpu
from purejaxppo.precision import at_its_precision, single_precision
from purejaxppo.presets import settings_of, with_settings
from purejaxppo.rollout import begin_episodes, rollout
from purejaxppo.stages import parse_stages
from purejaxppo.types import Batch, Failure, Learnt, Metrics, Sequences, TrainState, Transition, traits_of


@single_precision
def make_train(config: Config) -> Callable[[jax.Array], tuple[TrainState, Metrics]]:
    """`train(key) -> (TrainState, Metrics)`, the whole of training, to be jitted and vmapped over keys.

    Metrics are a dict of arrays [num_updates]. In all methods: `episode_return`, `episode_length` (means over the
    episodes that ended, NaN where none did), `episodes`, `alive` (0 from the update on in which a number turned
    non-finite, see `health`; all others are then NaN), `policy_loss`, `value_loss`, `entropy`, `kl` (mean
    KL(π_old ‖ π_new) over the batch), `grad_norm`, `value_grad_norm`, `explained_variance`, `learning_rate`. In PPO
    `clip_fraction`; in PPO-penalty `kl_coef`; in A2C-TR `projected`; in NPG and TRPO `predicted_kl`, `predicted_gain`,
    `gain`, `step_norm`, `xFx`, `cg_residual`, `accepted`; in TRPO `backtracks`. CEM and CMA-ES, without critic and
    gradient, have the first four, `policy_loss`, `fitness_best`, `search_std`, and CMA-ES `sigma`. `success_rate`,
    the share of those episodes, is there if `BaseEnv.tells_success`. `eval_return` and `eval_length`, present if
    `eval_interval` > 0, hold one value per evaluation: every `eval_interval` updates, and after the last. So does
    `eval_success_rate`, if the environment tells successes, too.

    May be called under a trace, with traced numbers.

    Raises:
        UsageError: the config cannot work.
    """
    as_config(config).check()
    one_number_each(config)

    @single_precision
    def train(key: jax.Array) -> tuple[TrainState, Metrics]:
        state, metrics = train_updates(config, opaque(init(config, key)), config.num_updates)
        if config.on_host:  # its processes may serve the next run
            jax.vmap(config.environment.release)(state.rollout.env)
        return state, metrics

    return train


def train_updates(config: Config, state: TrainState, num_updates: int) -> tuple[TrainState, Metrics]:
    """`num_updates` updates from `state` on. Any division into calls leads to the same state, bit for bit.

    Evaluations are counted from where the call begins.
    """
    scan = jax.lax.scan if on_cpu() else packed_scan

    def update(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        return update_step(config, state)

    def period(state: TrainState, length: int) -> tuple[TrainState, tuple[Metrics, Metrics]]:
        state, metrics = scan(update, state, None, length)
        means = evaluate(config, state, state.key, config.eval_episodes).means()
        return state, (metrics, jax.tree.map(lambda x: jnp.where(state.failure.cause > 0, jnp.nan, x), means))

    if not config.eval_interval:
        return scan(update, state, None, num_updates)
    whole, rest = divmod(num_updates, config.eval_interval)
    state, (metrics, evaluations) = jax.lax.scan(
        lambda state, _: period(state, config.eval_interval), state, None, whole
    )
    metrics = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), metrics)
    if rest:
        state, (last, evaluation) = period(state, rest)
        metrics = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), metrics, last)
        evaluations = jax.tree.map(jnp.append, evaluations, evaluation)
    return state, metrics | evaluations


@single_precision
def init(config: Config, key: jax.Array, learnt: Learnt | None = None) -> TrainState:
    """The state before the first update; with `learnt`, networks and statistics are those of another run.

    Raises:
        UsageError: `key` is not one PRNG key, or devices cannot share a run, see `Config.check_mesh`.
    """
    as_config(config).check_mesh(shards(), shards(NET_AXIS))
    agent = Agent.of(config)
    key, policy_key, critic_key, env_key, kernel_key = jax.random.split(as_key(key), 5)
    num_envs = config.num_envs // shards()
    episodes = begin_episodes(key_of_shard(env_key), agent.env, num_envs)
    hidden, critic_hidden = agent.policy.initial_hidden(episodes.obs), agent.critic.initial_hidden(episodes.obs)
    params = agent.policy.init(policy_key, episodes.obs, hidden, method="advance")
    critic_params = agent.critic.init(critic_key, episodes.obs, critic_hidden, method="advance")
    if config.shared_torso or traits_of(config.algo).evolves:
        critic_params = ()  # they are the policy's own, or there is no critic
    params, critic_params = orthogonalize(kernel_key, (params, critic_params))
    if config.policy_network is None:
        params = with_log_std(params, config.action_distribution, config.log_std_init)
    statistics, rewards = observation_statistics(agent.env.observation_space), RewardNormalizer.init(num_envs)
    if learnt is not None:
        params, critic_params, statistics = learnt[:3]
        rewards = rewards.replace(statistics=learnt.reward_statistics)
    learning = agent.join(params, critic_params) if config.is_joint else params
    algorithm = with_moments_of(config.optimizer, config.algo.init(learning), learning)
    fitted = () if config.is_joint else critic_params
    moments = with_moments_of(config.optimizer, MinibatchAdam.init(fitted), fitted)
    return TrainState(
        policy=params,
        critic=critic_params,
        algorithm=algorithm,
        critic_optimizer=moments,
        observation_statistics=statistics,
        reward_normalizer=rewards,
        rollout=episodes._replace(hidden=hidden, critic_hidden=critic_hidden),
        key=key,
        update=jnp.zeros((), jnp.int32),
        failure=Failure(*jnp.zeros((2,), jnp.int32)),
        step_factor=() if limitless(config.desired_kl) or not traits_of(config.algo).first_order else jnp.ones(()),
    )


@single_precision
@at_its_precision
def update_step(config: Config, state: TrainState) -> tuple[TrainState, Metrics]:
    """One update: rollout → advantages → policy and critic.

    The statistics of observations stand still while it lasts; those of rewards take this rollout in first.
    If a number turns non-finite, the state stays as it was, but for `failure`, which says so. `jax.grad` goes through
    it in the first-order methods; in NPG and TRPO only forward mode does. A learning rate that is annealed, as PPO's is
    unless told otherwise, is 0 from update `config.num_updates` on.
    """
    config = staged(config, state.update)
    agent = Agent.of(annealed(config, state.update))
    if traits_of(config.algo).evolves:
        return evolve(agent, state)
    key, rollout_key, minibatch_key = jax.random.split(state.key, 3)
    episodes, transitions, sums = rollout(
        key_of_shard(rollout_key), agent.env, agent.make_policy(state), state.rollout, config.num_steps, config.kernels
    )
    sums = sum_over_shards(sums)
    batch, reward_normalizer, critic_hidden = learning_batch(agent, state, transitions)

    rate = learning_rate(config, state.update)
    if adapts := not isinstance(state.step_factor, tuple):  # `init` has decided
        rate = rate * state.step_factor
    adam = MinibatchAdam(
        rate,
        config.max_grad_norm,
        config.num_epochs,
        config.num_minibatches,
        config.kernels,
        config.optimizer_eps,
        config.weight_decay,
        None if isinstance(config.optimizer, str) else config.optimizer,
    )
    moved, metrics = improvement(config)(agent, state, adam, minibatch_key, batch)
    told(config, metrics, "policy_loss", "grad_norm")
    metrics |= sums.metrics() | {
        "entropy": mean_over_shards(jnp.mean(batch.distribution.entropy())),
        "explained_variance": explained_variance(batch.value, batch.value_target),
        "learning_rate": rate,
    }
    if adapts:
        told(config, metrics, "kl", or_else=f"return KL(π_old ‖ π_new), or leave desired_kl = {config.desired_kl} out")
    statistics, overflow = agent.take_in(state, transitions.obs)
    updated = moved.replace(
        observation_statistics=statistics,
        reward_normalizer=reward_normalizer,
        rollout=episodes._replace(critic_hidden=critic_hidden),
        key=key,
        update=state.update + 1,
        step_factor=adapt_step(state.step_factor, metrics["kl"], config.desired_kl) if adapts else (),
    )
    return freeze(state, updated, metrics, cause_of_failure(transitions, batch, metrics, updated, overflow))


@jax.named_scope("advantages")
def learning_batch(agent: Agent, state: TrainState, transitions: Transition) -> tuple[Batch, RewardNormalizer, Any]:
    """Advantages and value targets of a rollout from `state`: a batch of samples [T·B], or of sequences [B, T].

    Beside it the reward statistics that went into them, and the critic's hidden state [B, H] after the rollout.
    """
    config, critic = agent.config, agent.critic
    terminated, done = transitions.terminated, transitions.terminated | transitions.truncated
    if config.truncation_as_termination:
        terminated = done
    start = jnp.concatenate([state.rollout.episode_length[None] == 0, done[:-1]])
    obs, next_obs = (agent.normalize(state, x) for x in (transitions.obs, transitions.next_obs))
    params = agent.critic_params(state.policy, state.critic)
    if config.is_recurrent:
        values, hidden = critic.apply(params, obs, state.rollout.critic_hidden, start, method="advance")
        next_values, _ = critic.apply(params, next_obs, hidden, method="advance")
    else:
        values = in_chunks(partial(critic.apply, params), obs, 2)
        if not on_cpu():  # one after the other: activations of all samples of all runs need not be there twice
            values, next_obs = jax.lax.optimization_barrier((values, next_obs))
        next_values = in_chunks(partial(critic.apply, params), next_obs, 2)
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


def staged(config: Config, update: jax.Array) -> Config:
    """`config` with its numbers as `config.stages` has them in update u: each stage holds from the first update on
    that begins at its step or later."""
    stages = parse_stages(config.stages)
    if not stages:
        return config
    first = [min(-(-stage.step // config.steps_per_update), 2**31 - 1) for stage in stages]
    begun = jnp.sum(update >= jnp.asarray(first, jnp.int32))
    numbers = {}
    for name in dict.fromkeys(name for stage in stages for name in stage.numbers):
        values = [settings_of(config)[name]]
        for stage in stages:
            values.append(stage.numbers.get(name, values[-1]))
        numbers[name] = jnp.stack([jnp.asarray(x, jnp.float32) for x in values])[begun]
    return with_settings(config, numbers)


def learning_rate(config: Config, update: jax.Array) -> jax.Array:
    """Of update u = 0 … U-1: constant, or annealed as α (1 - u/U), so the first is α and the last α/U."""
    fraction = remaining(config, update) if config.anneal_learning_rate else 1.0
    return jnp.asarray(config.learning_rate * fraction, jnp.float32)


def annealed(config: Config, update: jax.Array) -> Config:
    """`config` with the algorithm's numbers that are to be annealed as they are in update u: x (1 - u/U)."""
    numbers = {name: getattr(config.algo, name) for name in config.anneal}
    left = remaining(config, update)  # what is infinite stays so, where 0 is left, too
    numbers = {name: jnp.where(jnp.isinf(x), x, x * left) for name, x in numbers.items() if not limitless(x)}
    return config.replace(algo=config.algo.replace(**numbers)) if numbers else config


def remaining(config: Config, update: jax.Array) -> jax.Array:
    """1 - u/U in update u = 0 … U-1, and 0 after them."""
    return jnp.maximum(config.num_updates - update, 0) / config.num_updates


def adapt_step(factor: jax.Array, kl: jax.Array, desired_kl: jax.Array | float) -> jax.Array:
    """The factor on Adam's step after an update of mean KL `kl`: ÷1.5 if that is > 2 d, ×1.5 if < d/2.

    The rule of rsl_rl (Rudin et al., 2022, arXiv:2109.11978), there after each minibatch. It is kept within 0.01 … 100.
    """
    low, high = kl < 0.5 * desired_kl, kl > 2.0 * desired_kl
    change = jnp.where(high, 1 / 1.5, jnp.where(low & jnp.isfinite(desired_kl), 1.5, 1.0))
    return jnp.clip(factor * change, 0.01, 100.0)
