"""Many runs as one program, and one run on many devices: what `vmap` and `shard_map` must be told."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


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


def run_by_run(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, which under `vmap` works on one run after the other where the device is a CPU.

    For work that goes over a large batch many times: one run's part of it stays in the core's cache, which that of all
    runs would not. `fn` must take all that is traced as arguments.
    """
    return jax.custom_batching.sequential_vmap(fn) if jax.default_backend() == "cpu" else fn


@jax.custom_batching.custom_vmap
def opaque(tree: Any) -> Any:
    """The same values, as if they had been passed into the program: no constants, and under `vmap` one of each per run.

    An initial state holds zeros that XLA would fold into the updates and that `vmap` would leave unbatched. With this,
    an update compiles alike, and has the same bits, whether its state was made in the same program or outside it.
    """
    return jax.lax.optimization_barrier(tree)


@opaque.def_vmap
def _opaque_batched(axis_size: int, in_batched: list[Any], tree: Any) -> tuple[Any, Any]:
    def spread(batched: bool, x: jax.Array) -> jax.Array:
        return x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))

    tree = jax.tree.map(spread, in_batched[0], tree)
    return opaque(tree), jax.tree.map(lambda _: True, tree)
