"""Decisions taken once for all runs of a vmapped program."""

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
