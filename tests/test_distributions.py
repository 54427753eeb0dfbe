"""Distributions over actions against SciPy, quadrature and dense Hessians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.flatten_util import ravel_pytree
from support import quick_jit

from purejaxppo.distributions import Categorical, DiagonalGaussian


def random_logits(seed, *shape, scale=2.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def random_gaussian(seed, *shape):
    rng = np.random.default_rng(seed)
    mean, log_std = rng.standard_normal(shape), 0.5 * rng.standard_normal(shape)
    return DiagonalGaussian(jnp.asarray(mean, jnp.float32), jnp.asarray(log_std, jnp.float32))


def float64(distribution):
    return np.asarray(distribution.mean, np.float64), np.exp(np.asarray(distribution.log_std, np.float64))


def dense_hessian_of_kl(distribution):
    """∇² KL(p ‖ q) in the parameters of q, at q = p, as a matrix."""
    flat, unravel = ravel_pytree(distribution)
    return np.asarray(quick_jit(jax.hessian(lambda q: distribution.kl(unravel(q))))(flat), np.float64)


def dense_fisher(distribution):
    flat, unravel = ravel_pytree(distribution)
    product = quick_jit(jax.vmap(lambda v: ravel_pytree(distribution.fisher(unravel(v)))[0]))
    return np.asarray(product(jnp.eye(flat.size)), np.float64)


# Categorical


@pytest.mark.parametrize("n", [1, 6])
def test_categorical_log_prob_is_log_softmax(n):
    logits = random_logits(n, 4, 50, n)
    actions = np.random.default_rng(n).integers(0, n, (4, 50))
    expected = np.take_along_axis(scipy.special.log_softmax(logits.astype(np.float64), -1), actions[..., None], -1)
    log_prob = Categorical(jnp.asarray(logits)).log_prob(jnp.asarray(actions))
    assert log_prob.shape == (4, 50)
    np.testing.assert_allclose(log_prob, expected[..., 0], atol=1e-5)


def test_categorical_entropy_is_scipys():
    logits = random_logits(0, 200, 6)
    probs = scipy.special.softmax(logits.astype(np.float64), -1)
    np.testing.assert_allclose(
        Categorical(jnp.asarray(logits)).entropy(), scipy.stats.entropy(probs, axis=-1), atol=1e-5
    )


def test_categorical_kl_is_scipys_relative_entropy():
    p, q = random_logits(1, 200, 6), random_logits(2, 200, 6)
    probs_p, probs_q = (scipy.special.softmax(x.astype(np.float64), -1) for x in (p, q))
    kl = Categorical(jnp.asarray(p)).kl(Categorical(jnp.asarray(q)))
    np.testing.assert_allclose(kl, scipy.special.rel_entr(probs_p, probs_q).sum(-1), rtol=1e-4, atol=1e-5)
    assert kl.min() > 0


def test_categorical_does_not_depend_on_a_shift_of_the_logits():
    p, q = random_logits(3, 50, 4), random_logits(4, 50, 4)
    shifted = Categorical(jnp.asarray(p + 8.0))
    np.testing.assert_allclose(shifted.entropy(), Categorical(jnp.asarray(p)).entropy(), atol=1e-5)
    np.testing.assert_allclose(
        shifted.kl(Categorical(jnp.asarray(q))), Categorical(jnp.asarray(p)).kl(Categorical(jnp.asarray(q))), atol=1e-5
    )


def test_categorical_sample_frequencies_are_the_probabilities():
    """A chi-squared test on 100,000 samples from each of three distributions."""
    logits = random_logits(5, 3, 5, scale=1.0)
    count = 100_000
    samples = np.asarray(Categorical(jnp.broadcast_to(jnp.asarray(logits), (count, 3, 5))).sample(jax.random.key(0)))
    assert samples.shape == (count, 3)
    for i in range(3):
        expected = count * scipy.special.softmax(logits[i].astype(np.float64))
        observed = np.bincount(samples[:, i], minlength=5)
        statistic = ((observed - expected) ** 2 / expected).sum()
        assert scipy.stats.chi2.sf(statistic, df=4) > 1e-3


def test_categorical_mode_is_the_likeliest_action():
    logits = random_logits(6, 100, 5)
    np.testing.assert_array_equal(Categorical(jnp.asarray(logits)).mode(), logits.argmax(-1))


@pytest.mark.parametrize("seed", range(3))
def test_categorical_fisher_is_the_hessian_of_kl_and_the_covariance_of_the_score(seed):
    logits = random_logits(seed, 5)
    distribution = Categorical(jnp.asarray(logits))
    probs = scipy.special.softmax(logits.astype(np.float64))
    scores = np.eye(5) - probs
    fisher = dense_fisher(distribution)
    np.testing.assert_allclose(fisher, np.einsum("a,ai,aj->ij", probs, scores, scores), atol=1e-6)
    np.testing.assert_allclose(fisher, dense_hessian_of_kl(distribution), atol=1e-5)


def test_an_action_with_logit_minus_infinity_has_probability_zero():
    logits = random_logits(7, 40, 5)
    logits[:, 2] = -np.inf
    logits[:20, 4] = -np.inf
    distribution = Categorical(jnp.asarray(logits))
    probs = scipy.special.softmax(logits.astype(np.float64), -1)

    assert np.all(np.exp(distribution.log_prob(jnp.full(40, 2))) == 0.0)
    np.testing.assert_allclose(distribution.entropy(), scipy.stats.entropy(probs, axis=-1), atol=1e-5)
    other = random_logits(8, 40, 5)
    other[20:, 2] = -np.inf
    probs_other = scipy.special.softmax(other.astype(np.float64), -1)
    expected = scipy.special.rel_entr(probs, probs_other).sum(-1)
    np.testing.assert_allclose(distribution.kl(Categorical(jnp.asarray(other))), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(distribution.kl(distribution), 0.0)

    keys = jax.random.split(jax.random.key(1), 500)
    samples = np.asarray(jax.vmap(distribution.sample)(keys))
    assert not np.any(samples == 2)
    assert not np.any(samples[:, :20] == 4)
    assert np.any(samples[:, 20:] == 4)


def test_an_action_that_the_other_forbids_has_infinite_kl():
    p = Categorical(jnp.asarray([0.0, 0.0]))
    q = Categorical(jnp.asarray([0.0, -jnp.inf]))
    assert np.isposinf(p.kl(q))
    assert float(q.kl(p)) == pytest.approx(np.log(2.0), abs=1e-6)


def test_gradients_are_finite_where_logits_are_minus_infinity():
    logits = jnp.asarray([0.3, -jnp.inf, -0.4, 1.0])
    fixed = Categorical(jnp.asarray([0.1, -jnp.inf, 0.5, 0.0]))
    for value in (
        lambda x: Categorical(x).entropy(),
        lambda x: fixed.kl(Categorical(x)),
        lambda x: Categorical(x).kl(fixed),
        lambda x: Categorical(x).log_prob(jnp.asarray(2)),
    ):
        gradient = quick_jit(jax.grad(value))(logits)
        assert np.all(np.isfinite(gradient))
        assert gradient[1] == 0.0
    assert np.all(np.isfinite(Categorical(logits).fisher(Categorical(jnp.ones(4))).logits))


def test_extreme_logits_give_finite_entropy_and_kl():
    logits = jnp.asarray([[1e4, -1e4, 0.0], [-3e38, 0.0, 0.0], [200.0, 0.0, -200.0]])
    distribution = Categorical(logits)
    expected = scipy.stats.entropy(scipy.special.softmax(np.asarray(logits, np.float64), -1), axis=-1)
    np.testing.assert_allclose(distribution.entropy(), expected, atol=1e-6)
    np.testing.assert_array_equal(distribution.kl(distribution), 0.0)
    assert np.all(np.isfinite(quick_jit(jax.grad(lambda x: Categorical(x).entropy().sum()))(logits)))


# DiagonalGaussian


@pytest.mark.parametrize("k", [1, 3])
def test_gaussian_log_prob_is_scipys(k):
    distribution = random_gaussian(k, 4, 50, k)
    mean, std = float64(distribution)
    actions = (2 * np.random.default_rng(k).standard_normal((4, 50, k))).astype(np.float32)
    expected = scipy.stats.norm.logpdf(actions.astype(np.float64), mean, std).sum(-1)
    log_prob = distribution.log_prob(jnp.asarray(actions))
    assert log_prob.shape == (4, 50)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5, atol=1e-5)


def test_gaussian_entropy_is_scipys():
    distribution = random_gaussian(2, 100, 3)
    mean, std = float64(distribution)
    np.testing.assert_allclose(distribution.entropy(), scipy.stats.norm.entropy(mean, std).sum(-1), atol=1e-5)


def test_gaussian_kl_is_the_expected_log_likelihood_ratio():
    """By Gauss–Hermite quadrature of SciPy's densities, exact for the quadratic that the log ratio is."""
    p, q = random_gaussian(3, 100, 3), random_gaussian(4, 100, 3)
    (mean_p, std_p), (mean_q, std_q) = float64(p), float64(q)
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    x = mean_p + std_p * nodes[:, None, None]
    log_ratio = scipy.stats.norm.logpdf(x, mean_p, std_p) - scipy.stats.norm.logpdf(x, mean_q, std_q)
    expected = np.einsum("w,wnk->n", weights / weights.sum(), log_ratio)
    np.testing.assert_allclose(p.kl(q), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(p.kl(p), 0.0, atol=1e-6)
    assert p.kl(q).min() > 0


def test_gaussian_samples_have_its_moments():
    count = 100_000
    mean, log_std = jnp.asarray([-1.0, 0.5, 3.0]), jnp.asarray([-1.0, 0.0, 0.7])
    batch = DiagonalGaussian(jnp.broadcast_to(mean, (count, 3)), jnp.broadcast_to(log_std, (count, 3)))
    samples = np.asarray(batch.sample(jax.random.key(2)), np.float64)
    z = (samples - np.asarray(mean)) / np.exp(np.asarray(log_std))
    np.testing.assert_allclose(z.mean(0), 0.0, atol=5 / count**0.5)
    np.testing.assert_allclose(np.cov(z.T), np.eye(3), atol=8 / count**0.5)
    for component in z.T:
        assert scipy.stats.kstest(component[:5000], "norm").pvalue > 1e-3


def test_gaussian_mode_is_the_mean():
    distribution = random_gaussian(5, 10, 2)
    np.testing.assert_array_equal(distribution.mode(), distribution.mean)


@pytest.mark.parametrize("seed", range(3))
def test_gaussian_fisher_is_the_hessian_of_kl_and_the_covariance_of_the_score(seed):
    distribution = random_gaussian(seed, 3)
    _, std = float64(distribution)
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)  # the score is z/σ in the mean and z² - 1 in log σ
    moments = [(weights * f).sum() / weights.sum() for f in (nodes**2, (nodes**2 - 1) ** 2)]
    fisher = dense_fisher(distribution)
    np.testing.assert_allclose(fisher, np.diag([*(moments[0] / std**2), *[moments[1]] * 3]), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(fisher, dense_hessian_of_kl(distribution), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_distributions_are_pytrees_that_jit_and_vmap_alike(kind):
    if kind == "categorical":
        p, q = (Categorical(jnp.asarray(random_logits(seed, 6, 4))) for seed in (0, 1))
    else:
        p, q = random_gaussian(0, 6, 4), random_gaussian(1, 6, 4)
    plain = p.kl(q)
    np.testing.assert_allclose(quick_jit(lambda p, q: p.kl(q))(p, q), plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(lambda p, q: p.kl(q))(p, q), plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(lambda p: p.entropy())(p), p.entropy(), rtol=1e-5, atol=1e-6)
