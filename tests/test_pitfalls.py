"""The classic mistakes of policy-gradient code, each caught by an environment with a known answer."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import (
    ActionRecorder,
    Bandit,
    ConstantReward,
    OneHotCounter,
    RandomLength,
    RandomStart,
    StepCounter,
    Walk,
    returns_of,
)
from support import assert_same_bits, level_1_jit, quick_jit

from purejaxppo import A2C, REINFORCE, Config, init, make_train
from purejaxppo.agent import Agent
from purejaxppo.envs.gymnax import GymnaxEnv
from purejaxppo.errors import UsageError
from purejaxppo.evaluation import evaluate
from purejaxppo.parallel.vmapping import any_run
from purejaxppo.rollout import rollout
from purejaxppo.train import learning_batch, update_step

KEY = jax.random.key(0)
SMALL = {"hidden_sizes": (8,), "num_envs": 3, "num_steps": 20, "num_minibatches": 1, "num_epochs": 1}


fresh, update = quick_jit(init), quick_jit(update_step)
evaluated = quick_jit(evaluate, static_argnames="num_episodes")


@functools.partial(quick_jit, static_argnames="steps")
def play(config, state, key, steps=20):
    """One rollout: (where the environments stand after it, transitions, sums)."""
    return rollout(key, config.environment, Agent.of(config).make_policy(state), state.rollout, steps)


def trained_critic(env, gamma):
    """V after a critic-only amount of training: obs ↦ V(obs). λ = 1 and few, well-fitted updates."""
    config = Config(
        env=env,
        algo=A2C(),
        num_envs=4,
        num_steps=50,
        total_steps=40 * 200,
        gamma=gamma,
        learning_rate=1e-2,
        anneal_learning_rate=True,
        max_grad_norm=math.inf,
        num_epochs=40,
        num_minibatches=1,
        hidden_sizes=(8,),
    )
    state, _ = quick_jit(make_train(config))(KEY)
    critic = Agent.of(config).critic
    return lambda obs: critic.apply(state.critic, jnp.asarray(obs))


def test_truncated_constant_reward_is_worth_the_infinite_sum():
    """Only a time limit ends the episodes, so V = r / (1 - γ), as if they went on for ever."""
    value = trained_critic(ConstantReward(limit=20), gamma=0.9)(jnp.ones((1, 1)))
    np.testing.assert_allclose(value, 1 / (1 - 0.9), rtol=0.01)


def test_terminated_constant_reward_is_worth_what_remains():
    """The same reward in episodes that really end after L steps: V(s_k) = (1 - γ^(L-k)) / (1 - γ)."""
    env, gamma = OneHotCounter(limit=5, terminates=True), 0.9
    values = trained_critic(env, gamma)(np.eye(6, dtype=np.float32)[:5])
    np.testing.assert_allclose(values, (1 - gamma ** (5 - np.arange(5))) / (1 - gamma), rtol=0.01)


@pytest.mark.parametrize("terminates", [False, True])
def test_bootstrap_sees_the_observation_that_ended_the_episode(terminates):
    """At the end of an episode next_obs is the last counter, never the reset one; only truncation bootstraps."""
    config = Config(env=StepCounter(5, terminates), algo=A2C(), value_target="td0", gamma=0.9, gae_lambda=0.8, **SMALL)
    state = fresh(config, KEY)
    _, transitions, _ = play(config, state, KEY)
    counter = np.tile(np.arange(20)[:, None] % 5, (1, 3))
    np.testing.assert_array_equal(transitions.obs[..., 0], counter)
    np.testing.assert_array_equal(transitions.next_obs[..., 0], counter + 1)
    np.testing.assert_array_equal(transitions.terminated, terminates & (counter == 4))
    np.testing.assert_array_equal(transitions.truncated, (not terminates) & (counter == 4))

    critic = Agent.of(config).critic
    values = np.asarray(critic.apply(state.critic, jnp.arange(6.0)[:, None]), np.float64)
    assert abs(values[5] - values[0]) > 0.1  # the reset observation would be seen
    targets = 1 + 0.9 * np.where(terminates & (np.arange(5) == 4), 0.0, values[1:])
    batch, *_ = learning_batch(Agent.of(config), state, transitions)
    np.testing.assert_allclose(batch.value_target.reshape(20, 3), targets[counter], rtol=1e-5)

    advantages = np.zeros(6)  # of one episode, by hand: no later episode flows into an earlier one
    for k in reversed(range(5)):
        advantages[k] = targets[k] - values[k] + 0.9 * 0.8 * advantages[k + 1]
    np.testing.assert_allclose(batch.advantage.reshape(20, 3), advantages[counter], rtol=1e-4, atol=1e-5)


def test_no_transition_crosses_an_episode():
    """next_obs[t] is obs[t+1], unless the episode ended: then obs[t+1] is a start state. Within and across rollouts."""
    config = Config(env=Walk(), algo=A2C(), **SMALL)
    state = fresh(config, KEY)
    after, first, _ = play(config, state, KEY, 40)
    assert_same_bits(first.obs[0], state.rollout.obs)
    assert np.any(first.terminated)
    assert np.any(first.truncated)
    assert not np.any(first.terminated & first.truncated)
    done = np.asarray(first.terminated | first.truncated)
    following = np.concatenate([first.obs[1:], after.obs[None]])
    np.testing.assert_array_equal(following[~done], np.asarray(first.next_obs)[~done])
    assert np.all(np.abs(following[done][:, 0]) <= 0.1)
    assert np.all(following[done][:, 1] == 0)
    assert np.all(np.asarray(first.next_obs)[done][:, 1] > 0)
    np.testing.assert_array_equal(after.episode_length, after.obs[:, 1].astype(int))


def test_start_states_differ_between_environments_and_episodes():
    """Every episode of every environment, and of every run, draws its own start."""
    config = Config(env=RandomStart(limit=4), algo=A2C(), **SMALL)
    starts = []
    for seed in range(2):
        key = jax.random.key(seed)
        _, transitions, _ = play(config, fresh(config, key), key)
        drawn = np.asarray(transitions.obs[..., 0]).reshape(5, 4, 3)  # episode, step, environment
        np.testing.assert_array_equal(drawn, np.broadcast_to(drawn[:, :1], drawn.shape))
        starts.append(drawn[:, 0])
    assert np.unique(starts).size == 2 * 5 * 3


def test_sampled_actions_differ_between_environments_and_steps():
    """In one state, the policy does not draw the same action everywhere, or the same again and again."""
    config = Config(env=ActionRecorder(), algo=A2C(), **SMALL)
    _, transitions, _ = play(config, fresh(config, KEY), KEY)
    assert np.unique(transitions.action).size == transitions.action.size


@pytest.mark.parametrize("num_episodes", [1, 32])
def test_evaluation_plays_exactly_so_many_complete_episodes(num_episodes):
    """One entry per episode; each return is that of a whole episode of its length, short or long."""
    config = Config(env=RandomLength(limit=6), algo=A2C(), **SMALL)
    played = evaluated(config, fresh(config, KEY), jax.random.key(1), num_episodes)
    assert played.returns.shape == played.lengths.shape == (num_episodes,)
    np.testing.assert_array_equal(played.returns, returns_of(played.lengths))
    assert np.all((played.lengths >= 1) & (played.lengths <= 6))
    assert num_episodes < 32 or np.unique(played.lengths).size == 6  # no length is favoured away


def test_an_evaluation_ends_even_if_its_episodes_do_not():
    """Those that reach the limit count with what they have so far; those that end at it are whole."""
    config = Config(env=RandomLength(limit=6), algo=A2C(), **SMALL)
    state = fresh(config, KEY)
    whole = evaluated(config, state, jax.random.key(1), 32)
    assert not np.any(whole.cut)
    short = evaluated(config.replace(eval_max_steps=4), state, jax.random.key(1), 32)
    np.testing.assert_array_equal(short.lengths, np.minimum(whole.lengths, 4))
    np.testing.assert_array_equal(short.cut, whole.lengths > 4)
    assert 0 < np.sum(short.cut) < 32


@pytest.mark.parametrize("num_episodes", [0, -3, 2.0])
def test_evaluation_refuses_what_is_no_number_of_episodes(num_episodes):
    config = Config(env=Bandit(), algo=A2C(), **SMALL)
    with pytest.raises(UsageError, match=f"num_episodes = {num_episodes} must be a whole number"):
        evaluate(config, None, KEY, num_episodes)


def test_evaluation_is_greedy_or_sampled():
    """The greedy policy does the same in each episode of a bandit; its samples do not."""
    config = Config(env=Bandit(), algo=A2C(), **SMALL)
    state = fresh(config, KEY)
    greedy = evaluated(config, state, jax.random.key(1), 64).returns
    sampled = evaluated(config.replace(eval_greedy=False), state, jax.random.key(1), 64).returns
    best = jnp.argmax(Agent.of(config).make_policy(state)(jnp.zeros((1, 1)))[0].logits)
    np.testing.assert_array_equal(greedy, np.full(64, best))
    assert 0.2 < np.mean(sampled) < 0.8


@pytest.mark.thorough
def test_evaluation_leaves_training_alone():
    """The run ends in the same bits, normalisers included; the last of the ⌈U/k⌉ evaluations is of the last state."""
    config = Config(
        env=Walk(), algo=A2C(), normalize_observations=True, normalize_rewards=True, total_steps=7 * 60, **SMALL
    )
    evaluating = config.replace(eval_interval=3, eval_episodes=5)
    plain, metrics = level_1_jit(make_train(config))(KEY)
    state, with_evaluations = level_1_jit(make_train(evaluating))(KEY)
    assert_same_bits(state, plain)
    assert set(with_evaluations) - set(metrics) == {"eval_return", "eval_length"}
    assert_same_bits({name: with_evaluations[name] for name in metrics}, metrics)
    assert metrics["episode_return"].shape == (7,)
    assert with_evaluations["eval_return"].shape == with_evaluations["eval_length"].shape == (3,)
    before = jax.tree.map(jnp.copy, state)
    again = evaluated(evaluating, state, state.key, 5)
    assert_same_bits(state, before)
    np.testing.assert_allclose(with_evaluations["eval_return"][-1], np.mean(again.returns), rtol=1e-6)
    np.testing.assert_allclose(with_evaluations["eval_length"][-1], np.mean(again.lengths), rtol=1e-6)


def test_decisions_for_all_runs_stay_scalar_under_vmap():
    """`any_run` has one answer for all runs, so that resets and loops remain real branches; `vmap` nests."""
    flags = jnp.zeros((2, 3, 4), bool)
    both = jax.vmap(jax.vmap(any_run, out_axes=None), out_axes=None)  # refused where the answer is one per run
    assert not both(flags)
    assert both(flags.at[1, 2, 3].set(True))


@pytest.mark.parametrize(("updates", "interval"), [(7, 1), (6, 3), (7, 3), (2, 5)])
def test_number_of_evaluations(updates, interval):
    """⌈updates / interval⌉ evaluations, and a value of each metric for each update."""
    config = Config(env=Walk(), algo=A2C(), eval_interval=interval, total_steps=updates * 60, **SMALL)
    _, metrics = jax.eval_shape(make_train(config), KEY)
    assert metrics["eval_return"].shape == (-(-updates // interval),)
    assert metrics["entropy"].shape == (updates,)


def test_gymnax_time_limit_is_truncation():
    """CartPole cut off upright is truncated, not terminated; a fall is termination, even at the time limit."""
    env = GymnaxEnv("CartPole-v1")
    step = quick_jit(env.step)
    state, _ = env.reset(KEY)
    upright = state.replace(x=jnp.zeros(()), x_dot=jnp.zeros(()), theta=jnp.zeros(()), theta_dot=jnp.zeros(()))
    fallen = upright.replace(theta=jnp.asarray(0.3))
    last = jnp.asarray(499, state.time.dtype)

    def flags(state):
        *_, terminated, truncated = step(KEY, state, jnp.asarray(0))
        return bool(terminated), bool(truncated)

    assert flags(upright) == (False, False)
    assert flags(upright.replace(time=last)) == (False, True)
    assert flags(fallen) == (True, False)
    assert flags(fallen.replace(time=last)) == (True, False)


def test_gymnax_time_limit_can_be_set():
    """With a limit of 5 steps every CartPole episode is cut off after exactly 5, and begun anew."""
    config = Config(env=GymnaxEnv("CartPole-v1", max_steps_in_episode=5), algo=A2C(), **SMALL)
    _, transitions, sums = play(config, fresh(config, KEY), KEY)
    np.testing.assert_array_equal(transitions.truncated, np.tile(np.arange(20)[:, None] % 5 == 4, (1, 3)))
    assert not np.any(transitions.terminated)
    assert [float(x) for x in sums[:3]] == [12, 60, 60]  # episodes, returns, lengths


def test_continuous_actions_are_clipped_for_the_environment_only():
    """The environment gets actions within its bounds; what is stored, and its density, are the unclipped sample."""
    config = Config(env=ActionRecorder(), algo=A2C(), **SMALL)
    state = fresh(config, KEY)
    _, transitions, _ = play(config, state, KEY)
    assert np.mean(np.abs(transitions.action) > 0.5) > 0.3
    np.testing.assert_allclose(transitions.next_obs, np.clip(transitions.action, -0.5, 0.5), atol=1e-6)
    assert np.max(np.abs(transitions.next_obs)) == 0.5
    batch, *_ = learning_batch(Agent.of(config), state, transitions)
    assert_same_bits(batch.action, transitions.action.reshape(-1, 2))
    z = np.asarray(transitions.action - transitions.distribution.mean, np.float64)  # σ = 1 at the start
    np.testing.assert_allclose(batch.log_prob, (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1).ravel(), rtol=1e-5)


def test_episode_statistics_equal_a_hand_count():
    """Number, mean return and mean length of the episodes that ended in a rollout, begun in it or before it."""
    config = Config(env=Walk(), algo=A2C(), total_steps=2 * 60, **SMALL)
    state = fresh(config, KEY)
    returns, lengths = np.zeros(3), np.zeros(3)
    for _ in range(2):
        _, rollout_key, *_ = jax.random.split(state.key, 3)
        _, transitions, _ = play(config, state, rollout_key)
        state, metrics = update(config, state)
        ended = []
        for t in range(20):
            returns, lengths = returns + transitions.reward[t], lengths + 1
            done = np.asarray(transitions.terminated[t] | transitions.truncated[t])
            ended += list(zip(returns[done], lengths[done], strict=True))
            returns, lengths = np.where(done, 0, returns), np.where(done, 0, lengths)
        assert metrics["episodes"] == len(ended) > 3
        np.testing.assert_allclose(
            [metrics["episode_return"], metrics["episode_length"]], np.mean(ended, axis=0), rtol=1e-5
        )


def test_episode_statistics_are_nan_only_where_no_episode_ended():
    """Episodes of 30 steps in rollouts of 20: none ends in the first, all do in the second."""
    config = Config(env=StepCounter(limit=30), algo=A2C(), total_steps=3 * 60, **SMALL)
    _, metrics = quick_jit(make_train(config))(KEY)
    np.testing.assert_array_equal(metrics["episodes"], [0, 3, 3])
    np.testing.assert_array_equal(metrics["episode_return"], [np.nan, 30, 30])
    np.testing.assert_array_equal(metrics["episode_length"], [np.nan, 30, 30])
    for name, values in metrics.items():
        assert name.startswith("episode_") or np.all(np.isfinite(values)), name


@pytest.mark.slow
def test_metrics_take_memory_by_updates_not_by_steps():
    """What `train` returns beside the state is one number per metric and update; so is what it keeps while it runs."""

    def memory(num_steps, updates):
        config = Config(
            env="CartPole-v1",
            algo=REINFORCE(),
            num_envs=2,
            num_steps=num_steps,
            total_steps=2 * num_steps * updates,
            hidden_sizes=(4,),
        )
        analysis = quick_jit(make_train(config)).lower(jax.random.key(0)).compile().memory_analysis()
        return analysis.output_size_in_bytes, analysis.temp_size_in_bytes

    (few, few_temporary), (many, many_temporary) = memory(8, 10), memory(8, 1010)
    names = (many - few) / (4 * 1000)
    assert names == int(names)
    assert 10 < names < 20  # metrics, 4 bytes per update each
    assert many_temporary - few_temporary <= 2 * (many - few)
    assert memory(64, 10)[0] == few  # eight times the steps
