"""Means over the samples of a batch as one kernel: samples are worked on in parts, what is made of them stays there."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purejaxppo.kernels.memory import call, load, store
from purejaxppo.kernels.padding import NUMBERS, NoKernelError, held_numbers, padded, traced

SAMPLES = 128  # at most, that are worked on together
LONGEST = 4096  # samples, at most: one run alone would do better with all multiprocessors
WARPS = 8


def mean_in_kernel(fn: Callable[[Any, Any], Any], state: Any, batch: Any) -> Any:
    """`fn(state, batch)`, which must be a mean over samples [N, ...], as the mean over parts of the batch.

    Raises:
        NoKernelError: no kernel can do it, see `padding`; or the state or the batch is too large.
    """
    flat, samples = jax.tree.leaves(state), jax.tree.leaves(batch)
    parts, length = in_parts(samples[0].shape[0])
    one = traced(fn, state, jax.tree.map(lambda x: jax.ShapeDtypeStruct((length, *x.shape[1:]), x.dtype), batch))
    if held_numbers(state) > 2 * NUMBERS:
        raise NoKernelError(f"it needs {held_numbers(state)} numbers at once, more than {2 * NUMBERS}")

    def kernel(inputs: Any, outputs: Any) -> None:
        consts, state, samples = inputs
        own, state = jax.tree.map(lambda ref: load(ref, ref.shape), (consts, state))

        def part(i: Any) -> list[jax.Array]:
            rows = i * length + jax.lax.broadcasted_iota(jnp.int32, (padded(length),), 0)
            seen = [x if x is None else load(x, (length, *x.shape[1:]), rows=rows) for x in samples]
            return one(own, *state, *seen)

        for ref, x in zip(jax.tree.leaves(outputs), mean_over_parts(part, parts), strict=True):
            store(ref, x, ref.shape)

    seen = [x if used else None for x, used in zip(samples, one.uses[len(flat) :], strict=True)]
    return call(kernel, (one.consts, flat, seen), one.shapes, "mean", WARPS)


def in_parts(size: int) -> tuple[int, int]:
    """How many equal parts samples are worked on in, and how many samples are in each. Raises: NoKernelError."""
    if size > LONGEST:
        raise NoKernelError(f"{size} samples at once are better shared out over the GPU")
    parts = next(n for n in range(1, size + 1) if size % n == 0 and size // n <= SAMPLES)
    return parts, size // parts


def mean_over_parts(part: Callable[[Any], list[jax.Array]], parts: int) -> list[jax.Array]:
    """The mean of `part(i)`, i = 0 … parts - 1, each entry."""
    first = part(0)
    if parts == 1:
        return first

    def add(i: jax.Array, total: list[jax.Array]) -> list[jax.Array]:
        return [x + y for x, y in zip(total, part(i), strict=True)]

    return [x / parts for x in jax.lax.fori_loop(1, parts, add, first)]
