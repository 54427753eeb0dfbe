"""A whole `lax.scan` as one kernel: one program instance makes all steps of one run."""

from collections.abc import Callable
from typing import Any

import jax

from purejaxppo.kernels.chance import drawn_in_advance
from purejaxppo.kernels.memory import call, load, store
from purejaxppo.kernels.padding import LEAST, NUMBERS, NoKernelError, held_numbers, padded, traced

MOST_WARPS = 8


def scan_in_kernel(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """`jax.lax.scan(step, carry, xs)`, what is carried and what `step` closes over staying on the chip.

    Raises:
        NoKernelError: there is no kernel for what `step` does, see `padding`.
    """
    step, xs = drawn_in_advance(step, carry, xs)
    first, flat = jax.tree.leaves(carry), jax.tree.leaves(xs)
    one = traced(step, carry, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs))
    length, number = flat[0].shape[0], len(first)
    if held_numbers(one.consts) > NUMBERS:
        raise NoKernelError(f"a step reads {held_numbers(one.consts)} parameters, more than {NUMBERS}")

    def kernel(inputs: Any, outputs: Any) -> None:
        consts, first, xs = inputs
        own = jax.tree.map(lambda ref: load(ref, ref.shape), consts)
        last, ys = map(jax.tree.leaves, outputs)

        def body(t: jax.Array, carry: list[jax.Array]) -> list[jax.Array]:
            seen = [ref if ref is None else load(ref, ref.shape[1:], step=t) for ref in xs]
            made = one(own, *carry, *seen)
            for ref, x in zip(ys, made[number:], strict=True):
                store(ref, x, ref.shape[1:], step=t)
            return made[:number]

        carry = jax.lax.fori_loop(0, length, body, [load(ref, ref.shape) for ref in first])
        for ref, x in zip(last, carry, strict=True):
            store(ref, x, ref.shape)

    last, ys = one.shapes
    outputs = (last, jax.tree.map(lambda x: jax.ShapeDtypeStruct((length, *x.shape), x.dtype), ys))
    seen = [x if used else None for x, used in zip(flat, one.uses[number:], strict=True)]
    rows = max((padded(x.shape[0]) for x in first if x.ndim), default=1)
    warps = min(max(rows // LEAST, 1), MOST_WARPS)  # a matrix product gives each 16 rows, else the same to several
    return call(kernel, (one.consts, first, seen), outputs, "scan", warps)
