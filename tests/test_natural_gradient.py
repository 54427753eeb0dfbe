"""The natural-gradient step against its closed form with a dense inverse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import quick_jit

from purejaxppo.optimize.natural_gradient import natural_gradient_step

N = 8


@functools.partial(quick_jit, static_argnums=4)
def natural_step(gradient, fisher, max_kl, damping, iterations):
    def step(gradient, fisher, max_kl, damping):
        return natural_gradient_step(gradient, lambda v: fisher @ v + damping * v, max_kl, damping, iterations)

    return jax.vmap(step)(gradient, fisher, max_kl, damping)


@functools.cache
def problems(count=200):
    """Gradients, Fisher matrices (half of them singular), trust regions and dampings, in float32."""
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((count, N, N)) / N**0.5
    factors[::2, :, :3] = 0.0
    fisher = np.einsum("bik,bjk->bij", factors, factors)
    gradient = rng.standard_normal((count, N)) * 10.0 ** rng.uniform(-3, 3, (count, 1))
    max_kl, damping = 10.0 ** rng.uniform(-4, 0, count), 10.0 ** rng.uniform(-1, 0, count)
    return tuple(np.asarray(x, np.float32) for x in (gradient, fisher, max_kl, damping))


@functools.cache
def solutions(iterations):
    """(step, metrics) of the problems in float64, and A = F + damping · I."""
    gradient, fisher, max_kl, damping = problems()
    step, metrics = natural_step(gradient, fisher, max_kl, damping, iterations)
    A = fisher.astype(np.float64) + damping.astype(np.float64)[:, None, None] * np.eye(N)
    return np.asarray(step, np.float64), {k: np.asarray(v, np.float64) for k, v in metrics.items()}, A


def quadratic(s, A):
    return np.einsum("bi,bij,bj->b", s, A, s)


def test_step_is_the_closed_form():
    """s = √(2δ / gᵀA⁻¹g) A⁻¹g."""
    gradient, _, max_kl, _ = (x.astype(np.float64) for x in problems())
    step, _, A = solutions(40)
    x = np.linalg.solve(A, gradient[..., None])[..., 0]
    expected = np.sqrt(2 * max_kl / (gradient * x).sum(-1))[:, None] * x
    error = np.linalg.norm(step - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.max() < 1e-3


@pytest.mark.parametrize("iterations", [1, 3, 40])
def test_step_fills_the_trust_region_however_few_the_iterations(iterations):
    """½ sᵀAs = δ."""
    step, _, A = solutions(iterations)
    np.testing.assert_allclose(0.5 * quadratic(step, A), problems()[2], rtol=2e-3)


@pytest.mark.parametrize("iterations", [1, 40])
def test_metrics_describe_the_step(iterations):
    """The predicted KL is ½ sᵀFs, without the damping; the predicted gain g·s."""
    gradient, fisher, max_kl, _ = (x.astype(np.float64) for x in problems())
    step, metrics, A = solutions(iterations)
    np.testing.assert_allclose(metrics["predicted_kl"] / max_kl, 0.5 * quadratic(step, fisher) / max_kl, atol=2e-3)
    assert np.all(metrics["predicted_kl"] < max_kl)
    np.testing.assert_allclose(metrics["predicted_gain"], (gradient * step).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(metrics["step_norm"], np.linalg.norm(step, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient, axis=-1), rtol=1e-5)
    x = step / np.sqrt(2 * max_kl / metrics["xFx"])[:, None]
    np.testing.assert_allclose(metrics["xFx"], quadratic(x, A), rtol=2e-3)


def test_no_step_of_the_region_gains_more():
    """Among 2,000 random steps with ½ sᵀAs = δ none has a larger g·s."""
    gradient, _, max_kl, _ = (x.astype(np.float64) for x in problems())
    _, metrics, A = solutions(40)
    others = np.random.default_rng(1).standard_normal((2000, len(gradient), N))
    others *= np.sqrt(2 * max_kl / np.einsum("kbi,bij,kbj->kb", others, A, others))[..., None]
    best = np.einsum("kbi,bi->kb", others, gradient).max(0)
    assert np.all(metrics["predicted_gain"] * (1 + 1e-4) >= best)


def test_step_does_not_depend_on_the_scale_of_the_gradient():
    gradient, fisher, max_kl, damping = problems()
    step, _ = natural_step(64.0 * gradient, fisher, max_kl, damping, 40)
    np.testing.assert_allclose(step, solutions(40)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_gradient_that_is_zero_or_not_finite_gives_no_step(value):
    gradient = jnp.full(N, value)
    step, metrics = natural_gradient_step(gradient, lambda v: v, 0.01, 0.1, 10)
    np.testing.assert_array_equal(step, 0.0)
    assert float(metrics["predicted_kl"]) == 0.0
    assert float(metrics["step_norm"]) == 0.0


def test_a_vanished_fisher_matrix_leaves_a_finite_step_thanks_to_damping():
    """With F = 0 the step is √(2δ / damping) along the gradient, and no KL is predicted; without damping, none."""
    gradient = jnp.asarray([3.0, 0.0, -4.0])
    step, metrics = natural_gradient_step(gradient, lambda v: 0.1 * v, 0.05, 0.1, 10)
    np.testing.assert_allclose(step, [0.6, 0.0, -0.8], rtol=1e-5)
    assert float(metrics["predicted_kl"]) == pytest.approx(0.0, abs=1e-7)
    step, _ = natural_gradient_step(gradient, jnp.zeros_like, 0.05, 0.0, 10)
    np.testing.assert_array_equal(step, 0.0)


def test_each_step_of_a_batch_is_the_lone_one():
    gradient, fisher, max_kl, damping = problems()
    for i in range(0, 200, 67):
        A = jnp.asarray(fisher[i])
        lone, _ = natural_gradient_step(
            jnp.asarray(gradient[i]), lambda v, A=A, d=damping[i]: A @ v + d * v, max_kl[i], damping[i], 40
        )
        np.testing.assert_allclose(lone, solutions(40)[0][i], rtol=1e-3, atol=1e-5)
