"""TRPO's promises on 1,000 random batches, judged in float64; NPG and the ball against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from support import quick_jit

from purejaxppo.algorithms import NPG, TRPO
from purejaxppo.networks.heads import PolicyNetwork
from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.optimize.permutation import permutation
from purejaxppo.spaces import Box, Discrete
from purejaxppo.types import Batch

RUNS, N, OBS = 1000, 64, 3
SPACES = {"discrete": Discrete(3), "continuous": Box(-1.0, 1.0, (2,))}

both = pytest.mark.parametrize("kind", list(SPACES))


# The package's side


def network(kind):
    return PolicyNetwork(Box(-jnp.inf, jnp.inf, (OBS,)), (8,), "tanh", action_space=SPACES[kind])


@functools.cache
def behaviour(kind):
    """(actions, their log-probabilities, distributions) of every run's policy."""

    def behave(key, params, obs):
        distribution = network(kind).apply(params, obs)
        action = distribution.sample(key)
        return action, distribution.log_prob(action), distribution

    keys = jax.random.split(jax.random.key(0), RUNS)
    return quick_jit(lambda params, obs: jax.vmap(behave)(keys, params, obs))


@functools.cache
def problems(kind):
    """(params, batch) of every run: policies far from uniform, advantages of any scale, some with heavy tails."""
    policy, rng = network(kind), np.random.default_rng(0)
    obs = rng.standard_normal((RUNS, N, OBS))
    shapes = nn.unbox(jax.eval_shape(policy.init, jax.random.key(0), jnp.zeros(OBS)))
    params = jax.tree.map(lambda x: 0.6 * rng.standard_normal((RUNS, *x.shape)), shapes)
    tail = np.where(rng.random((RUNS, 1)) < 0.5, 1, 3)
    advantage = rng.standard_normal((RUNS, N)) ** tail + obs[:, :, 0] + rng.standard_normal((RUNS, 1))
    advantage *= 10.0 ** rng.uniform(-2, 3, (RUNS, 1))
    params, obs, advantage = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, obs, advantage))

    action, log_prob, distribution = behaviour(kind)(params, obs)
    nothing = jnp.zeros((RUNS, N))
    return params, Batch(obs, action, log_prob, distribution, nothing, advantage, nothing)


@functools.cache
def compiled(kind):
    """`update`, for hyperparameters, params and batch of every run; compiled once for each static setting."""

    def update(algorithm, params, batch):
        return algorithm.update(
            jax.random.key(0), network(kind).apply, params, (), batch, MinibatchAdam(1e-3, jnp.inf, 1, 1)
        )

    return quick_jit(jax.vmap(update))


def per_run(algorithm):
    """The same hyperparameters in every run."""
    return jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.float32), (RUNS,)), algorithm)


def varied_trpo(**changes):
    """Trust regions from 10⁻³ to 1, dampings from 10⁻³ to 0.1, and backtracking that shortens little or much."""
    rng = np.random.default_rng(0)
    return TRPO(
        max_kl=jnp.asarray(10.0 ** rng.uniform(-3, 0, RUNS), jnp.float32),
        damping=jnp.asarray(10.0 ** rng.uniform(-3, -1, RUNS), jnp.float32),
        backtrack_factor=jnp.asarray(rng.choice([0.5, 0.8, 0.999], RUNS), jnp.float32),
        cg_iterations=30,
    ).replace(**changes)


def flatten(params):
    """Parameters [RUNS, P], float32."""
    return np.concatenate([np.asarray(x).reshape(RUNS, -1) for x in jax.tree.leaves(params)], axis=1)


def bits(params):
    return flatten(params).view(np.int32)


# The judge: the network, its Jacobian, KL and surrogate in float64


def softmax(logits):
    exponential = np.exp(logits - logits.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


def forward(params, obs):
    """The last layer's output [RUNS, N, K], the hidden layer, and log σ [RUNS, 1, K] where there is one."""
    tree = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["params"]
    hidden, last = tree["Torso_0"]["Dense_0"], tree["Dense_0"]
    h = np.tanh(np.asarray(obs, np.float64) @ hidden["kernel"] + hidden["bias"][:, None])
    out = h @ last["kernel"] + last["bias"][:, None]
    return out, h, tree["log_std"][:, None] if "log_std" in tree else None


def log_prob(params, batch):
    out, _, log_std = forward(params, batch.obs)
    if log_std is None:
        return np.take_along_axis(np.log(softmax(out)), np.asarray(batch.action)[..., None], -1)[..., 0]
    z = (np.asarray(batch.action, np.float64) - out) / np.exp(log_std)
    return (-0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi)).sum(-1)


def mean_kl(old, new, obs):
    (p, _, log_p), (q, _, log_q) = forward(old, obs), forward(new, obs)
    if log_p is None:
        return (softmax(p) * (np.log(softmax(p)) - np.log(softmax(q)))).sum(-1).mean(-1)
    ratio = np.exp(2 * (log_p - log_q))
    return 0.5 * (ratio + (p - q) ** 2 / np.exp(2 * log_q) - 1 - np.log(ratio)).sum(-1).mean(-1)


def standardized(advantage):
    advantage = np.asarray(advantage, np.float64)
    return (advantage - advantage.mean(-1, keepdims=True)) / (advantage.std(-1, keepdims=True) + 1e-8)


def surrogate_gain(old, new, batch):
    ratio = np.exp(log_prob(new, batch) - log_prob(old, batch))
    return ((ratio - 1) * standardized(batch.advantage)).mean(-1)


def jacobian(params, obs):
    """∂ out / ∂θ [RUNS, N, K, P], in the order in which the leaves of `params` come."""
    tree = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["params"]
    out, h, log_std = forward(params, obs)
    K = out.shape[-1]
    to_hidden = np.swapaxes(tree["Dense_0"]["kernel"], 1, 2)[:, None] * (1 - h**2)[:, :, None, :]  # [R, N, K, H]
    eye = np.broadcast_to(np.eye(K), (*out.shape, K))
    kernel = h[:, :, None, :, None] * eye[:, :, :, None, :]
    first = np.asarray(obs, np.float64)[:, :, None, :, None] * to_hidden[:, :, :, None, :]
    blocks = [eye, kernel.reshape(*out.shape, -1), to_hidden, first.reshape(*out.shape, -1)]
    if log_std is not None:
        blocks.append(np.zeros((*out.shape, K)))
    return np.concatenate(blocks, axis=-1)


def gradient_and_fisher(params, batch, every=1):
    """∇ of the surrogate at θ [RUNS, P], and F [RUNS, P, P] over one sample in k."""
    out, _, log_std = forward(params, batch.obs)
    J = jacobian(params, batch.obs)
    advantage = standardized(batch.advantage)
    K = out.shape[-1]
    if log_std is None:
        p = softmax(out)
        score = np.eye(K)[np.asarray(batch.action)] - p
        metric = p[..., None] * np.eye(K) - p[..., None] * p[..., None, :]
        gradient = np.einsum("rnk,rnkp,rn->rp", score, J, advantage) / N
    else:
        z = (np.asarray(batch.action, np.float64) - out) / np.exp(log_std)
        metric = np.broadcast_to(np.exp(-2 * log_std)[..., None] * np.eye(K), (*out.shape, K))
        gradient = np.einsum("rnk,rnkp,rn->rp", z / np.exp(log_std), J, advantage) / N
        gradient[:, -K:] = np.einsum("rnk,rn->rk", z**2 - 1, advantage) / N
    key = jax.random.fold_in(jax.random.key(0), 0x46495348)  # `compiled` passes key 0
    drawn = np.asarray(permutation(key, N))[: N // every]
    J, metric = J[:, drawn], metric[:, drawn]
    fisher = np.swapaxes(J, 2, 3) @ metric @ J
    fisher = fisher.mean(1)
    if log_std is not None:
        fisher[:, -K:, -K:] += 2 * np.eye(K)
    return gradient, fisher


def first(count, tree):
    return jax.tree.map(lambda x: x[:count], tree)


# TRPO


@both
def test_an_accepted_step_keeps_the_kl_within_bounds_and_raises_the_surrogate(kind):
    params, batch = problems(kind)
    trpo = varied_trpo()
    new, _, metrics = compiled(kind)(trpo, params, batch)
    accepted, backtracks = np.asarray(metrics["accepted"]) == 1, np.asarray(metrics["backtracks"])
    assert (accepted & (backtracks == 0)).sum() > 100
    assert (accepted & (backtracks > 0)).sum() > 100

    kl, gain, max_kl = mean_kl(params, new, batch.obs), surrogate_gain(params, new, batch), np.asarray(trpo.max_kl)
    assert np.all(kl[accepted] <= max_kl[accepted] + 1e-6)
    assert np.all(gain[accepted] > 0)
    np.testing.assert_allclose(metrics["kl"], kl, atol=2e-6)
    np.testing.assert_allclose(metrics["gain"], gain, atol=2e-5)
    moved = np.linalg.norm(flatten(new) - flatten(params), axis=-1)
    np.testing.assert_allclose(metrics["step_norm"], moved, rtol=1e-3, atol=1e-5)
    assert np.all(moved[accepted] > 0)


@both
def test_a_rejected_step_leaves_the_parameters_bit_for_bit(kind):
    """Regions far too large for the quadratic model, and a line search that hardly shortens."""
    params, batch = problems(kind)
    trpo = varied_trpo(max_kl=np.full(RUNS, 1.0, np.float32), backtrack_factor=np.full(RUNS, 0.999, np.float32))
    new, _, metrics = compiled(kind)(trpo, params, batch)
    accepted = np.asarray(metrics["accepted"]) == 1
    assert 50 < accepted.sum() < RUNS - 50
    np.testing.assert_array_equal(bits(new)[~accepted], bits(params)[~accepted])
    assert np.all((bits(new) != bits(params)).any(-1)[accepted])
    for name in ("kl", "gain", "step_norm", "policy_loss", "predicted_kl", "predicted_gain"):
        np.testing.assert_array_equal(np.asarray(metrics[name])[~accepted], 0.0)


@both
def test_backtracking_stops_at_the_first_fraction_that_will_do(kind):
    """The step before the accepted one broke the bound or lowered the surrogate."""
    params, batch = problems(kind)
    trpo = varied_trpo()
    new, _, metrics = compiled(kind)(trpo, params, batch)
    again = (np.asarray(metrics["accepted"]) == 1) & (np.asarray(metrics["backtracks"]) > 0)
    factor, max_kl = np.asarray(trpo.backtrack_factor), np.asarray(trpo.max_kl)
    before = jax.tree.map(
        lambda old, x: old + (x - old) / factor.reshape(RUNS, *(1,) * (x.ndim - 1)),
        *(jax.tree.map(lambda x: np.asarray(x, np.float64), tree) for tree in (params, new)),
    )
    kl, gain = mean_kl(params, before, batch.obs), surrogate_gain(params, before, batch)
    refused = (kl > max_kl * (1 - 1e-3)) | (gain <= 1e-5)
    assert np.all(refused[again])


def adversarial(advantage):
    """What an advantage estimator gone wrong may hand over, one kind after another; and the kind of each run."""
    kind = np.arange(RUNS) % 8
    advantage = np.array(advantage)
    rng = np.random.default_rng(1)
    single = (np.arange(RUNS), rng.integers(0, N, RUNS))
    for k, poison in enumerate([np.nan, np.inf, -np.inf]):
        rows = kind == k
        advantage[single[0][rows], single[1][rows]] = poison
    advantage[kind == 3] = np.nan
    advantage[kind == 4] = 0.0
    advantage[kind == 5, ::2], advantage[kind == 5, 1::2] = np.inf, -np.inf
    advantage[kind == 6] = 3e38 * np.sign(advantage[kind == 6])
    return kind, jnp.asarray(advantage)


@both
@pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param(TRPO(cg_iterations=30), id="trpo"),
        pytest.param(NPG(cg_iterations=30), id="npg", marks=pytest.mark.thorough),
    ],
)
def test_advantages_that_are_zero_or_not_finite_change_nothing(kind, algorithm):
    """The runs between them, whose advantages are sound, move as ever."""
    params, batch = problems(kind)
    algorithm = per_run(algorithm)
    group, advantage = adversarial(batch.advantage)
    new, _, metrics = compiled(kind)(algorithm, params, batch._replace(advantage=advantage))
    assert np.all(np.isfinite(flatten(new)))
    np.testing.assert_array_equal(bits(new)[group < 7], bits(params)[group < 7])
    for name in ("kl", "gain", "policy_loss"):
        assert np.all(np.isfinite(metrics[name]))

    sound, _, _ = compiled(kind)(algorithm, params, batch)
    np.testing.assert_allclose(flatten(new)[group == 7], flatten(sound)[group == 7], rtol=1e-5, atol=1e-6)
    assert np.all((bits(new) != bits(params)).any(-1)[group == 7])


@both
@pytest.mark.parametrize("algorithm", [TRPO(cg_iterations=30), NPG(cg_iterations=30)], ids=["trpo", "npg"])
def test_observations_that_are_not_finite_change_nothing(kind, algorithm):
    params, batch = problems(kind)
    obs = batch.obs.at[::2, 5, 1].set(jnp.nan).at[1::4, 5, 1].set(jnp.inf)
    _, log_prob, distribution = behaviour(kind)(params, obs)
    batch = batch._replace(obs=obs, distribution=distribution, log_prob=log_prob)
    new, _, _ = compiled(kind)(per_run(algorithm), params, batch)
    assert np.all(np.isfinite(flatten(new)))
    np.testing.assert_array_equal(bits(new)[::2], bits(params)[::2])


def test_a_natural_gradient_step_to_where_the_kl_overflows_is_not_taken():
    """A region of 10⁶: some steps are finite, yet σ vanishes at their end."""
    params, batch = problems("continuous")
    npg = per_run(NPG(max_kl=1e6, damping=0.1, cg_iterations=30))
    new, _, metrics = compiled("continuous")(npg, params, batch)
    accepted = np.asarray(metrics["accepted"]) == 1
    assert 50 < accepted.sum() < RUNS - 50
    np.testing.assert_array_equal(bits(new)[~accepted], bits(params)[~accepted])
    assert np.all((bits(new) != bits(params)).any(-1)[accepted])
    assert np.all(np.isfinite(flatten(new)))


@both
def test_the_accepted_full_step_is_that_of_the_natural_gradient(kind):
    params, batch = problems(kind)
    trpo = varied_trpo()
    by_trpo, _, metrics = compiled(kind)(trpo, params, batch)
    by_npg, _, _ = compiled(kind)(NPG(max_kl=trpo.max_kl, damping=trpo.damping, cg_iterations=30), params, batch)
    full = (np.asarray(metrics["accepted"]) == 1) & (np.asarray(metrics["backtracks"]) == 0)
    np.testing.assert_allclose(flatten(by_trpo)[full], flatten(by_npg)[full], rtol=1e-5, atol=1e-6)
    shorter = (np.asarray(metrics["accepted"]) == 1) & ~full
    steps = [np.linalg.norm(flatten(new) - flatten(params), axis=-1)[shorter] for new in (by_trpo, by_npg)]
    fraction = np.asarray(trpo.backtrack_factor ** metrics["backtracks"])[shorter]
    np.testing.assert_allclose(steps[0] / steps[1], fraction, rtol=1e-2)


@both
def test_the_quadratic_kl_of_npg_is_max_kl(kind):
    """½ sᵀ(F + damping · I)s = δ with a dense Fisher matrix; and that F predicts the true KL of small steps."""
    params, batch = problems(kind)
    npg = per_run(NPG(max_kl=0.01, damping=0.1, cg_iterations=30))
    new, _, metrics = compiled(kind)(npg, params, batch)
    s = (flatten(new).astype(np.float64) - flatten(params))[:50]
    _, F = gradient_and_fisher(*first(50, (params, batch)))
    undamped = 0.5 * np.einsum("ri,rij,rj->r", s, F, s)
    np.testing.assert_allclose(undamped + 0.5 * 0.1 * (s**2).sum(-1), 0.01, rtol=2e-3)
    np.testing.assert_allclose(metrics["predicted_kl"][:50], undamped, rtol=2e-3)
    tiny, _, tiny_metrics = compiled(kind)(per_run(NPG(max_kl=1e-4, damping=0.1, cg_iterations=30)), params, batch)
    np.testing.assert_allclose(mean_kl(params, tiny, batch.obs), tiny_metrics["predicted_kl"], rtol=0.3)


@both
@pytest.mark.parametrize("every", [1, 2])
def test_the_step_of_npg_is_the_closed_form(kind, every):
    """s = √(2δ / gᵀA⁻¹g) A⁻¹g with gradient and Fisher matrix in float64, the latter from one sample in k."""
    params, batch = problems(kind)
    npg = per_run(NPG(max_kl=0.01, damping=0.1, cg_iterations=30, fisher_subsample=every))
    new, _, _ = compiled(kind)(npg, params, batch)
    s = (flatten(new).astype(np.float64) - flatten(params))[:50]
    g, F = gradient_and_fisher(*first(50, (params, batch)), every)
    x = np.linalg.solve(F + 0.1 * np.eye(F.shape[-1]), g[..., None])[..., 0]
    expected = np.sqrt(2 * 0.01 / (g * x).sum(-1))[:, None] * x
    error = np.linalg.norm(s - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert np.median(error) < 2e-4
    assert error.max() < 1e-2


@both
@pytest.mark.thorough
def test_in_a_ball_the_full_step_goes_its_radius_along_the_gradient(kind):
    """√(2δ) g/‖g‖, whatever the damping and the KL; the surrogate must still not go down."""
    params, batch = problems(kind)
    trpo = varied_trpo(region="ball")
    new, _, metrics = compiled(kind)(trpo, params, batch)
    accepted, backtracks = np.asarray(metrics["accepted"]) == 1, np.asarray(metrics["backtracks"])
    full = accepted & (backtracks == 0)
    assert full.sum() > 100
    radius = np.sqrt(2 * np.asarray(trpo.max_kl, np.float64))
    s = flatten(new).astype(np.float64) - flatten(params)
    np.testing.assert_allclose(np.linalg.norm(s, axis=-1)[full], radius[full], rtol=1e-5)

    g, F = gradient_and_fisher(*first(100, (params, batch)))
    predicted = 0.5 * np.einsum("np,npq,nq->n", s[:100], F, s[:100])
    np.testing.assert_allclose(metrics["predicted_kl"][:100], predicted, rtol=1e-3, atol=1e-6)
    expected = radius[:100, None] * g / np.linalg.norm(g, axis=-1, keepdims=True)
    np.testing.assert_allclose(s[:100][full[:100]], expected[full[:100]], atol=1e-4)
    assert np.all(surrogate_gain(params, new, batch)[accepted] > -1e-7)  # it is 0 where all ratios vanish
    assert np.any(mean_kl(params, new, batch.obs)[accepted] > np.asarray(trpo.max_kl)[accepted])
    np.testing.assert_array_equal(bits(new)[~accepted], bits(params)[~accepted])
