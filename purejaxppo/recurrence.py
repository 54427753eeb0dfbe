"""Linear recurrences along time, as a CPU and as an accelerator do them best."""

from typing import Any

import jax
import jax.numpy as jnp

from purejaxppo.platforms import on_cpu


def linear_recurrence(x: jax.Array, decay: jax.Array, reverse: bool = False) -> jax.Array:
    """y_t = x_t + decay_t y_{t-1}, y_{-1} = 0, along the first axis of two arrays [T, ...]; y_{t+1} in `reverse`.

    A CPU takes one step after another. There each step of a loop would be a launch on an accelerator, which has log₂ T
    operations on the whole arrays instead (Blelloch, 1990); only last digits differ.
    """
    if not on_cpu():
        return jax.lax.associative_scan(_compose, (decay, x), reverse=reverse)[1]

    def step(before: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        term, factor = inputs
        value = term + factor * before
        return value, value

    return jax.lax.scan(step, jnp.zeros_like(x[0]), (x, decay), reverse=reverse)[1]


def _compose(first: Any, second: Any) -> tuple[jax.Array, jax.Array]:
    """Of two affine maps y ↦ (factor, term), the second after the first."""
    return second[0] * first[0], second[1] + second[0] * first[1]
