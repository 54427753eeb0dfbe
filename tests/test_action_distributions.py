"""Factored, Bernoulli, tanh-squashed and Beta distributions against enumeration, SciPy, quadrature, dense Hessians."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from jax.flatten_util import ravel_pytree
from support import quick_jit

from purejaxppo.distributions import FORBIDDEN, Bernoulli, Beta, Categorical, FactoredCategorical, TanhGaussian

NVEC = (2, 4, 3)
COUNT = 50_000
discrete = pytest.mark.parametrize("kind", ["factored", "bernoulli"])
continuous = pytest.mark.parametrize("kind", ["tanh", "beta"])
every = pytest.mark.parametrize("kind", ["factored", "bernoulli", "tanh", "beta"])

# each compiled once for all parameters of a kind
mode, entropy, log_prob, kl, sample = (
    quick_jit(lambda p, *args, method=method: getattr(p, method)(*args))
    for method in ("mode", "entropy", "log_prob", "kl", "sample")
)


def copies(distribution, count):
    """A batch of the same distribution."""
    return jax.tree.map(lambda x: np.broadcast_to(x, (count, *x.shape)), distribution)


def drawn(kind, seed, *batch, scale=1.0, dtype=np.float32):
    """A distribution with random parameters, of three factors, or two dimensions if continuous."""
    rng = np.random.default_rng(seed)

    def normal(size):
        return np.asarray(scale * rng.standard_normal((*batch, size)), dtype)

    if kind == "factored":
        return quick_jit(FactoredCategorical.of)([normal(n) for n in NVEC])
    if kind == "bernoulli":
        return Bernoulli(normal(3))
    if kind == "tanh":
        return TanhGaussian(normal(2), dtype(0.3) * normal(2))
    return Beta(*(np.asarray(1.0 + np.logaddexp(0.0, 2.0 * normal(2)), dtype) for _ in range(2)))


def joint(distribution):
    """(all actions [K, m], their probabilities [K]) by multiplying those of the factors, in float64."""
    logits = np.asarray(distribution.logits, np.float64)
    if isinstance(distribution, Bernoulli):
        probs = [np.array([1 - p, p]) for p in scipy.special.expit(logits)]
    else:
        probs = [scipy.special.softmax(row[:n]) for row, n in zip(logits, NVEC, strict=True)]
    actions = np.array(list(itertools.product(*(range(len(p)) for p in probs))))
    return actions, np.array([np.prod([p[a] for p, a in zip(probs, action, strict=True)]) for action in actions])


def marginals(distribution):
    """SciPy's distribution of the stored action in each dimension: of u for the tanh Gaussian, of a for Beta."""
    first, second = (np.asarray(x, np.float64) for x in jax.tree.leaves(distribution))
    if isinstance(distribution, Beta):
        return [scipy.stats.beta(a, b) for a, b in zip(first, second, strict=True)]
    return [scipy.stats.norm(m, np.exp(s)) for m, s in zip(first, second, strict=True)]


@pytest.mark.parametrize("kind", ["factored", "bernoulli", "tanh", "beta"])
def test_numbers_have_the_type_of_the_parameters(kind):
    """Of bfloat16 they stay bfloat16: no constant of ours makes them wider."""
    distribution = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), drawn(kind, 0))
    assert distribution.entropy().dtype == jnp.bfloat16
    assert distribution.log_prob(distribution.mode()).dtype == jnp.bfloat16
    assert distribution.kl(distribution).dtype == jnp.bfloat16


@discrete
def test_probabilities_of_all_actions_are_the_products_and_sum_to_one(kind):
    distribution = drawn(kind, 0)
    actions, probs = joint(distribution)
    of_all = np.asarray(log_prob(copies(distribution, len(actions)), actions))
    assert of_all.shape == (len(actions),)
    np.testing.assert_allclose(of_all, np.log(probs), atol=1e-5)
    assert np.exp(of_all).sum() == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_array_equal(mode(distribution), actions[probs.argmax()])


@discrete
@pytest.mark.parametrize("seed", range(3))
def test_entropy_and_kl_are_those_of_the_joint_distribution(kind, seed):
    p, q = drawn(kind, seed), drawn(kind, seed + 10)
    (_, probs_p), (_, probs_q) = joint(p), joint(q)
    assert float(entropy(p)) == pytest.approx(scipy.stats.entropy(probs_p), abs=1e-5)
    assert float(kl(p, q)) == pytest.approx(scipy.special.rel_entr(probs_p, probs_q).sum(), rel=1e-4, abs=1e-5)


@discrete
def test_frequencies_of_samples_are_the_probabilities(kind):
    distribution = drawn(kind, 1)
    actions, probs = joint(distribution)
    samples = np.asarray(sample(copies(distribution, COUNT), jax.random.key(0)))
    assert (samples.shape, samples.dtype) == ((COUNT, 3), np.int32)
    observed = (samples[:, None] == actions).all(-1).sum(0)
    assert observed.sum() == COUNT
    statistic = ((observed - COUNT * probs) ** 2 / (COUNT * probs)).sum()
    assert scipy.stats.chi2.sf(statistic, df=len(probs) - 1) > 1e-3


@continuous
def test_log_prob_integrates_to_one_over_what_the_environment_receives(kind):
    """The density is one of tanh(u) in ±1, or of a in 0 … 1: by quadrature, in the first of two dimensions."""
    distribution = jax.tree.map(lambda x: x[:1], drawn(kind, 2))
    low = -1.0 if kind == "tanh" else 0.0
    received = np.linspace(low, 1.0, 20_001)[1:-1]
    stored = np.arctanh(received) if kind == "tanh" else received
    many = copies(distribution, len(stored))
    density = np.exp(np.asarray(log_prob(many, stored[:, None].astype(np.float32)), np.float64))
    assert scipy.integrate.trapezoid(density, received) == pytest.approx(1.0, abs=1e-3)


@continuous
def test_log_prob_is_scipys(kind):
    distribution = drawn(kind, 3)
    parts = marginals(distribution)
    stored = np.stack([part.rvs(200, random_state=i) for i, part in enumerate(parts)], axis=-1)
    expected = np.sum([part.logpdf(x) for part, x in zip(parts, stored.T, strict=True)], axis=0)
    if kind == "tanh":
        expected -= np.log(1 - np.tanh(stored) ** 2).sum(-1)
    found = log_prob(copies(distribution, 200), stored.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@continuous
@pytest.mark.parametrize("seed", range(3))
def test_entropy_and_kl_are_quadratures_of_scipys_densities(kind, seed):
    """E over each dimension by the trapezoidal rule. For the tanh Gaussian, both densities are taken of tanh(u)."""
    p, q = drawn(kind, seed), drawn(kind, seed + 10)
    expected_entropy = expected_kl = 0.0
    for ours, theirs in zip(marginals(p), marginals(q), strict=True):
        x = np.linspace(*ours.ppf([1e-9, 1 - 1e-9]), 200_001)
        slope = np.log(np.cosh(x)) * -2 if kind == "tanh" else 0.0
        expected_entropy -= scipy.integrate.trapezoid(ours.pdf(x) * (ours.logpdf(x) - slope), x)
        expected_kl += scipy.integrate.trapezoid(ours.pdf(x) * (ours.logpdf(x) - slope - theirs.logpdf(x) + slope), x)
    assert float(entropy(p)) == pytest.approx(expected_entropy, abs=5e-4)
    assert float(kl(p, q)) == pytest.approx(expected_kl, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("std", "error"), [(0.1, 1e-5), (1.0, 1e-5), (2.0, 2e-3), (4.0, 4e-2)])
def test_entropy_of_the_tanh_gaussian_errs_by_no_more_than_it_says(std, error):
    for mean in (0.0, 0.5, 2.0, 6.0):
        u = np.linspace(mean - 12 * std, mean + 12 * std, 400_001)
        slope = 2 * (np.log(2) - u - np.logaddexp(0, -2 * u))
        density = scipy.stats.norm(mean, std).pdf(u)
        exact = scipy.stats.norm(mean, std).entropy() + scipy.integrate.trapezoid(density * slope, u)
        found = entropy(TanhGaussian(np.float32([mean]), np.log(np.float32([std]))))
        assert float(found) == pytest.approx(exact, abs=error + 1e-6 * abs(exact))


@continuous
def test_samples_have_scipys_distribution(kind):
    distribution = drawn(kind, 4)
    samples = quick_jit(lambda d: jax.vmap(d.sample)(jax.random.split(jax.random.key(1), 5000)))(distribution)
    for part, column in zip(marginals(distribution), np.asarray(samples, np.float64).T, strict=True):
        assert scipy.stats.kstest(column, part.cdf).pvalue > 1e-3


@continuous
def test_actions_are_scaled_to_the_bounds(kind):
    low, high = np.float32([-2.0, 0.5]), np.float32([1.0, 8.0])
    distribution = drawn(kind, 5)
    stored = np.asarray(sample(distribution, jax.random.key(2)), np.float64)
    unit = scipy.special.expit(2 * stored) if kind == "tanh" else stored
    bounded = quick_jit(distribution.bound)(stored.astype(np.float32), low, high)
    np.testing.assert_allclose(bounded, low + unit * (high - low), rtol=1e-5)


def test_beta_mode_is_the_peak_of_the_density():
    distribution = drawn("beta", 6)
    x = np.linspace(0, 1, 100_001)
    for part, peak in zip(marginals(distribution), np.asarray(mode(distribution)), strict=True):
        assert float(peak) == pytest.approx(x[part.pdf(x).argmax()], abs=2e-5)
    assert float(mode(Beta(*np.ones((2, 1), np.float32)))[0]) == 0.5


@every
@pytest.mark.parametrize("seed", range(3))
def test_fisher_is_the_hessian_of_kl(kind, seed):
    """In float64, to the digits that it has."""
    with jax.enable_x64(True):
        distribution = drawn(kind, seed, dtype=np.float64)
        flat, unravel = ravel_pytree(distribution)
        hessian = quick_jit(jax.hessian(lambda q: distribution.kl(unravel(q))))(flat)
        product = quick_jit(jax.vmap(lambda v: ravel_pytree(distribution.fisher(unravel(v)))[0]))
        assert flat.dtype == np.float64
        assert np.abs(hessian).max() > 0.05
        np.testing.assert_allclose(product(jnp.eye(flat.size)), hessian, atol=1e-9)


@every
def test_kl_is_never_negative_and_zero_only_from_itself(kind):
    p, q = drawn(kind, 7, 500, scale=3.0), drawn(kind, 8, 500, scale=3.0)
    np.testing.assert_allclose(kl(p, p), 0.0, atol=1e-6)
    assert kl(p, q).shape == entropy(p).shape == (500,)
    assert np.min(kl(p, q)) > 0


EXTREME = {
    "factored": FactoredCategorical.of([jnp.asarray([1e4, -1e4]), jnp.asarray([-3e29, 0.0, 5.0])]),
    "bernoulli": Bernoulli(jnp.asarray([-1e4, 200.0, 0.0])),
    "tanh": TanhGaussian(jnp.asarray([-300.0, 40.0]), jnp.asarray([2.0, -5.0])),
    "beta": Beta(jnp.asarray([1.0, 5e3]), jnp.asarray([1.0, 1.0])),
}


@every
def test_extreme_parameters_give_finite_values_and_gradients(kind):
    distribution = EXTREME[kind]
    nearby = jax.tree.map(lambda x: np.float32(x + 0.1 if kind == "beta" else 0.99 * np.asarray(x)), distribution)
    samples = quick_jit(lambda d: jax.vmap(d.sample)(jax.random.split(jax.random.key(3), 2000)))(distribution)
    if kind == "beta":
        assert np.min(samples) > 0.0
        assert np.max(samples) < 1.0
    extremes = {"factored": [1, 0], "bernoulli": [1, 0, 1], "tanh": [90.0, -90.0], "beta": [0.0, 1.0]}[kind]
    values = (
        lambda d: d.log_prob(distribution.mode()),
        lambda d: d.log_prob(jnp.asarray(extremes)),
        lambda d: jax.vmap(d.log_prob)(samples).mean(),
        lambda d: d.entropy(),
        lambda d: d.kl(nearby),
        nearby.kl,
    )
    for x in jax.tree.leaves(quick_jit(lambda d: [jax.value_and_grad(value)(d) for value in values])(distribution)):
        assert np.all(np.isfinite(x))


@every
def test_they_jit_and_vmap_alike(kind):
    p, q = drawn(kind, 9, 6), drawn(kind, 10, 6)

    def values(p, q):
        return p.kl(q), p.entropy(), p.log_prob(q.mode())

    for transformed in (quick_jit(values), quick_jit(jax.vmap(values))):
        for found, expected in zip(transformed(p, q), values(p, q), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_factor_of_one_size_is_the_categorical_itself():
    logits = jnp.asarray(np.random.default_rng(11).standard_normal((4, 5)), jnp.float32)
    one, factored = Categorical(logits), FactoredCategorical.of([logits])
    np.testing.assert_array_equal(factored.entropy(), one.entropy())
    np.testing.assert_array_equal(factored.log_prob(one.mode()[:, None]), one.log_prob(one.mode()))


def test_fillers_have_probability_zero():
    distribution = FactoredCategorical.of([jnp.zeros(2), jnp.zeros(4)])
    assert float(distribution.logits[0, 3]) == np.float32(FORBIDDEN)
    assert float(jnp.exp(distribution.log_prob(jnp.asarray([3, 0])))) == 0.0
    assert float(distribution.entropy()) == pytest.approx(np.log(8), abs=1e-6)
