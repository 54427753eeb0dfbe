"""Recurrent policies: unrolled as in the rollout, forgetting at episode starts, with memory that pays."""

import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from environments import Recall, Walk
from flax import linen as nn
from jax.flatten_util import ravel_pytree
from support import assert_same_bits, by_cost, quick_jit
from test_spaces import ALGORITHMS, MASK

from purejaxppo import A2C, TRPO, Config, init, load, make_train, preset, update_step
from purejaxppo.agent import Agent
from purejaxppo.cli.export import main as export
from purejaxppo.cli.render import main as render
from purejaxppo.cli.run import main
from purejaxppo.errors import UsageError
from purejaxppo.evaluation import evaluate
from purejaxppo.networks.heads import PolicyNetwork
from purejaxppo.optimize.fisher import fisher_vector_product
from purejaxppo.policy.acting import actor
from purejaxppo.policy.export import TOLERANCE, export_policy, largest_difference
from purejaxppo.policy.load import Trained
from purejaxppo.rollout import rollout
from purejaxppo.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from purejaxppo.train import learning_batch, train_updates
from purejaxppo.types import Sequences

KEY = jax.random.key(0)
SMALL = {"num_envs": 4, "num_steps": 10, "num_minibatches": 2, "hidden_sizes": (6,), "recurrent_size": 5}
FLAGS = """--algo ppo --recurrent lstm --recurrent-size 6 --num-seeds 1 --num-envs 4 --num-steps 16 --num-minibatches 2
           --hidden-sizes 6 --normalize-observations --no-anneal-learning-rate --final-episodes 2 --quiet""".split()


class Sum(nn.RNNCellBase):
    """A policy of one's own: logits from the sum of what the episode has shown."""

    @nn.compact
    def __call__(self, total, obs):
        total = total + nn.Dense(3)(obs)
        return total, total

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.ones((*input_shape[:-1], 3))


BOX = Recall(Box(-2.0, 1.0, (2,)))
POLICIES = {
    "discrete": Config(env=Recall(Discrete(3), "integer"), recurrent="gru"),
    "multi-discrete": Config(env=Recall(MultiDiscrete((3, 4)), "dict", MASK), recurrent="lstm"),
    "multi-binary": Config(env=Recall(MultiBinary(3), "dict"), recurrent="gru"),
    "gaussian": Config(env=BOX, recurrent="lstm"),
    **{
        kind: Config(env=BOX, action_distribution=kind, recurrent="gru")
        for kind in ("gaussian-state-std", "tanh-gaussian", "beta")
    },
    "own": Config(env=Recall(), policy_network=Sum()),
}
QUICK = ("multi-discrete", "own")
QUICK_PAIRS = {("trpo", "gru")}


def stub(config, key):
    """A state whose networks are far from their initialisation."""
    state = init(config, key)
    keys = iter(jax.random.split(key, 100))
    policy, critic = (
        jax.tree.map(lambda x: 0.6 * jax.random.normal(next(keys), x.shape), params)
        for params in (state.policy, state.critic)
    )
    return state.replace(policy=policy, critic=critic)


def collect(config, state, key):
    """A rollout, its batch, and the state that the next one begins with."""
    episodes, transitions, _ = rollout(
        key, config.environment, Agent.of(config).make_policy(state), state.rollout, config.num_steps
    )
    batch, _, critic_hidden = learning_batch(Agent.of(config), state, transitions)
    return transitions, batch, state.replace(rollout=episodes._replace(critic_hidden=critic_hidden))


@pytest.mark.parametrize("kind", by_cost(POLICIES, QUICK, ()))
@pytest.mark.thorough
def test_the_update_sees_the_policy_that_acted(kind):
    """Log-probabilities and values, replayed from the stored hidden states across episode ends, are the rollout's."""
    config = POLICIES[kind].replace(**SMALL)
    *_, policy, critic = Agent.of(config)

    @quick_jit
    def run(key):
        state = stub(config, key)
        _, _, state = collect(config, state, key)
        transitions, batch, _ = collect(config, state, jax.random.fold_in(key, 1))
        replayed, values = policy.apply(state.policy, batch.obs), critic.apply(state.critic, batch.obs)
        off = replayed.log_prob(batch.action) - batch.log_prob, values - batch.value, batch.distribution.kl(replayed)
        return transitions.terminated, state.rollout.episode_length, off, batch.log_prob, batch.value

    ended, carried, off, log_prob, value = run(KEY)
    assert np.all(np.sum(ended, axis=0) == 3)
    assert np.all(carried == 2)  # the rollout begins within episodes
    assert np.std(log_prob) > 0.1
    assert np.std(value) > 0.01
    for x in off:
        assert np.max(np.abs(x)) <= 1e-6


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru(p, hidden, x):
    """Cho et al., 2014, with the reset gate after the product, as in flax and cuDNN."""
    r, z = (sigmoid(x @ p["i" + g]["kernel"] + p["i" + g]["bias"] + hidden @ p["h" + g]["kernel"]) for g in "rz")
    n = np.tanh(x @ p["in"]["kernel"] + p["in"]["bias"] + r * (hidden @ p["hn"]["kernel"] + p["hn"]["bias"]))
    hidden = (1 - z) * n + z * hidden
    return hidden, hidden


def lstm(p, hidden, x):
    """Hochreiter and Schmidhuber, 1997, with Gers et al.'s forget gate."""
    cell, y = hidden
    i, f, g, o = (x @ p["i" + k]["kernel"] + y @ p["h" + k]["kernel"] + p["h" + k]["bias"] for k in "ifgo")
    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
    y = sigmoid(o) * np.tanh(cell)
    return (cell, y), y


CELLS = {
    "gru": (gru, "GRUCell_0", lambda: np.zeros(5)),
    "lstm": (lstm, "OptimizedLSTMCell_0", lambda: (np.zeros(5), np.zeros(5))),
}
ONE_CELL = pytest.mark.parametrize("kind", ["gru", pytest.param("lstm", marks=pytest.mark.slow)])


@ONE_CELL
def test_against_a_loop_in_float64(kind):
    """π(·|s) and V(s), and the V of what a step led to, at episode ends above all; from one rollout to the next."""
    config = Config(env=Walk(), recurrent=kind, gae_lambda=0.0, gamma=0.5, **SMALL)

    @quick_jit
    def run(key):
        state, found = stub(config, key), []
        for i in range(2):
            transitions, batch, state = collect(config, state, jax.random.fold_in(key, i))
            found.append((transitions, batch.value, batch.advantage))
        return (state.policy["params"], state.critic["params"]), found

    params, found = jax.tree.map(lambda x: np.asarray(x, np.float64), run(KEY))
    step, name, initial = CELLS[kind]
    ends = 0

    def advance(p, hidden, obs):
        torso, head = p["Torso_0"]["Dense_0"], p["Dense_0"]
        hidden, y = step(p[name], hidden, np.tanh(obs @ torso["kernel"] + torso["bias"]))
        return hidden, y @ head["kernel"] + head["bias"]

    for env in range(config.num_envs):
        hidden, critic_hidden = initial(), initial()
        for transitions, values, advantages in found:
            for t in range(config.num_steps):
                x = jax.tree.map(lambda x, t=t, env=env: x[t, env], transitions)
                hidden, logits = advance(params[0], hidden, x.obs)
                np.testing.assert_allclose(x.distribution.logits, logits, atol=1e-5)
                critic_hidden, [value] = advance(params[1], critic_hidden, x.obs)
                assert values[env, t] == pytest.approx(value, abs=1e-5)
                _, [next_value] = advance(params[1], critic_hidden, x.next_obs)
                target = x.reward + 0.5 * (1 - x.terminated) * next_value
                assert advantages[env, t] == pytest.approx(target - value, abs=1e-5)
                if x.terminated or x.truncated:
                    hidden, critic_hidden, ends = initial(), initial(), ends + 1
    assert ends >= 2 * config.num_envs


@ONE_CELL
@pytest.mark.thorough
def test_fisher_product_is_with_the_dense_hessian_of_the_kl(kind):
    """In float64, through sequences with an episode end and a hidden state to begin with."""
    with jax.enable_x64(True):
        rng, space = np.random.default_rng(0), Box(-1.0, 1.0, (2,))
        policy = PolicyNetwork(space, (3,), "tanh", action_space=Discrete(3), recurrent=kind, recurrent_size=2)
        obs, start = rng.normal(size=(2, 5, 2)), np.zeros((2, 5), bool)
        start[0, 3] = True
        hidden = jax.tree.map(lambda x: rng.normal(size=x.shape), policy.initial_hidden(obs[:, 0]))
        seen = Sequences(obs, start, hidden, ())
        shapes = nn.unbox(jax.eval_shape(lambda: policy.init(KEY, obs[:, 0], hidden, method="advance")))
        theta, unravel = ravel_pytree(jax.tree.map(lambda x: 0.7 * rng.normal(size=x.shape), shapes))
        assert theta.dtype == np.float64

        def mean_kl(new):
            p, q = (jax.nn.log_softmax(policy.apply(unravel(x), seen).logits) for x in (theta, new))
            return jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1))

        product = fisher_vector_product(lambda theta: policy.apply(unravel(theta), seen), theta, 0.1)
        dense, hessian = quick_jit(lambda: (jax.vmap(product)(jnp.eye(theta.size)), jax.hessian(mean_kl)(theta)))()
        assert np.abs(hessian).max() > 0.02
        np.testing.assert_allclose(dense, hessian + 0.1 * np.eye(theta.size), atol=1e-12)


LEARNING = {"num_envs": 32, "num_steps": 16, "num_epochs": 4, "num_minibatches": 4, "hidden_sizes": (16,)}
LEARNING |= {"recurrent_size": 16, "anneal_learning_rate": True, "gae_lambda": 0.95}
ONE_STEP = {"total_steps": 400 * 512, "learning_rate": 0.02}  # of Adam per rollout, in REINFORCE and A2C
MANY = {"total_steps": 80 * 512, "learning_rate": 0.01}
PAIRS = [(algo, kind) for algo in ALGORITHMS for kind in ("none", "gru", "lstm")]


@pytest.mark.parametrize(("algo", "kind"), by_cost(PAIRS, QUICK_PAIRS, ()))
@pytest.mark.thorough
def test_it_remembers_what_pays_and_a_feed_forward_policy_cannot(algo, kind):
    """The cue is shown once and asked for three steps later: 1 with memory, at most ½ without."""
    pace = ONE_STEP if algo in ("reinforce", "a2c", "a2c-tr") else MANY
    config = Config(env=Recall(Discrete(3)), algo=ALGORITHMS[algo], recurrent=kind, **LEARNING, **pace)

    @quick_jit
    def run(key):
        state, metrics = make_train(config)(key)
        return metrics["episode_return"], evaluate(config, state, key, 256).returns

    during, after = run(KEY)
    assert np.all(np.isfinite(during))
    if kind == "none":
        assert np.mean(after) < 0.65
    else:
        assert np.mean(after) > 0.95


@pytest.mark.thorough
def test_updates_one_by_one_and_in_one_scan_give_the_same_bits():
    """So the hidden states are part of the state that is saved."""
    config = Config(env=Walk(), algo=A2C(), recurrent="gru", normalize_observations=True, **SMALL)
    start = quick_jit(lambda key: init(config, key))(KEY)
    one_by_one, update = start, quick_jit(lambda state: update_step(config, state))
    for _ in range(3):
        one_by_one, _ = update(one_by_one)
    together, _ = quick_jit(lambda state: train_updates(config, state, 3))(start)
    assert_same_bits(together, one_by_one)
    for x in jax.tree.leaves((together.rollout.hidden, together.rollout.critic_hidden)):
        assert x.shape == (4, 5)
        assert np.all(x != 0)


def test_act_carries_the_hidden_state(walker):
    """One observation or a batch, step by step, from the beginning of an episode where none is given."""
    act, state, policy = walker.act, walker.state, Agent.of(walker.config).policy
    obs = np.random.default_rng(0).normal(size=(6, 4, 2)).astype(np.float32)
    seen = Sequences(obs.swapaxes(0, 1), np.zeros((4, 6), bool), policy.initial_hidden(obs[0]), ())
    expected = np.clip(policy.apply(state.policy, seen).mode(), -1, 1)  # [B, T, 1]
    assert np.std(expected) > 0.05
    hidden = hidden_of_one = None
    for t in range(6):
        actions, hidden = act(obs[t], hidden=hidden)
        np.testing.assert_allclose(actions, expected[:, t], atol=1e-6)
        action, hidden_of_one = act(obs[t, 2], hidden=hidden_of_one)
        assert action == pytest.approx(expected[2, t], abs=1e-6)
    sampled, _ = act(obs[0], KEY, hidden)
    assert sampled.shape == (4, 1)


@pytest.mark.slow
def test_an_exported_file_maps_observation_and_hidden_state_to_action_and_next_hidden_state(walker, tmp_path):
    obs, zeros = np.ones((3, 2), np.float32), (np.zeros((3, 5), np.float32),) * 2
    action, carried = walker.act(obs)
    assert export_policy(walker, tmp_path / "policy.jax") <= TOLERANCE
    restored = jax.export.deserialize(bytearray((tmp_path / "policy.jax").read_bytes())).call(obs, zeros)
    assert export_policy(walker, tmp_path / "policy.onnx") <= TOLERANCE
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    assert [x.name for x in session.get_outputs()] == ["action", "next_hidden_0", "next_hidden_1"]
    from_onnx = session.run(None, {"obs": obs, "hidden_0": zeros[0], "hidden_1": zeros[1]})
    for found in (jax.tree.leaves(restored), from_onnx):
        for x, y in zip(found, (action, *carried), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
    wrong = (carried[0], carried[1] + 1e-3)
    assert largest_difference(walker, obs, np.asarray(action), wrong, zeros) == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "minibatches"), [({}, 2), ({"num_envs": 12}, 4), ({"num_envs": 12, "num_minibatches": 6}, 6)]
)
def test_minibatches_left_open_are_of_whole_sequences(settings, minibatches):
    config = preset("trpo", "CartPole-v1", recurrent="gru", **settings)  # 16 as published, and 2 environments
    assert config.num_minibatches == minibatches
    config.check()


class Growing(Sum):
    """Its hidden state grows."""

    def __call__(self, total, obs):
        return jnp.append(total, 0.0), total


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"recurrent": "gru", "num_envs": 6}, "sequences: num_envs = 6 is not divisible by num_minibatches = 4; "),
        ({"recurrent": "rnn"}, "recurrent = 'rnn' is not one of: none, gru, lstm"),
        ({"recurrent": "gru", "recurrent_size": 0}, "recurrent_size = 0 must be a whole number"),
        ({"policy_network": Sum(), "num_envs": 6}, "whole sequences: num_envs = 6 is not"),
        ({"policy_network": Sum(), "env": Walk()}, r"shape \(3,\) for one observation; make it \(2,\)"),
        ({"shared_torso": True, "algo": TRPO()}, "shared_torso = True is for first-order methods: the Fisher matrix"),
        ({"shared_torso": True, "policy_network": Sum()}, "own networks or observations"),
        ({"policy_network": Growing()}, "keep structure, shapes and types"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings, told):
    config = Config(**{"env": Recall(), "num_envs": 4, "num_steps": 8, "num_minibatches": 4} | settings)
    with pytest.raises(UsageError, match=told) as error:
        make_train(config)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def walker():
    """A policy with memory, as `load` would return it."""
    config = Config(env=Walk(continuous=True), recurrent="lstm", **SMALL)
    state = quick_jit(lambda key: stub(config, key))(KEY)
    state.policy["params"]["Dense_0"]["bias"] *= 0.0  # its actions are within the bounds
    return Trained(config, 0, state, 0, actor(config, state))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose environments are on two devices, left in the middle of episodes."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert main([*FLAGS, "--total-steps", "128", "--mesh", "env=2", "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_a_run_on_two_devices_is_evaluated_filmed_and_exported(finished, tmp_path, capsys):
    hidden = load(finished).state.rollout
    assert hidden.hidden[0].shape == hidden.critic_hidden[1].shape == (4, 6)
    command = [sys.executable, "-m", "purejaxppo", "evaluate", str(finished), "--episodes", "3"]
    subprocess.run([*command, "--gymnasium", "CartPole-v1"], check=True, capture_output=True)
    for where in ([], ["--gymnasium", "CartPole-v1"]):
        assert render([str(finished), *where, "--max-steps", "5", "--out", str(tmp_path / "policy.gif")]) == 0
    assert export([str(finished), "--out", str(tmp_path / "policy.onnx")]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_resume_is_exact(finished, tmp_path):
    """Half of a run and the rest of it leave what the whole leaves."""
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert main([*FLAGS, "--total-steps", "256", "--mesh", "env=2", "--out", str(whole)]) == 0
    shutil.copytree(finished, half)
    assert main(["--resume", str(half), "--total-steps", "256", "--quiet"]) == 0
    assert_same_bits(load(half).state, load(whole).state)
    assert (half / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


@pytest.mark.thorough
def test_a_shared_torso_is_moved_by_both_losses():
    """Adam's first moment after A2C's one step is 0.1 · (∇ policy loss + value_coef · ∇ value loss)."""
    config = Config(env=Walk(), algo=A2C(), shared_torso=True, value_coef=0.7, max_grad_norm=np.inf, recurrent="gru")
    config = config.replace(**SMALL)
    *_, policy, critic = Agent.of(config)

    @quick_jit
    def run(key):
        state = stub(config, key)
        batch = learning_batch(Agent.of(config), state, collect(config, state, jax.random.split(state.key, 3)[1])[0])[0]

        def loss(params):
            distribution, values = policy.apply(params, batch.obs), critic.apply(params, batch.obs)
            gain = distribution.log_prob(batch.action) * batch.advantage + 0.01 * distribution.entropy()
            return jnp.mean(0.35 * (values - batch.value_target) ** 2 - gain)

        after, metrics = update_step(config, state)
        return jax.grad(loss)(state.policy), after.algorithm.mu, metrics["grad_norm"], metrics["value_loss"]

    gradient, moment, norm, value_loss = run(KEY)
    for g, m in zip(jax.tree.leaves(gradient), jax.tree.leaves(moment), strict=True):
        np.testing.assert_allclose(m, 0.1 * g, atol=1e-6)
    assert norm == pytest.approx(float(jnp.linalg.norm(ravel_pytree(gradient)[0])), rel=1e-5)
    assert value_loss > 0
    assert set(gradient["params"]) == {"Torso_0", "GRUCell_0", "Dense_0", "Dense_1"}
