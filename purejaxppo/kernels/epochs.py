"""All minibatches of all epochs of Adam as one kernel: one program instance improves the network of one run.

Parameters and moments stay on the chip from the first minibatch to the last; `vmap` over runs makes the grid.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purejaxppo.kernels.memory import call, load, store
from purejaxppo.kernels.padding import NUMBERS, NoKernelError, held_numbers, padded, traced
from purejaxppo.kernels.samples import WARPS, in_parts, mean_over_parts


def minimize_in_kernel(
    objective: Callable[[Any, Any], tuple[jax.Array, Any]],
    move: Callable[[Any, Any, Any], tuple[Any, Any]],
    state: Any,
    batch: Any,
    order: jax.Array,
    prepare: Callable[[Any], Any] | None,
) -> tuple[Any, Any]:
    """The state after the minibatches `batch[order[e, m]]` of all epochs, and metrics, means over the last epoch.

    The state is (parameters, ...). `objective(parameters, minibatch)` gives a loss and metrics, means over samples;
    `move(state, metrics, gradient)` gives state and metrics. `order` is [K, M, n] of the N samples.
    `prepare` is as in `MinibatchAdam.minimize`.

    Raises:
        NoKernelError: no kernel can do it, see `padding`; or the network is too large to stay on the chip.
    """
    epochs, minibatches, size = order.shape
    parts, length = in_parts(size)
    leaves, shuffled = _lay_out(batch, order, prepare)
    sample = jax.tree.map(lambda x: jax.ShapeDtypeStruct((length, *x.shape[1:]), x.dtype), batch)

    def gradient(state: Any, minibatch: Any) -> tuple[Any, Any]:
        (_, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(state[0], minibatch)
        return metrics, gradient

    steepest = traced(gradient, state, sample)
    moved = traced(move, state, *steepest.shapes)
    flat, structure = jax.tree.flatten(state)
    if held_numbers(state) > 3 * NUMBERS:
        raise NoKernelError(f"its parameters and moments are {held_numbers(state)} numbers, more than {3 * NUMBERS}")
    names = jax.tree.leaves(moved.shapes[1])

    def kernel(inputs: Any, outputs: Any) -> None:
        consts, first, order, samples = inputs
        own, others = jax.tree.map(lambda ref: load(ref, ref.shape), consts)

        def part(i: Any, j: Any, state: list[jax.Array]) -> list[jax.Array]:
            at = i * size + j * length + jax.lax.broadcasted_iota(jnp.int32, (padded(length),), 0)
            rows = load(order, (length,), rows=at)
            shown = [
                ref if ref is None else load(ref, (length, *ref.shape[1:]), rows=rows if is_whole else at)
                for ref, is_whole in zip(samples, shuffled, strict=True)
            ]
            return steepest(own, *state, *shown)

        def minibatch(i: jax.Array, carry: tuple[list[jax.Array], list[jax.Array]]) -> Any:
            state, sums = carry
            mean = mean_over_parts(lambda j: part(i, j, state), parts)
            results = moved(others, *state, *mean)
            state, metrics = results[: len(state)], results[len(state) :]
            is_last = i >= (epochs - 1) * minibatches
            return state, [x + jnp.where(is_last, y, 0.0) for x, y in zip(sums, metrics, strict=True)]

        state = [load(ref, ref.shape) for ref in first]
        sums = [jnp.zeros((), jnp.float32) for _ in names]
        state, sums = jax.lax.fori_loop(0, epochs * minibatches, minibatch, (state, sums))
        for ref, x in zip(outputs, [*state, *(x / minibatches for x in sums)], strict=True):
            store(ref, x, ref.shape)

    seen = [x if used else None for x, used in zip(leaves, steepest.uses[len(flat) :], strict=True)]
    inputs = ([steepest.consts, moved.consts], flat, order.reshape(-1), seen)
    outputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in [*flat, *names]]
    results = call(kernel, inputs, outputs, "minibatch_epochs", WARPS)
    metrics = jax.tree.unflatten(jax.tree.structure(moved.shapes[1]), results[len(flat) :])
    return jax.tree.unflatten(structure, results[: len(flat)]), metrics


def _lay_out(batch: Any, order: jax.Array, prepare: Any) -> tuple[list[jax.Array], list[bool]]:
    """Arrays that hold the samples, and of each whether they lie there as in `batch`, to be read in `order`.

    The others are what `prepare` makes of minibatches, which lie there as they are read.
    """
    leaves = jax.tree.leaves(batch)
    if prepare is None:
        return leaves, [True] * len(leaves)
    shuffled = jax.tree.map(lambda x: x[order.reshape(-1, order.shape[-1])], batch)
    jaxpr = jax.make_jaxpr(prepare)(jax.tree.map(lambda x: x[0], shuffled)).jaxpr
    kept = [after is before for before, after in zip(jaxpr.invars, jaxpr.outvars, strict=True)]
    made = jax.tree.leaves(jax.vmap(prepare)(shuffled))  # of those that are kept nothing is compiled
    return [x if k else y.reshape(-1, *y.shape[2:]) for x, y, k in zip(leaves, made, kept, strict=True)], kept
