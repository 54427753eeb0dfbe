"""Backtracking along a step."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.parallel.vmapping import any_run


class Candidate(NamedTuple):
    """One point of the search."""

    fraction: jax.Array  # [] of the full step
    gain: jax.Array  # [] surrogate(θ + fraction · step) - surrogate(θ)
    kl: jax.Array  # [] mean KL(π_θ ‖ π_θ + fraction · step)
    accepted: jax.Array  # [] bool
    backtracks: jax.Array  # [] int32, points turned down before this one, accepted or not


@jax.named_scope("line_search")
def backtrack(
    evaluate: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    theta: jax.Array,
    step: jax.Array,
    max_kl: jax.Array | float,
    factor: jax.Array | float,
    max_backtracks: int,
) -> tuple[jax.Array, Candidate]:
    """The first of θ + factorʲ · step, j = 0 … max_backtracks, that satisfies TRPO's conditions.

    They are: everything finite, mean KL ≤ max_kl, surrogate gain > 0 (Schulman et al., 2015, arXiv:1502.05477,
    appendix C). Where none does, θ itself is returned.

    Args:
        evaluate: θ' [P] ↦ (gain, kl), both scalar.
        theta, step: [P].
        max_kl: the bound; inf switches that condition off.
    """

    def candidate(j: jax.Array) -> Candidate:
        fraction = jnp.asarray(factor, theta.dtype) ** j
        gain, kl = evaluate(theta + fraction * step)
        accepted = jnp.isfinite(gain) & jnp.isfinite(kl) & jnp.all(jnp.isfinite(step)) & (kl <= max_kl) & (gain > 0)
        return Candidate(fraction, gain, kl, accepted, j)

    def unfinished(current: Candidate) -> jax.Array:
        return any_run(~current.accepted & (current.backtracks < max_backtracks))

    def advance(current: Candidate) -> Candidate:
        keep = current.accepted | (current.backtracks >= max_backtracks)
        following = candidate(current.backtracks + 1)
        return jax.tree.map(lambda old, new: jnp.where(keep, old, new), current, following)

    found = jax.lax.while_loop(unfinished, advance, candidate(jnp.zeros((), jnp.int32)))
    return jnp.where(found.accepted, theta + found.fraction * step, theta), found
