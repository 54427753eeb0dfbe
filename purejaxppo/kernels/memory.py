"""Kernels as functions of pytrees, and how they read and write arrays that they hold padded."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from purejaxppo.errors import UsageError
from purejaxppo.kernels.padding import padded_shape

_interpreted = ContextVar("interpreted", default=False)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Kernels traced within are worked out operation by operation, on any device: slow, and for tests."""
    token = _interpreted.set(True)
    try:
        yield
    finally:
        _interpreted.reset(token)


def is_interpreted() -> bool:
    return _interpreted.get()


def call(kernel: Callable[[Any, Any], None], inputs: Any, outputs: Any, name: str, warps: int) -> Any:
    """What `kernel(input refs, output refs)` writes, `outputs` being shapes; one program instance does it all.

    Raises:
        UsageError: it is to be differentiated.
    """
    flat, structure = jax.tree.flatten(inputs)
    shapes, results = jax.tree.flatten(outputs)

    def body(*refs: Any) -> None:
        kernel(jax.tree.unflatten(structure, refs[: len(flat)]), jax.tree.unflatten(results, refs[len(flat) :]))

    @jax.custom_jvp
    def run(*arrays: jax.Array) -> Any:
        return launch(*arrays)

    @run.defjvp
    def no_derivative(primals: Any, tangents: Any) -> Any:
        raise UsageError("kernels = 'auto' and 'pallas' have no derivatives; to differentiate training, pass 'xla'.")

    launch = pl.pallas_call(
        body,
        out_shape=shapes,
        interpret=_interpreted.get(),
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=1),
        name=name,
    )
    return jax.tree.unflatten(results, run(*map(jnp.asarray, flat)))


def load(ref: Any, shape: Sequence[int], step: Any = None, rows: jax.Array | None = None) -> jax.Array:
    """An array of `shape`, padded with zeros: what `ref` has, at `step` of its first axis or at `rows` of it."""
    where, inside = _places(shape, step, rows)
    other = None if inside is None else jnp.zeros((), ref.dtype)
    return plgpu.load(ref.at[where] if where else ref, mask=inside, other=other)


def store(ref: Any, x: jax.Array, shape: Sequence[int], step: Any = None) -> None:
    """Write what is no padding of `x`, held for `shape`, into `ref`, or at `step` of its first axis."""
    where, inside = _places(shape, step, None)
    plgpu.store(ref.at[where] if where else ref, x, mask=inside)


def _places(shape: Sequence[int], step: Any, rows: jax.Array | None) -> tuple[tuple[Any, ...], jax.Array | None]:
    held = padded_shape(shape)
    where: list[Any] = [jax.lax.broadcasted_iota(jnp.int32, held, axis) for axis in range(len(shape))]
    inside = None
    for index, n, size in zip(where, shape, held, strict=True):
        if n != size:
            inside = index < n if inside is None else inside & (index < n)
    if rows is not None:
        where[0] = jnp.broadcast_to(rows.reshape(-1, *(1,) * (len(shape) - 1)), held)
    if step is not None:
        where = [jnp.full(held, step, jnp.int32) if held else step, *where]
    return tuple(where), inside
