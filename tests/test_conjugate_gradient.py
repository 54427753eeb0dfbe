"""Conjugate gradient against dense solves, and on systems that have no business being solved."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import quick_jit

from purejaxppo.optimize.conjugate_gradient import conjugate_gradient, solution_metrics


@functools.partial(quick_jit, static_argnums=2)
def solve(A, b, iterations):
    """A batch of systems: (x, residual), [..., n] each."""
    return jax.vmap(lambda A, b: conjugate_gradient(lambda v: A @ v, b, iterations))(A, b)


def symmetric(rng, eigenvalues):
    """Random symmetric matrices [B, n, n] with eigenvalues [B, n]."""
    vectors, _ = np.linalg.qr(rng.standard_normal((*eigenvalues.shape, eigenvalues.shape[-1])))
    return np.einsum("bik,bk,bjk->bij", vectors, eigenvalues, vectors)


def float32(*arrays):
    return tuple(np.asarray(x, np.float32) for x in arrays)


def float64(*arrays):
    return tuple(np.asarray(x, np.float64) for x in arrays)


def test_well_conditioned_systems_are_solved():
    rng = np.random.default_rng(0)
    A, b = symmetric(rng, rng.uniform(1.0, 10.0, (200, 8))), rng.standard_normal((200, 8))
    expected = np.linalg.solve(A, b[..., None])[..., 0]
    x, residual = solve(*float32(A, b), 20)
    np.testing.assert_allclose(x, expected, atol=2e-5)
    np.testing.assert_allclose(residual, 0.0, atol=1e-4)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_each_iterate_is_the_best_in_its_krylov_space(iterations):
    """x_k minimises the energy ½ xᵀAx - bᵀx over span(b, Ab, …, Aᵏ⁻¹b)."""
    rng = np.random.default_rng(1)
    A, b = symmetric(rng, rng.uniform(1.0, 10.0, (50, 8))), rng.standard_normal((50, 8))
    krylov = [b]
    for _ in range(iterations - 1):
        krylov.append(np.einsum("bij,bj->bi", A, krylov[-1]))
    K = np.linalg.qr(np.stack(krylov, axis=-1))[0]
    inner = np.linalg.solve(np.swapaxes(K, 1, 2) @ A @ K, np.swapaxes(K, 1, 2) @ b[..., None])
    x, residual = solve(*float32(A, b), iterations)
    np.testing.assert_allclose(x, (K @ inner)[..., 0], atol=1e-5)
    np.testing.assert_allclose(residual, b - np.einsum("bij,bj->bi", A, float64(x)[0]), atol=1e-5)


def test_two_distinct_eigenvalues_take_two_iterations():
    rng = np.random.default_rng(2)
    u = rng.standard_normal((20, 12))
    A, b = np.eye(12) + u[:, :, None] * u[:, None, :], rng.standard_normal((20, 12))
    x, _ = solve(*float32(A, b), 2)
    np.testing.assert_allclose(x, np.linalg.solve(A, b[..., None])[..., 0], atol=2e-5)


def test_once_converged_it_stays_bit_for_bit():
    """n steps solve the system exactly; hundreds more leave x and the residual as they are."""
    rng = np.random.default_rng(3)
    A, b = symmetric(rng, rng.uniform(1.0, 5.0, (100, 4))), rng.standard_normal((100, 4))
    A[0], b[0] = np.diag([1.0, 2.0, 4.0, 8.0]), 1.0
    A[1], b[1] = np.eye(4), [1.0, 2.0, 3.0, 4.0]
    x, residual = solve(*float32(A, b), 8)
    np.testing.assert_allclose(x, np.linalg.solve(A, b[..., None])[..., 0], atol=2e-5)
    np.testing.assert_array_equal(x[1], b[1])
    later_x, later_residual = solve(*float32(A, b), 500)
    np.testing.assert_array_equal(later_x, x)
    np.testing.assert_array_equal(later_residual, residual)


def test_singular_but_consistent_systems_get_their_least_norm_solution():
    rng = np.random.default_rng(4)
    eigenvalues = rng.uniform(1.0, 4.0, (100, 8)) * (np.arange(8) < rng.integers(1, 8, (100, 1)))
    A = symmetric(rng, eigenvalues)
    b = np.einsum("bij,bj->bi", A, rng.standard_normal((100, 8)))
    expected = np.einsum("bij,bj->bi", np.linalg.pinv(A, rcond=1e-10), b)
    np.testing.assert_allclose(solve(*float32(A, b), 100)[0], expected, atol=1e-4)


def hostile_systems(count=1000):
    """Singular, indefinite, negative, zero, non-finite, overflowing and vanishing systems, and bad right-hand sides."""
    rng = np.random.default_rng(5)
    eigenvalues, b = rng.uniform(0.1, 10.0, (count, 8)), rng.standard_normal((count, 8))
    kind = np.arange(count) % 10
    eigenvalues[kind == 0, 3:] = 0.0
    eigenvalues[kind == 1] *= rng.choice([-1.0, 1.0], (count // 10, 8))
    eigenvalues[kind == 2] *= -1.0
    A = symmetric(rng, eigenvalues)
    A[kind == 3] = 0.0
    for k, poison in ((4, np.nan), (5, np.inf)):
        for i in np.flatnonzero(kind == k):
            A[i, rng.integers(8), rng.integers(8)] = poison * rng.choice([-1.0, 1.0])
    A[kind == 6] *= 10.0 ** rng.integers(10, 37, (count // 10, 1, 1))
    A[kind == 7] *= 10.0 ** -rng.integers(10, 37, (count // 10, 1, 1)).astype(float)
    b[kind == 8] *= 10.0 ** rng.integers(-37, 37, (count // 10, 1)).astype(float)
    for i in np.flatnonzero(kind == 9):
        b[i, rng.integers(8)] = rng.choice([np.nan, np.inf, -np.inf])
    return kind, *float32(A, b)


@pytest.mark.parametrize("iterations", [1, 10, 100])
def test_a_thousand_hostile_systems_leave_no_non_finite_number(iterations):
    kind, A, b = hostile_systems()
    x, residual = solve(A, b, iterations)
    assert np.all(np.isfinite(x))
    assert np.all(np.isfinite(residual))
    np.testing.assert_array_equal(x[kind == 2], 0.0)  # no step along negative curvature
    np.testing.assert_array_equal(x[kind == 3], 0.0)
    np.testing.assert_array_equal(x[kind == 9], 0.0)
    np.testing.assert_array_equal(residual[kind == 9], 0.0)
    for k in (0, 1):  # wherever it stops, the residual is that of x, within the rounding of A x
        product = np.einsum("bij,bj->bi", *float64(A[kind == k], x[kind == k]))
        scale = 1.0 + 10.0 * np.linalg.norm(x[kind == k], axis=-1, keepdims=True)
        np.testing.assert_allclose((residual[kind == k] - (b[kind == k] - product)) / scale, 0.0, atol=1e-5)


def test_a_hostile_neighbour_changes_nothing_under_vmap():
    rng = np.random.default_rng(6)
    A, b = float32(symmetric(rng, rng.uniform(1.0, 5.0, (3, 8))), rng.standard_normal((3, 8)))
    clean, _ = solve(A, b, 10)
    A[1], b[2] = np.nan, np.inf
    mixed, _ = solve(A, b, 10)
    np.testing.assert_array_equal(mixed[0], clean[0])
    np.testing.assert_array_equal(mixed[1:], 0.0)


def test_a_zero_right_hand_side_has_the_solution_zero():
    A = np.stack([np.eye(5), np.zeros((5, 5)), np.diag([1.0, 2.0, 3.0, 4.0, 0.0])]).astype(np.float32)
    x, residual = solve(A, np.zeros((3, 5), np.float32), 10)
    np.testing.assert_array_equal(x, 0.0)
    np.testing.assert_array_equal(residual, 0.0)


def test_each_system_of_a_batch_is_solved_as_if_alone():
    rng = np.random.default_rng(7)
    A, b = float32(symmetric(rng, rng.uniform(1.0, 5.0, (4, 6))), rng.standard_normal((4, 6)))
    together, _ = solve(A, b, 10)
    for i in range(4):
        np.testing.assert_allclose(solve(A[i : i + 1], b[i : i + 1], 10)[0][0], together[i], atol=1e-5)


@pytest.mark.parametrize("iterations", [1, 3, 20])
def test_solution_metrics_are_the_relative_residual_and_the_energy(iterations):
    rng = np.random.default_rng(8)
    A, b = float32(symmetric(rng, rng.uniform(1.0, 10.0, (50, 8))), rng.standard_normal((50, 8)))
    x, residual = solve(A, b, iterations)
    metrics = jax.vmap(solution_metrics)(x, b, residual)
    A, b, x = float64(A, b, x)
    product = np.einsum("bij,bj->bi", A, x)
    expected = np.linalg.norm(b - product, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(metrics["cg_residual"], expected, atol=1e-5)
    np.testing.assert_allclose(metrics["xFx"], np.einsum("bi,bi->b", x, product), rtol=1e-4)


def test_solution_metrics_of_nothing_are_zero():
    zero = jnp.zeros(4)
    assert {name: float(value) for name, value in solution_metrics(zero, zero, zero).items()} == {
        "cg_residual": 0.0,
        "xFx": 0.0,
    }
