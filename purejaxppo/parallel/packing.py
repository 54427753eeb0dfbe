"""A tree of arrays as one array of words: an accelerator then stores or gathers it in one launch instead of many."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WORD = 4  # bytes
Packed = tuple[list[jax.Array], list[jax.Array]]  # words and bytes, in one array each; and leaves of other widths


class Packing:
    """How trees like `example` are packed. Leaves share `axes` leading axes, which stay; the rest is flattened.

    Leaves of 4 bytes become one array of uint32 [..., W]; those of 1 byte are words among them, or one array of uint8
    [..., V] where there are more of them than of words; others (keys, say) are left as they are. `unpack` takes any
    leading axes, so it can be told of stacked or gathered ones.
    """

    def __init__(self, example: Any, axes: int) -> None:
        leaves, self._structure = jax.tree.flatten(example)
        self._shapes = [x.shape[axes:] for x in leaves]
        self._dtypes = [x.dtype for x in leaves]
        self._axes = axes
        widths = [_width(x.dtype) for x in leaves]
        counts = [sum(math.prod(s) for s, w in zip(self._shapes, widths, strict=True) if w == n) for n in (WORD, 1)]
        words = (WORD, 1) if counts[0] >= counts[1] else (WORD,)
        self._groups = [
            [i for i, width in enumerate(widths) if width in words],
            [i for i, width in enumerate(widths) if width == 1 and width not in words],
        ]
        self._rest = [i for i, width in enumerate(widths) if width not in (WORD, 1)]

    def pack(self, tree: Any) -> Packed:
        leaves = jax.tree.leaves(tree)
        packed = []
        for which, code in zip(self._groups, (jnp.uint32, jnp.uint8), strict=True):
            flat = [_encode(leaves[i], code).reshape(*leaves[i].shape[: self._axes], -1) for i in which]
            if flat:
                packed.append(jnp.concatenate(flat, axis=-1))
        return packed, [leaves[i] for i in self._rest]

    def unpack(self, packed: Packed) -> Any:
        arrays, rest = packed
        leaves = dict(zip(self._rest, rest, strict=True))
        for which, array in zip([group for group in self._groups if group], arrays, strict=True):
            ends = np.cumsum([math.prod(self._shapes[i]) for i in which])
            for i, part in zip(which, jnp.split(array, ends[:-1], axis=-1), strict=True):
                leaves[i] = _decode(part, self._dtypes[i]).reshape(*part.shape[:-1], *self._shapes[i])
        return jax.tree.unflatten(self._structure, [leaves[i] for i in range(len(leaves))])


def packed_scan(
    step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, length: int | None = None, unroll: int = 1
) -> Any:
    """`jax.lax.scan` that reads and writes one array in each step, and not one for each leaf of `xs` and results."""
    given = Packing(xs, 1)
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
    made = Packing(jax.eval_shape(step, carry, first)[1], 0)

    def packed_step(carry: Any, x: Packed) -> tuple[Any, Packed]:
        carry, y = step(carry, given.unpack(x))
        return carry, made.pack(y)

    carry, packed = jax.lax.scan(packed_step, carry, given.pack(xs), length, unroll=unroll)
    return carry, made.unpack(packed)


def _width(dtype: Any) -> int:
    """Bytes of an array's entries that may be taken for plain bits; else 0."""
    return 0 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else int(jnp.dtype(dtype).itemsize)


def _encode(x: jax.Array, code: Any) -> jax.Array:
    if _width(x.dtype) == jnp.dtype(code).itemsize and x.dtype != jnp.bool_:
        return jax.lax.bitcast_convert_type(x, code)
    return x.astype(code)


def _decode(x: jax.Array, dtype: Any) -> jax.Array:
    if _width(dtype) == x.dtype.itemsize and dtype != jnp.bool_:
        return jax.lax.bitcast_convert_type(x, dtype)
    return x.astype(dtype)
