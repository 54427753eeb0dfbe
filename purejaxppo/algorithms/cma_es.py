"""Evolution by covariance matrix adaptation."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.flatten_util import ravel_pytree

from purejaxppo.fields import Hyperparameters, number, static
from purejaxppo.precision import matmul_precision
from purejaxppo.types import Metrics, Params

FULL_AT_MOST = 200  # parameters: finding the eigenvectors takes longer than the episodes beyond some hundreds
SMALLEST = 1e-7  # eigenvalue, as a part of the largest: float32 knows no smaller ones
LEAST_SIGMA, LEAST_VARIANCE = 1e-8, 1e-12  # once all members are equal in float32, both would fall to 0


class CMAESState(struct.PyTreeNode):
    """What the method keeps between generations; the mean is the policy itself. C = B diag(d²) Bᵀ."""

    sigma: jax.Array  # [] the step size
    covariance: jax.Array  # [D, D] C, or its diagonal [D]
    basis: Any  # [D, D] B; () where C is diagonal
    scale: jax.Array  # [D] d
    step_path: jax.Array  # [D] p_σ
    path: jax.Array  # [D] p_c
    generation: jax.Array  # [] int32


class CMAES(Hyperparameters):
    """CMA-ES (Hansen, 2016, arXiv:1604.00772, appendix A), with its default strategy parameters.

    Members are m + σ N(0, C). m moves to the weighted mean of the better half; C learns from the weighted yᵢyᵢᵀ of all
    members, yᵢ = (xᵢ - m) / σ, with negative weights for the worse half, and from the path p_c that m took; σ grows
    where m takes steps in one direction, and shrinks where they cancel.

    A diagonal C is that of sep-CMA-ES (Ros and Hansen, 2008, PPSN X): it learns (D + 2) / 3 times as fast, and
    from positive weights alone.
    """

    initial_sigma: float = number(0.5, "(0, inf)", "σ in the first generation")
    covariance: str = static(
        "auto", f"C; auto is full up to {FULL_AT_MOST} parameters", choices=("auto", "full", "diagonal")
    )
    envs_per_member: int = static(1, "environments in which each member acts", interval="[1, 1e6]")

    evolves: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Any]] = {  # Hansen's 4 + 3 ln D members would be 29 for 64-64; the rest is ours
        "num_envs": 32,
        "num_steps": 500,
        "num_epochs": 1,
        "num_minibatches": 1,
    }

    def init(self, params: Params) -> CMAESState:
        mean, _ = ravel_pytree(params)
        zeros, ones = jnp.zeros_like(mean), jnp.ones_like(mean)
        full = self.covariance == "full" or (self.covariance == "auto" and mean.size <= FULL_AT_MOST)
        matrix = jnp.eye(mean.size, dtype=mean.dtype)
        sigma = jnp.asarray(self.initial_sigma, mean.dtype)
        covariance, basis = (matrix, matrix) if full else (ones, ())
        return CMAESState(sigma, covariance, basis, ones, zeros, zeros, jnp.zeros((), jnp.int32))

    def ask(self, key: jax.Array, mean: jax.Array, state: CMAESState, num_members: int) -> jax.Array:
        """m + σ C^{1/2} z, by the symmetric root: it hardly changes where last digits turn the eigenvectors round."""
        z = jax.random.normal(key, (num_members, mean.size))
        return mean[None] + state.sigma * _times_power(state, z, 1.0)

    def tell(
        self, mean: jax.Array, state: CMAESState, members: jax.Array, fitness: jax.Array
    ) -> tuple[jax.Array, CMAESState, Metrics]:
        """The next m, σ, C and their paths, see `EvolutionStrategy.tell`."""
        n, full = mean.size, state.covariance.ndim == 2
        s = strategy(fitness.size, n, full)
        with matmul_precision("highest"):
            y = (members[jnp.argsort(-fitness)] - mean[None]) / state.sigma  # [P, D], the best first
            step = jnp.maximum(s.weights, 0.0) @ y
            g = state.generation + 1
            step_path = (1 - s.c_sigma) * state.step_path
            step_path += math.sqrt(s.c_sigma * (2 - s.c_sigma) * s.mu_eff) * _times_power(state, step[None], -1.0)[0]
            length, usual = jnp.linalg.norm(step_path), math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
            sigma = state.sigma * jnp.exp(jnp.minimum(s.c_sigma / s.damping * (length / usual - 1), 1.0))
            sigma = jnp.maximum(sigma, LEAST_SIGMA)
            # a path that is much too long would make C grow too fast along it
            moves = length / jnp.sqrt(1 - (1 - s.c_sigma) ** (2 * g)) < (1.4 + 2 / (n + 1)) * usual
            path = (1 - s.c_c) * state.path + moves * math.sqrt(s.c_c * (2 - s.c_c) * s.mu_eff) * step
            squares = jnp.sum(_times_power(state, y, -1.0) ** 2, axis=-1)
            weights = jnp.where(s.weights >= 0, s.weights, s.weights * n / jnp.maximum(squares, 1e-12))
            kept = 1 + s.c_1 * (1 - moves) * s.c_c * (2 - s.c_c) - s.c_1 - s.c_mu * s.weights.sum()
            if full:
                learnt = s.c_1 * jnp.outer(path, path) + s.c_mu * (y.T * weights[None]) @ y
            else:
                learnt = s.c_1 * path**2 + s.c_mu * weights @ y**2
            covariance = kept * state.covariance + learnt
        covariance, basis, scale = _decomposed(covariance)
        spread = jnp.sqrt(jnp.mean(jnp.diagonal(state.covariance) if full else state.covariance))
        metrics = {"search_std": state.sigma * spread, "sigma": state.sigma}
        moved = CMAESState(sigma, covariance, basis, scale, step_path, path, g)
        return mean + state.sigma * step, moved, metrics


class Strategy(NamedTuple):
    """The strategy parameters of table 1 and equations 49 to 58, for P members of D parameters."""

    weights: np.ndarray  # [P] of the best member first; the positive ones add up to 1
    mu_eff: float  # of the positive weights
    c_sigma: float
    damping: float
    c_c: float
    c_1: float
    c_mu: float


def strategy(num_members: int, n: int, full: bool) -> Strategy:
    """The defaults for so many members and parameters."""
    mu = num_members // 2
    raw = math.log((num_members + 1) / 2) - np.log(np.arange(1, num_members + 1))
    mu_eff, mu_eff_worse = (x.sum() ** 2 / (x**2).sum() for x in (raw[:mu], raw[mu:]))
    c_sigma = (mu_eff + 2) / (n + mu_eff + 5)
    damping = 1 + 2 * max(0.0, math.sqrt((mu_eff - 1) / (n + 1)) - 1) + c_sigma
    c_c = (4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n)
    faster = 1.0 if full else (n + 2) / 3
    c_1 = min(1.0, faster * 2 / ((n + 1.3) ** 2 + mu_eff))
    c_mu = min(1 - c_1, faster * 2 * (0.25 + mu_eff + 1 / mu_eff - 2) / ((n + 2) ** 2 + mu_eff))
    positive, negative = np.maximum(raw, 0.0), np.minimum(raw, 0.0)
    weights = positive / positive.sum()
    if full:
        most = min(1 + c_1 / c_mu, 1 + 2 * mu_eff_worse / (mu_eff + 2), (1 - c_1 - c_mu) / (n * c_mu))
        weights = weights + most * negative / -negative.sum()
    return Strategy(weights, float(mu_eff), c_sigma, damping, c_c, c_1, c_mu)


def _times_power(state: CMAESState, y: jax.Array, power: float) -> jax.Array:
    """C^{power/2} y of vectors [P, D]."""
    scale = state.scale[None] ** power
    if state.covariance.ndim == 1:
        return y * scale
    with matmul_precision("highest"):
        return (y @ state.basis * scale) @ state.basis.T


def _decomposed(covariance: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
    """C made symmetric, its eigenvectors, and the roots of its eigenvalues, which have a floor."""
    if covariance.ndim == 1:
        covariance = jnp.maximum(covariance, LEAST_VARIANCE)
        return covariance, (), jnp.sqrt(covariance)
    covariance = (covariance + covariance.T) / 2
    # one after the other under `vmap`: batched LAPACK can deadlock on a CPU with few cores
    values, basis = jax.custom_batching.sequential_vmap(lambda c: tuple(jnp.linalg.eigh(c)))(covariance)
    return covariance, basis, jnp.sqrt(jnp.maximum(values, jnp.maximum(SMALLEST * values[-1], LEAST_VARIANCE)))
