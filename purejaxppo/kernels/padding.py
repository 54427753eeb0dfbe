"""A traced function, worked out on arrays that are padded to the sizes that a GPU kernel can hold.

Triton's arrays have powers of two as sizes, and at least 16 where they are multiplied as matrices. So an axis of n > 1
entries is held as `padded(n)` of them, of which those from n on may hold anything: each operation that looks along an
axis leaves them out. Axes of one entry stay as they are.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal

from purejaxppo.platforms import compiling_for

LEAST = 16  # entries of an axis of a matrix product
LARGEST = 2**14  # numbers of one array, at most: a fourth of the registers of an SM
NUMBERS = 12 * 1024  # of a network, at most: with gradient and Adam's moments, three fourths of them

ELEMENTWISE = {
    *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "ceil", "clamp"),
    *("convert_element_type", "cos", "cosh", "div", "eq", "exp", "exp2", "expm1", "floor", "ge", "gt"),
    *("integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not"),
    *("or", "pow", "rem", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical"),
    *("sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "xor"),
}
SAME = {"copy", "copy_p", "name", "stop_gradient", "optimization_barrier"}
SAME |= {"reshard"}  # where runs are spread over devices, JAX notes so that an array is one of the device's own
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}


class NoKernelError(Exception):
    """A function is not made of what these kernels can do; the message says what it is that they cannot."""


def padded(n: int) -> int:
    """Entries that an axis of n is held as."""
    return 1 if n == 1 else max(LEAST, 1 << (n - 1).bit_length())


def padded_shape(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(map(padded, shape))


class Traced(NamedTuple):
    """A function as its operations, those left out whose results nothing needs."""

    jaxpr: Any
    equations: list[Any]
    consts: list[Any]  # arrays that it closes over; None where they are not needed
    shapes: Any  # of its results
    uses: list[bool]  # of the arrays among its arguments, which are needed

    def __call__(self, consts: Sequence[Any], *args: Any) -> list[Any]:
        """Its results as a list, padded, for padded arguments and constants. Raises: NoKernelError."""
        return _evaluate(self.jaxpr, self.equations, consts, args)


def traced(fn: Callable[..., Any], *args: Any) -> Traced:
    """`fn`, traced for arguments of such shapes, in the form that suits one processor with its data at hand.

    Raises:
        NoKernelError: it has an operation that is not among those known here. When it is called, so may it be for an
            array that is too large, or a known operation in an unknown form.
    """
    with compiling_for("cpu"):
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    jaxpr, (equations, variables) = closed.jaxpr, needed(closed.jaxpr)
    for name in (name for eqn in equations for name in _unknown(eqn)):
        raise NoKernelError(f"there is no kernel for the operation {name}")
    consts = [x if var in variables else None for var, x in zip(jaxpr.constvars, closed.consts, strict=True)]
    return Traced(jaxpr, equations, consts, shapes, [var in variables for var in jaxpr.invars])


def needed(jaxpr: Jaxpr) -> tuple[list[Any], set[Any]]:
    """The equations that the results depend on, and the variables."""
    equations, variables = [], set(_variables(jaxpr.outvars))
    for eqn in reversed(jaxpr.eqns):
        if variables.intersection(eqn.outvars):
            equations.append(eqn)
            variables.update(_variables(eqn.invars))
    return equations[::-1], variables


def is_known(eqn: Any) -> bool:
    """Whether a kernel can have all operations of an equation."""
    return not any(_unknown(eqn))


def _unknown(eqn: Any) -> Iterator[str]:
    name = eqn.primitive.name
    if name in CALLS:
        for inner in eqn.params[CALLS[name]].jaxpr.eqns:
            yield from _unknown(inner)
    elif name not in ELEMENTWISE | SAME | RULES.keys():
        yield name


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [x for x in atoms if not isinstance(x, Literal)]


def _evaluate(jaxpr: Jaxpr, equations: Sequence[Any], consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    held: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        if not isinstance(atom, Literal):
            return held[atom]
        aval: Any = atom.aval
        return np.asarray(atom.val, aval.dtype)[()]

    for eqn in equations:
        name, values = eqn.primitive.name, [read(x) for x in eqn.invars]
        if name in CALLS:
            inner = eqn.params[CALLS[name]]
            results = _evaluate(inner.jaxpr, inner.jaxpr.eqns, inner.consts, values)
        elif name in SAME:
            results = values
        elif name in ELEMENTWISE:
            results = [_elementwise(eqn.primitive, values, eqn.params)]
        else:
            before, after = [x.aval for x in eqn.invars], eqn.outvars[0].aval
            results = [RULES[name](*values, before=before, after=after, **eqn.params)]
        for x in eqn.outvars:
            if math.prod(padded_shape(x.aval.shape)) > LARGEST:
                raise NoKernelError(f"an array {list(x.aval.shape)} does not fit into a kernel")
        held.update(zip(eqn.outvars, results, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _elementwise(primitive: Any, values: Sequence[Any], params: Any) -> Any:
    if any(isinstance(x, jax.core.Tracer) for x in values):
        return primitive.bind(*values, **params)
    with jax.ensure_compile_time_eval():  # not all of Triton's rules take constants alone
        return np.asarray(primitive.bind(*values, **params))[()]


def _along(held: tuple[int, ...], axis: int) -> jax.Array:
    """[held]: the index along one axis."""
    if held[axis] == 1:
        return jnp.zeros(held, jnp.int32)
    return jax.lax.broadcasted_iota(jnp.int32, held, axis)


def _keep(x: jax.Array, shape: Sequence[int], axes: Sequence[int], fill: Any) -> jax.Array:
    """`x`, held for `shape`, with `fill` for what is padding along `axes`."""
    for axis in axes:
        if shape[axis] != x.shape[axis]:
            x = jnp.where(_along(x.shape, axis) < shape[axis], x, jnp.asarray(fill, x.dtype))
    return x


def _broadcast_in_dim(x: Any, *, after: Any, broadcast_dimensions: Sequence[int], **_: Any) -> jax.Array:
    return jax.lax.broadcast_in_dim(x, padded_shape(after.shape), tuple(map(int, broadcast_dimensions)))


def _reshape(x: jax.Array, *, before: Any, after: Any, **_: Any) -> jax.Array:
    """Only axes of one entry may come or go."""
    if [n for n in before[0].shape if n > 1] != [n for n in after.shape if n > 1]:
        raise NoKernelError(f"it reshapes {before[0].shape} to {after.shape}")
    return x.reshape(padded_shape(after.shape))


def _iota(*, after: Any, dimension: int, **_: Any) -> jax.Array:
    return _along(padded_shape(after.shape), dimension).astype(after.dtype)


def _as_held(x: jax.Array) -> jax.Array:
    """Triton reduces no bool."""
    return x.astype(jnp.int32) if x.dtype == jnp.bool_ else x


def _reduction(
    reduce: Callable[..., jax.Array], neutral: Callable[[Any], Any], of_bool: bool = False
) -> Callable[..., jax.Array]:
    def rule(x: jax.Array, *, before: Any, after: Any, axes: Sequence[int], **_: Any) -> jax.Array:
        if of_bool and x.dtype != jnp.bool_:
            raise NoKernelError(f"it joins the bits of {x.dtype}")
        as_held = _as_held(x)
        kept = _keep(as_held, before[0].shape, axes, neutral(as_held.dtype))
        return reduce(kept, axis=tuple(axes)).astype(after.dtype)

    return rule


def _least(dtype: Any) -> Any:
    return -jnp.inf if jnp.issubdtype(dtype, jnp.floating) else np.iinfo(dtype).min


def _greatest(dtype: Any) -> Any:
    return jnp.inf if jnp.issubdtype(dtype, jnp.floating) else np.iinfo(dtype).max


def _argmax(x: jax.Array, *, before: Any, axes: Sequence[int], index_dtype: Any, **_: Any) -> jax.Array:
    x = _as_held(x)
    return jax.lax.argmax(_keep(x, before[0].shape, axes, _least(x.dtype)), axes[0], index_dtype)


def _concatenate(*parts: jax.Array, before: Any, after: Any, dimension: int) -> jax.Array:
    """Of parts with one entry each, as an environment makes an observation of its numbers."""
    held = padded_shape(after.shape)
    index, joined = _along(held, dimension), jnp.broadcast_to(parts[0], held)
    for i, (part, aval) in enumerate(zip(parts, before, strict=True)):
        if aval.shape[dimension] != 1:
            raise NoKernelError(f"it concatenates arrays of {[x.shape for x in before]}")
        joined = joined if i == 0 else jnp.where(index == i, part, joined)
    return joined


def _stack(*parts: jax.Array, before: Any, after: Any, axis: int) -> jax.Array:
    apart = [jax.ShapeDtypeStruct((*x.shape[:axis], 1, *x.shape[axis:]), x.dtype) for x in before]
    wide = [x.reshape(padded_shape(aval.shape)) for x, aval in zip(parts, apart, strict=True)]
    return _concatenate(*wide, before=apart, after=after, dimension=axis)


def _slice(x: jax.Array, *, before: Any, after: Any, start_indices: Any, strides: Any, **_: Any) -> jax.Array:
    """Of one entry along an axis, all, or the first ones if the others may stay as padding."""
    if any(step > 1 and size > 1 for step, size in zip(strides or (), after.shape, strict=False)):
        raise NoKernelError(f"it takes every {max(strides)}th of {before[0].shape}")
    for axis, (start, n, size) in enumerate(zip(start_indices, before[0].shape, after.shape, strict=True)):
        if size == n or (start == 0 and padded(size) == x.shape[axis]):
            continue
        if size != 1:
            raise NoKernelError(f"it takes {after.shape} out of {before[0].shape}")
        here = _along(x.shape, axis) == start
        chosen = jnp.where(here, _as_held(x), 0)
        x = jnp.sum(chosen, axis=axis, keepdims=True).astype(after.dtype)
    return x


def _pad(x: jax.Array, value: Any, *, before: Any, after: Any, padding_config: Any) -> jax.Array:
    """Of one entry along an axis: the gradient of `_slice`."""
    for axis, (n, size, (low, _, _)) in enumerate(zip(before[0].shape, after.shape, padding_config, strict=True)):
        if size == n and low == 0:
            continue
        if n != 1:
            raise NoKernelError(f"it puts {before[0].shape} into {after.shape}")
        held = (*x.shape[:axis], padded(size), *x.shape[axis + 1 :])
        x = jnp.where(_along(held, axis) == low, x, value)
    return x


def _gather(
    table: jax.Array, index: jax.Array, *, before: Any, after: Any, slice_sizes: Any, mode: Any, **_: Any
) -> jax.Array:
    """One entry of a list for each index, as an environment looks up what an action does."""
    (n, *others), indices = before[0].shape, before[1].shape
    if others or len(indices) != 2 or slice_sizes != (1,) or mode == jax.lax.GatherScatterMode.FILL_OR_DROP:
        raise NoKernelError(f"it looks up {indices} in {before[0].shape}")
    held = (index.shape[0], table.shape[0])
    chosen = _along(held, 1) == jnp.clip(index, 0, n - 1)
    found = jnp.sum(jnp.where(chosen, _as_held(table).reshape(1, -1), 0), axis=1)
    return found.reshape(padded_shape(after.shape)).astype(after.dtype)


def _transpose(x: jax.Array, *, permutation: Sequence[int], **_: Any) -> jax.Array:
    return jnp.transpose(x, tuple(map(int, permutation)))


def _dot_general(
    a: jax.Array, b: jax.Array, *, before: Any, dimension_numbers: Any, precision: Any, **_: Any
) -> jax.Array:
    """Of two matrices. With a single row, column or summand it is no work for a matrix unit, and a sum of products."""
    contracted, batch = dimension_numbers
    ranks = [len(x.shape) for x in before]
    if ranks != [2, 2] or any(map(len, batch)) or any(len(x) != 1 for x in contracted):
        raise NoKernelError(f"it multiplies arrays of {[x.shape for x in before]}")
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in before):
        raise NoKernelError(f"it multiplies matrices of {before[0].dtype}")
    (i,), (j,) = contracted
    a, b = _keep(a, before[0].shape, (i,), 0), _keep(b, before[1].shape, (j,), 0)
    if min(*a.shape, *b.shape) > 1:
        numbers = (((i,), (j,)), ((), ()))
        return jax.lax.dot_general(a, b, numbers, precision=precision, preferred_element_type=jnp.float32)
    left, right = a if i == 1 else a.T, b if j == 0 else b.T  # [M, K], [K, N]
    if left.shape[1] == 1:
        return left * right
    if right.shape[1] == 1:
        return jnp.sum(left * right.reshape(1, -1), axis=1, keepdims=True)
    return jnp.sum(left.reshape(-1, 1) * right, axis=0, keepdims=True)


RULES: dict[str, Callable[..., jax.Array]] = {
    "argmax": _argmax,
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "dot_general": _dot_general,
    "gather": _gather,
    "iota": _iota,
    "pad": _pad,
    "reduce_and": _reduction(jnp.min, _greatest, of_bool=True),
    "reduce_max": _reduction(jnp.max, _least),
    "reduce_min": _reduction(jnp.min, _greatest),
    "reduce_or": _reduction(jnp.max, lambda dtype: 0, of_bool=True),
    "reduce_sum": _reduction(jnp.sum, lambda dtype: 0),
    "reshape": _reshape,
    "slice": _slice,
    "squeeze": _reshape,
    "stack": _stack,
    "transpose": _transpose,
}


def held_numbers(tree: Any) -> int:
    """How many numbers the arrays of a tree are held as."""
    return sum(math.prod(padded_shape(x.shape)) for x in jax.tree.leaves(tree))
