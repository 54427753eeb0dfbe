"""Many runs as one program, and one run on many devices: what `vmap` and `shard_map` must be told."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purejaxppo.platforms import on_cpu

IMAGES = 1024  # of one run that are evaluated at once on an accelerator


@jax.custom_batching.custom_vmap
def any_run(flags: jax.Array) -> jax.Array:
    """True where any flag is, in any run: under `vmap` the result is one scalar, not one per run.

    A `lax.cond` or `while_loop` on it stays a real branch under `vmap`, where a predicate per run would make XLA
    execute both branches. Only for guarding work whose result is masked per run anyway.
    """
    return jnp.any(flags)


@any_run.def_vmap
def _any_run_batched(axis_size: int, in_batched: list[bool], flags: jax.Array) -> tuple[jax.Array, bool]:
    return any_run(flags), False


def in_lots(fn: Callable[..., Any], runs: int) -> Callable[..., Any]:
    """`fn`, which under `vmap` works on at most so many runs at once, one lot after the other.

    For work that goes over a large batch many times. On a CPU one run's part of it stays in the core's cache, which
    that of all runs would not; on an accelerator the activations of all would not fit into memory. `fn` must take all
    that is traced as arguments.
    """
    mapped = jax.custom_batching.custom_vmap(fn)
    again = mapped if runs == 1 else fn  # with one at a time, that of an outer `vmap` are, too

    @mapped.def_vmap
    def lots(axis_size: int, in_batched: Any, *args: Any) -> tuple[Any, Any]:
        if not any(jax.tree.leaves(in_batched)):  # but tangents are, as in `jax.jacfwd`
            result = fn(*args)
            return result, jax.tree.map(lambda _: False, result)
        leaves, structure = jax.tree.flatten(args)
        all_own = [*zip(jax.tree.leaves(in_batched), leaves, strict=True)]

        def one_run(own: list[jax.Array]) -> Any:
            rest = iter(own)
            return again(*jax.tree.unflatten(structure, [next(rest) if is_own else x for is_own, x in all_own]))

        own = [x for is_own, x in all_own if is_own]
        results = jax.lax.map(one_run, own) if runs == 1 else in_equal_parts(jax.vmap(one_run), own, axis_size, runs)
        return results, jax.tree.map(lambda _: True, results)

    return mapped


def in_chunks(fn: Callable[[Any], Any], samples: Any, axes: int) -> Any:
    """`fn` of samples with so many leading axes; of images on an accelerator, one chunk along the first after another.

    `fn` must treat each sample by itself. What a convolution needs in between is many times as large as its input.
    """
    leaves = jax.tree.leaves(samples)
    if on_cpu() or max(x.ndim for x in leaves) < axes + 2:
        return fn(samples)
    count, *others = leaves[0].shape[:axes]
    return in_equal_parts(fn, samples, count, max(IMAGES // math.prod(others), 1))


def in_equal_parts(fn: Callable[[Any], Any], tree: Any, count: int, most: int) -> Any:
    """`fn` of arrays [count, ...], in the fewest parts of equally many that are at most `most`."""
    parts = next(n for n in range(-(-count // most), count + 1) if count % n == 0)
    if parts == 1:
        return fn(tree)
    tree = jax.tree.map(lambda x: x.reshape(parts, count // parts, *x.shape[1:]), tree)
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), jax.lax.map(fn, tree))


@jax.custom_jvp
def opaque(tree: Any) -> Any:
    """The same values, as if they had been passed into the program: no constants, and under `vmap` one of each per run.

    An initial state holds zeros that XLA would fold into the updates and that `vmap` would leave unbatched. With this,
    an update compiles alike, and has the same bits, whether its state was made in the same program or outside it.
    """
    return _opaque(tree)


@opaque.defjvp
def _opaque_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    return opaque(*primals), *tangents


@jax.custom_batching.custom_vmap
def _opaque(tree: Any) -> Any:
    return jax.lax.optimization_barrier(tree)


@_opaque.def_vmap
def _opaque_batched(axis_size: int, in_batched: list[Any], tree: Any) -> tuple[Any, Any]:
    tree = all_batched(axis_size, in_batched[0], tree)
    return _opaque(tree), jax.tree.map(lambda _: True, tree)


def all_batched(axis_size: int, in_batched: Any, tree: Any) -> Any:
    """A tree of which some arrays have the axis of a `vmap`, with that axis on all of them."""

    def spread(batched: bool, x: jax.Array) -> jax.Array:
        return x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))

    return jax.tree.map(spread, in_batched, tree)
