"""Masks, dictionary observations, embeddings, images, modules of one's own: what the networks see, and make of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import scipy.special
import scipy.stats
from environments import REAL_LINE, Probe, Walk
from flax import linen as nn
from jax.experimental import checkify
from support import by_cost, largest_difference, quick_jit
from test_networks import random_params

from purejaxppo import A2C, CEM, NPG, PPO, TRPO, Config, init, make_train, update_step
from purejaxppo.agent import Agent
from purejaxppo.distributions import Bernoulli, Categorical, TanhGaussian
from purejaxppo.errors import UsageError
from purejaxppo.networks.heads import PolicyNetwork
from purejaxppo.networks.torso import Torso
from purejaxppo.optimize.fisher import fisher_vector_product
from purejaxppo.rollout import begin_episodes, rollout
from purejaxppo.spaces import Box, Discrete, MultiBinary, MultiDiscrete

KEY = jax.random.key(0)
SMALL = {"num_envs": 4, "num_steps": 8, "total_steps": 64, "num_minibatches": 2, "num_epochs": 2, "hidden_sizes": (8,)}
MASKS = {"one factor": Discrete(5), "two factors": MultiDiscrete((2, 3))}
both = pytest.mark.parametrize("space", MASKS.values(), ids=MASKS)
mask = np.array([[False, True, True, False, True], [True, False, True, True, False], [True] * 5])


def masked_policy(space, mask=mask):
    """θ ↦ π(·|s) in three states with masks, θ, and π's logits, in float64, as if nothing were masked."""
    spaces = {"x": Box(*REAL_LINE, (4,)), "action_mask": MultiBinary(5)}
    obs = {"x": jax.random.normal(KEY, (len(mask), 4)), "action_mask": jnp.asarray(mask)}
    policy = PolicyNetwork({"x": spaces["x"]}, (6,), "tanh", action_space=space)
    params = random_params(policy, obs)
    theta, unravel = jax.flatten_util.ravel_pytree(params)
    free = policy.apply(params, {"x": obs["x"]}).logits
    return lambda theta: policy.apply(unravel(theta), obs), theta, np.asarray(free, np.float64)


def probabilities(space, logits, mask=mask):
    """π of each action of each factor, zeros where masked, by hand."""
    sizes = [5] if isinstance(space, Discrete) else space.nvec
    rows = logits[:, None] if isinstance(space, Discrete) else logits
    masks = np.split(mask, np.cumsum(sizes)[:-1], axis=-1)
    return [
        scipy.special.softmax(np.where(m, rows[:, i, :n], -np.inf), axis=-1)
        for i, (n, m) in enumerate(zip(sizes, masks, strict=True))
    ]


@both
def test_masked_actions_have_probability_zero_and_the_others_share_theirs(space):
    policy, theta, logits = masked_policy(space)
    pi, rho = policy(theta), policy(0.5 * theta)
    expected, theirs = probabilities(space, logits), probabilities(space, np.asarray(rho.logits, np.float64))

    probs = np.exp(np.asarray(pi.log_probs)).reshape(3, len(expected), -1)
    for i, (ours, them) in enumerate(zip(expected, theirs, strict=True)):
        np.testing.assert_allclose(probs[:, i, : ours.shape[-1]], ours, rtol=1e-4)
        assert np.all((probs[:, i, : ours.shape[-1]] == 0) == (ours == 0))
        assert np.all((ours == 0) == (them == 0))
    entropy = sum(scipy.stats.entropy(p, axis=-1) for p in expected)
    kl = sum(scipy.special.rel_entr(p, q).sum(-1) for p, q in zip(expected, theirs, strict=True))
    np.testing.assert_allclose(pi.entropy(), entropy, atol=1e-5)
    np.testing.assert_allclose(pi.kl(rho), kl, rtol=1e-3, atol=1e-5)

    samples = np.asarray(jax.vmap(pi.sample)(jax.random.split(KEY, 3000))).reshape(3000, 3, -1)
    for i, ours in enumerate(expected):
        seen = (samples[:, :, i, None] == np.arange(ours.shape[-1])).mean(0)
        assert np.all((seen == 0) == (ours == 0))
        np.testing.assert_allclose(seen, ours, atol=0.05)
    forbidden = jnp.zeros((3,) if isinstance(space, Discrete) else (3, 2), jnp.int32)
    assert float(jnp.exp(pi.log_prob(forbidden))[0]) == 0.0


@pytest.mark.parametrize(
    "space", [pytest.param(MASKS["one factor"], marks=pytest.mark.slow), MASKS["two factors"]], ids=MASKS
)
@pytest.mark.thorough
def test_derivatives_through_a_mask_are_finite_and_make_no_nan_on_the_way(space):
    """Forward, backward, and the Fisher product, which is the Hessian of the KL; each operation checked."""
    policy, theta, _ = masked_policy(space)
    pi, v = policy(theta), jnp.ones_like(theta)
    action = pi.sample(KEY)
    for value in (
        lambda t: policy(t).log_prob(action).sum(),
        lambda t: policy(t).entropy().sum(),
        lambda t: pi.kl(policy(t)).mean(),
        lambda t: policy(t).kl(policy(0.9 * theta)).mean(),
    ):
        for derivative in (jax.grad(value), lambda t, f=value: jax.jvp(f, (t,), (v,))):
            error, result = quick_jit(checkify.checkify(derivative, errors=checkify.float_checks))(1.1 * theta)
            error.throw()
            assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(result))
    hessian = quick_jit(jax.hessian(lambda t: pi.kl(policy(t)).mean()))(theta)
    product = fisher_vector_product(policy, theta, 0.0)
    np.testing.assert_allclose(quick_jit(jax.vmap(product))(jnp.eye(theta.size)), hessian, atol=2e-6)


def test_where_everything_is_forbidden_nothing_is():
    free = np.ones((3, 5), bool)
    for space in MASKS.values():
        (policy, theta, _), (unmasked, *_) = masked_policy(space, ~free), masked_policy(space, free)
        np.testing.assert_array_equal(policy(theta).logits, unmasked(theta).logits)


MASKED = Probe(Discrete(4), "dict", (False, True, True, True))


def test_networks_see_the_entries_that_they_are_told_to_and_never_the_mask():
    """Which inputs change an output; entries are flattened in the order of their names."""
    for entries, sees in (((), ["side", "noise"]), (("noise",), ["noise"]), (("side",), ["side"])):
        *_, policy, critic = Agent.of(Config(env=MASKED, hidden_sizes=(8,), policy_obs=entries, critic_obs=("side",)))
        obs = {"side": jnp.ones(1), "noise": jnp.ones((2, 2)), "action_mask": jnp.ones(4, bool)}
        for network, seen in ((policy, sees), (critic, ["side"])):
            params = random_params(network, obs)
            base = jax.tree.leaves(network.apply(params, obs))[0]
            for name in ("side", "noise"):
                changed = jax.tree.leaves(network.apply(params, {**obs, name: -obs[name]}))[0]
                assert (np.abs(changed - base).max() > 1e-3) == (name in seen)
        masked = critic.apply(params, {**obs, "action_mask": jnp.zeros(4, bool)})
        np.testing.assert_array_equal(masked, base)


def test_entries_are_normalised_apart_and_the_mask_not_at_all():
    config = Config(env=MASKED, algo=A2C(), normalize_observations=True, **SMALL)
    state = quick_jit(lambda key: update_step(config, init(config, key))[0])(KEY)
    statistics = state.observation_statistics
    assert set(statistics) == {"side", "noise"}
    assert statistics["noise"].mean.shape == (2, 2)
    np.testing.assert_array_equal(statistics["side"].count, [32.0])
    plain = config.replace(normalize_observations=False)
    obs = {"side": jnp.ones((3, 1)), "noise": jnp.ones((3, 2, 2)), "action_mask": jnp.asarray([[False, True] * 2] * 3)}
    scaled = obs | {name: entry.normalize(obs[name]) for name, entry in statistics.items()}
    (ours, _), (theirs, _) = Agent.of(config).make_policy(state)(obs), Agent.of(plain).make_policy(state)(scaled)
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class Mixed(Walk):
    """The walk, seen through a large image of bytes, a small image, an integer and a vector."""

    continuous: bool = True

    @property
    def observation_space(self):
        bytes_, small = Box(0, 255, (40, 36, 2)), Box(0.0, 1.0, (4, 4, 1))
        return {"camera": bytes_, "map": small, "step": Discrete(16), "x": Box(*REAL_LINE, ())}

    def observe(self, state):
        camera = jnp.full((40, 36, 2), 100 + 50 * state.x).astype(jnp.uint8)
        return {"camera": camera, "map": jnp.full((4, 4, 1), state.x), "step": state.steps, "x": state.x}


@pytest.mark.thorough
def test_a_rollout_shows_images_as_they_are_and_records_the_same_on_every_platform(monkeypatch):
    env, seen, found = Config(env=Mixed(continuous=False)).environment, [], []

    def policy(obs, hidden, start):
        seen.append({name: x.shape for name, x in obs.items()})
        return Categorical(jnp.stack([obs["x"], jnp.mean(obs["map"], axis=(1, 2, 3))], axis=-1)), hidden

    state = begin_episodes(KEY, env, 3)
    for cpu in (True, False):  # whose scans differ
        monkeypatch.setattr("purejaxppo.rollout.on_cpu", lambda cpu=cpu: cpu)
        found.append(quick_jit(lambda state: rollout(KEY, env, policy, state, 20))(state))
    recorded = [made._replace(obs=made.obs["map"], next_obs=made.next_obs["map"]) for _, made, _ in found]
    assert largest_difference(*recorded) < 1e-5
    state, made, sums = found[0]
    shapes = {"camera": (40, 36, 2), "map": (4, 4, 1), "step": (), "x": ()}
    assert all(x == {name: (3, *shape) for name, shape in shapes.items()} for x in seen)
    for obs, before in ((made.obs, (20, 3)), (made.next_obs, (20, 3)), (state.obs, (3,))):
        assert {name: x.shape for name, x in obs.items()} == {name: (*before, *shape) for name, shape in shapes.items()}
        np.testing.assert_array_equal(obs["map"][..., 3, 2, 0], obs["x"])
    done = np.asarray(made.terminated | made.truncated)
    assert 0 < sums.episodes == done.sum()
    after, reached = np.asarray(made.obs["map"][1:]), np.asarray(made.next_obs["map"][:-1])
    np.testing.assert_array_equal((after == reached).all(axis=(2, 3, 4)), ~done[:-1])


@pytest.mark.slow
def test_all_kinds_of_entries_train_together():
    algo = TRPO(fisher_subsample=2)
    config = Config(env=Mixed(), algo=algo, action_distribution="beta", normalize_observations=True, **SMALL)
    state, metrics = quick_jit(lambda key: update_step(config, init(config, key)))(KEY)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((state.policy, state.critic)))
    assert metrics["alive"] == 1
    assert state.policy["params"]["Torso_0"]["Embed_0"]["embedding"].shape == (16, 8)
    assert "step" not in state.observation_statistics
    assert metrics["kl"] > 0


def test_integers_are_embedded_by_a_row_each():
    torso = Torso(Discrete(7), (5,), "tanh")
    obs = jnp.asarray([[0, 6], [3, 3]])
    params = random_params(torso, obs)
    weights = jax.tree.map(np.asarray, params["params"])
    assert weights["Embed_0"]["embedding"].shape == (7, 5)
    rows = weights["Embed_0"]["embedding"][np.asarray(obs)]
    expected = np.tanh(rows @ weights["Dense_0"]["kernel"] + weights["Dense_0"]["bias"])
    np.testing.assert_allclose(torso.apply(params, obs), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", by_cost([np.uint8, np.float32], [np.uint8]))
def test_large_images_go_through_the_nature_network(dtype):
    """Against SciPy's correlations: 32 8×8/4, 64 4×4/2, 64 3×3/1, dense 512; bytes divided by 255."""
    obs = np.random.default_rng(0).integers(0, 256, (44, 36, 2)).astype(dtype)
    torso = Torso(Box(0, 255, obs.shape), (), "tanh")
    shapes = nn.unbox(jax.eval_shape(torso.init, KEY, jnp.asarray(obs)))["params"]
    rng = np.random.default_rng(1)
    params = {
        name: {k: (0.05 if dtype == np.uint8 else 0.005) * rng.standard_normal(x.shape) for k, x in layer.items()}
        for name, layer in shapes.items()
    }
    x = obs / 255.0 if dtype == np.uint8 else obs.astype(np.float64)
    for layer, (size, stride, out) in enumerate([(8, 4, 32), (4, 2, 64), (3, 1, 64)]):
        weights = params[f"Dense_{layer}"]
        kernel = weights["kernel"].reshape(size, size, x.shape[-1], out)
        full = [
            sum(scipy.signal.correlate2d(x[..., c], kernel[:, :, c, o], "valid") for c in range(x.shape[-1]))
            for o in range(out)
        ]
        x = np.maximum(np.stack(full, axis=-1)[::stride, ::stride] + weights["bias"], 0.0)
    assert x.shape == (2, 1, 64)
    expected = np.maximum(x.reshape(-1) @ params["Dense_3"]["kernel"] + params["Dense_3"]["bias"], 0.0)
    assert expected.shape == (512,)
    assert expected.max() > 1e-3
    features = torso.apply({"params": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)}, jnp.asarray(obs))
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4 * expected.max())


@pytest.mark.parametrize(("shape", "dtype"), [((3, 9, 9), np.float32), ((4, 36, 40), np.uint8), ((7, 9), np.uint8)])
def test_images_may_have_their_channels_first_and_bytes_are_divided_by_255(shape, dtype):
    """The same features as of the image turned round, and as of real numbers between 0 and 1."""
    obs = np.random.default_rng(0).integers(0, 256, (2, *shape)).astype(dtype)
    torso, turned = Torso(Box(0, 255, shape), (5,), "tanh"), np.moveaxis(obs, 1, -1) if len(shape) == 3 else obs
    params = random_params(torso, jnp.asarray(obs))
    scaled = turned / np.float32(255) if dtype == np.uint8 else turned
    same = Torso(Box(0, 255, turned.shape[1:]), (5,), "tanh")
    np.testing.assert_allclose(torso.apply(params, obs), same.apply(params, scaled), rtol=1e-5, atol=1e-5)


def test_layer_norm_comes_before_each_activation():
    obs = np.random.default_rng(2).standard_normal((5, 4)).astype(np.float32)
    torso = Torso(Box(*REAL_LINE, (4,)), (6, 3), "relu", layer_norm=True)
    params = random_params(torso, obs)
    x = obs.astype(np.float64)
    for i in range(2):
        weights = jax.tree.map(np.asarray, params["params"])
        dense, norm = weights[f"Dense_{i}"], weights[f"LayerNorm_{i}"]
        x = x @ dense["kernel"] + dense["bias"]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = np.maximum(x * norm["scale"] + norm["bias"], 0.0)
    np.testing.assert_allclose(torso.apply(params, obs), x, atol=1e-4)


class Logits(nn.Module):
    """A policy of one's own: of a vector, or of the entries of a dictionary that it is to see."""

    outputs: int

    @nn.compact
    def __call__(self, obs):
        x = jnp.concatenate([obs[name].reshape(*obs["side"].shape[:-1], -1) for name in ("noise", "side")], axis=-1)
        return nn.Dense(self.outputs)(nn.relu(nn.Dense(8)(x)))


class Whole(nn.Module):
    """A policy that is a distribution itself, whose std falls with x."""

    @nn.compact
    def __call__(self, obs):
        return TanhGaussian(nn.Dense(1)(obs), -0.1 * nn.softplus(nn.Dense(1)(obs)))


class Scalar(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return nn.Dense(1)(nn.tanh(nn.Dense(8)(obs)))[..., 0]


@pytest.mark.parametrize(
    "algo",
    [
        pytest.param(A2C(), id="a2c"),
        *(pytest.param(x(), id=x.__name__.lower(), marks=pytest.mark.slow) for x in (PPO, NPG)),
    ],
)
@pytest.mark.thorough
def test_modules_of_ones_own_train(algo):
    """One that gives logits, which the mask then rules; one that gives a distribution; and a critic."""
    for settings in (
        {"env": MASKED, "policy_network": Logits(4)},
        {"env": Walk(continuous=True), "policy_network": Whole(), "critic_network": Scalar()},
    ):
        config = Config(algo=algo, **settings, **SMALL)
        start = quick_jit(lambda key, config=config: init(config, key))(KEY)
        state, metrics = quick_jit(make_train(config))(KEY)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((state.policy, state.critic)))
        assert np.all(metrics["kl"] > 0)
        moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), start.policy, state.policy)
        assert max(jax.tree.leaves(moved)) > 1e-4
    config = Config(env=MASKED, policy_network=Logits(4), **SMALL)
    obs = {"side": jnp.ones(1), "noise": jnp.ones((2, 2)), "action_mask": jnp.asarray([False, True, True, True])}
    distribution, _ = Agent.of(config).make_policy(init(config, KEY))(obs)
    assert isinstance(distribution, Categorical)
    assert float(jnp.exp(distribution.log_probs[0])) == 0.0


class Fewer(nn.Module):
    """Layers of bfloat16."""

    outputs: int

    @nn.compact
    def __call__(self, obs):
        x = nn.tanh(nn.Dense(8, dtype=jnp.bfloat16)(obs))
        return nn.Dense(self.outputs, dtype=jnp.bfloat16)(x)


@pytest.mark.parametrize("algo", [PPO(), A2C()], ids=lambda algo: type(algo).__name__)
def test_likelihoods_and_kl_are_float32_whatever_a_modules_layers_are(algo):
    config = Config(env=Walk(), algo=algo, policy_network=Fewer(2), **SMALL)
    config.check()
    _, metrics = jax.eval_shape(make_train(config), KEY)
    assert {metrics[name].dtype for name in ("kl", "entropy", "policy_loss")} == {jnp.dtype(jnp.float32)}


class Unspread(nn.Module):
    """log σ is not that of each observation."""

    @nn.compact
    def __call__(self, obs):
        return TanhGaussian(nn.Dense(1)(obs), self.param("log_std", nn.initializers.zeros, (1,)))


class Noisy(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, obs):
        return nn.Dense(1)(self.layer(nn.Dense(4)(obs)))


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (Unspread(), r"Unspread returns shape \(1,\) for two observations; make it \(2, 1\)"),
        (Noisy(nn.BatchNorm(use_running_average=True)), "fails on one observation .*batch_stats"),
        (nn.Dense(1, param_dtype=jnp.float16), "has parameters of float16; leave param_dtype at float32"),
        (Noisy(nn.Dropout(0.5, deterministic=False)), "fails on one observation .*PRNG"),
    ],
)
def test_modules_that_would_train_wrongly_are_refused(network, told):
    with pytest.raises(UsageError, match=told):
        Config(env=Walk(continuous=True), policy_network=network, **SMALL).check()
    with pytest.raises(UsageError, match=r"critic_network = Pair returns tuple"):
        Config(env=Walk(), critic_network=Pair(), **SMALL).check()


class Pair(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return Scalar()(obs), obs


def test_the_value_of_what_the_environment_shows_is_the_critics():
    config = Config(env=Walk(), normalize_observations=True, **SMALL)
    agent, (state, _) = Agent.of(config), quick_jit(make_train(config))(KEY)
    obs = state.rollout.obs
    expected = agent.critic.apply(state.critic, agent.normalize(state, obs))
    np.testing.assert_array_equal(agent.value(state, obs), expected)
    assert agent.value(state, obs[0]).shape == ()
    for other in ({"algo": CEM()}, {"recurrent": "gru", "recurrent_size": 2}):
        with pytest.raises(UsageError, match="no V of an observation alone"):
            Agent.of(Config(env=Walk(), **other)).value(state, obs)


class OfLogits(nn.Module):
    """Logits of four actions, of which the first is the best, as a distribution of some `kind`."""

    kind: type

    @nn.compact
    def __call__(self, obs):
        return self.kind(nn.Dense(4, bias_init=lambda *_: jnp.asarray([9.0, 0.0, 0.0, 0.0]))(obs["side"]))


def test_a_mask_rules_a_module_that_gives_a_distribution_or_it_is_refused():
    config = Config(env=MASKED, policy_network=OfLogits(Categorical), **SMALL)
    obs = {"side": jnp.ones(1), "noise": jnp.ones((2, 2)), "action_mask": jnp.asarray([False, True, True, True])}
    distribution, _ = Agent.of(config).make_policy(init(config, KEY))(obs)
    assert float(jnp.exp(distribution.log_probs[0])) == 0.0
    with pytest.raises(UsageError, match="OfLogits returns Bernoulli, which no mask can rule; return the logits"):
        Config(env=MASKED, policy_network=OfLogits(Bernoulli), **SMALL).check()
