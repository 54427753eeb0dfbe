"""Advantage estimates and value targets from one rollout.

All arguments are [T, B]. `next_values[t]` is V of the observation that step t really led to, before any reset;
`done = terminated | truncated`. So one rule covers every way in which data can end: the sum over future steps is cut
at `done`, the bootstrap from `next_values` only at `terminated`; the last step of a rollout bootstraps too.
"""

import jax
import jax.numpy as jnp

from purejaxppo.errors import UsageError
from purejaxppo.parallel.mesh import moments
from purejaxppo.recurrence import linear_recurrence
from purejaxppo.types import Batch


def gae(
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    terminated: jax.Array,
    done: jax.Array,
    gamma: jax.Array | float,
    gae_lambda: jax.Array | float,
) -> jax.Array:
    """Generalized advantage estimation (Schulman et al., 2016, arXiv:1506.02438, eq. 16).

    A_t = δ_t + γλ (1 - done_t) A_{t+1},   δ_t = r_t + γ (1 - terminated_t) V(s'_t) - V(s_t),   A_T = 0

    Returns:
        Advantages [T, B]. With λ = 0 they are the TD errors; with λ = 1, where `next_values[t]` is `values[t+1]`
        within episodes, `monte_carlo_returns - values`.

    Raises:
        UsageError: where the shapes differ.
    """
    shapes = [jnp.shape(x) for x in (rewards, values, next_values, terminated, done)]
    if len(set(shapes)) > 1:
        raise UsageError(f"gae needs five arrays of one shape [T, B], got {shapes}; align their axes.")
    deltas = td_targets(rewards, next_values, terminated, gamma) - values
    decay = gamma * gae_lambda * (1.0 - jnp.asarray(done, deltas.dtype))
    return linear_recurrence(deltas, decay, reverse=True)


def td_targets(
    rewards: jax.Array, next_values: jax.Array, terminated: jax.Array, gamma: jax.Array | float
) -> jax.Array:
    """One-step targets r_t + γ (1 - terminated_t) V(s'_t) (Sutton and Barto, 2018, eq. 6.2). [T, B]."""
    return rewards + gamma * jnp.where(terminated, 0.0, next_values)


def monte_carlo_returns(
    rewards: jax.Array, next_values: jax.Array, terminated: jax.Array, done: jax.Array, gamma: jax.Array | float
) -> jax.Array:
    """Discounted returns G_t = r_t + γ G_{t+1}; an episode cut off, by a limit or the rollout's end, adds γ V(s').

    [T, B]. This is GAE with λ = 1 and V(s_t) = 0 in the first term (Sutton and Barto, 2018, eq. 3.9).
    """
    return gae(rewards, jnp.zeros_like(rewards), cut(next_values, done), terminated, done, gamma, 1.0)


def cut(next_values: jax.Array, done: jax.Array) -> jax.Array:
    """`next_values` where the data ends (episode or rollout), 0 elsewhere."""
    last = jnp.zeros_like(done).at[-1].set(True)
    return jnp.where(done | last, next_values, 0.0)


@jax.custom_jvp
def root(x: jax.Array) -> jax.Array:
    """√x, whose derivative at 0 is 0: for gradients through what has no gradient, or through advantages all alike."""
    return jnp.sqrt(x)


@root.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return root(x), dx * jnp.where(x > 0.0, 0.5 / jnp.sqrt(jnp.where(x > 0.0, x, 1.0)), 0.0)


def standardize(x: jax.Array) -> jax.Array:
    """(x - mean) / (std + 1e-8) over all entries."""
    centred = x - moments(x)[0]
    rounding, variance = moments(centred)  # the first mean's rounding, which 1e-8 would blow up where x is constant
    return (centred - rounding) / (root(variance) + 1e-8)


def standardize_advantages(batch: Batch) -> Batch:
    """A batch whose advantages are, over all its samples."""
    return batch._replace(advantage=standardize(batch.advantage))


def explained_variance(values: jax.Array, targets: jax.Array) -> jax.Array:
    """1 - Var(targets - values) / Var(targets): 1 is a perfect critic, 0 as good as a constant. Scalar.

    NaN where all targets are equal. λ-returns contain V themselves: with a small λ any critic explains much of them.
    """
    variance = moments(targets)[1]
    return jnp.where(variance > 0, 1.0 - moments(targets - values)[1] / variance, jnp.nan)
