"""Many runs as one program, and one run on many devices: what `vmap` and `shard_map` must be told."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

RUN_AXIS = "run"  # of the device mesh: on it runs are split
ENV_AXIS = "env"  # of the device mesh: on it one run's environments are split, and everything else is replicated
NET_AXIS = "net"  # of the device mesh: on it a policy and its critic are improved apart; both do everything else


def shards(axis: str = ENV_AXIS) -> int:
    """How many devices `axis` has, of those that the run now traced is on; 1 outside of such a mesh."""
    try:
        return int(jax.lax.axis_size(axis))
    except NameError:
        return 1


def run_shard() -> jax.Array:
    """[] int32: which device's runs these are, of those that runs are split over; 0 outside of such a mesh."""
    try:
        return jax.lax.axis_index(RUN_AXIS)
    except NameError:
        return jnp.zeros((), jnp.int32)


def run_shards() -> int:
    """Over how many devices runs are split; 1 outside of such a mesh."""
    return shards(RUN_AXIS)


def mean_over_shards(tree: Any) -> Any:
    """The mean over those devices: of means over equally many samples, the mean over all.

    To be taken of a gradient, never inside what is differentiated: with `check_vma=False`, the gradient of a `pmean`
    is the local gradient. One collective for the whole tree, because each costs some 50 µs on a CPU.
    """
    if shards() == 1:
        return tree
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.lax.pmean(flat, ENV_AXIS))


def sum_over_shards(tree: Any) -> Any:
    return jax.lax.psum(tree, ENV_AXIS) if shards() > 1 else tree


def key_of_shard(key: jax.Array) -> jax.Array:
    """A key of this device's own, for what it draws for its own environments and samples."""
    return jax.random.fold_in(key, jax.lax.axis_index(ENV_AXIS)) if shards() > 1 else key


def side_by_side(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """The results of both: one made after the other, or on `NET_AXIS` each by a device, which hands it over as it is.

    All numbers in them must be of 4 or 8 bytes, and real.
    """
    if shards(NET_AXIS) == 1:
        return first(), second()
    first, second = jax.jit(first), jax.jit(second)  # that each is traced once, for its shapes and for its work
    no_first, no_second = (jax.tree.map(jnp.zeros_like, jax.eval_shape(fn)) for fn in (first, second))
    made = jax.lax.cond(jax.lax.axis_index(NET_AXIS) == 0, lambda: (first(), no_second), lambda: (no_first, second()))
    # in one collective, all bits taken for those of float32: whole numbers stay exact, and floats need no kernel
    words, unravel = ravel_pytree(jax.tree.map(lambda x: jax.lax.bitcast_convert_type(x, jnp.float32), made))
    from_first, from_second = (unravel(x) for x in jax.lax.all_gather(words, NET_AXIS))
    both = from_first[0], from_second[1]
    return jax.tree.map(lambda x, like: jax.lax.bitcast_convert_type(x, like.dtype), both, made)


def moments(x: jax.Array, axis: int | tuple[int, ...] | None = None) -> tuple[jax.Array, jax.Array]:
    """Mean and population variance, over all devices' samples."""
    mean, variance = jnp.mean(x, axis=axis), jnp.var(x, axis=axis)
    if shards() == 1:
        return mean, variance
    means, variances = jax.lax.all_gather(jnp.stack([mean, variance]), ENV_AXIS, axis=1)
    mean = jnp.mean(means, axis=0, keepdims=True)
    return mean[0], jnp.mean(variances + (means - mean) ** 2, axis=0)


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


@jax.custom_batching.custom_vmap
def either(first: jax.Array, a: Any, b: Any) -> Any:
    """Of two trees with equal shapes `a` if `first` [], else `b`; under `vmap` by a select of each array.

    For a run alone it is a branch, as such selects are a tenth of all that is compiled for one.
    """
    return jax.lax.cond(first, lambda a, b: a, lambda a, b: b, a, b)


@either.def_vmap
def _either_batched(axis_size: int, in_batched: list[Any], first: jax.Array, a: Any, b: Any) -> Any:
    def choose(first: jax.Array, a: Any, b: Any) -> Any:
        return jax.tree.map(lambda x, y: jnp.where(first, x, y), a, b)

    axes = [jax.tree.map(lambda batched: 0 if batched else None, x) for x in in_batched]
    return jax.vmap(choose, in_axes=axes)(first, a, b), jax.tree.map(lambda _: True, a)


def run_by_run(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, which under `vmap` works on one run after the other where the device is a CPU.

    For work that goes over a large batch many times: one run's part of it stays in the core's cache, which that of all
    runs would not. `fn` must take all that is traced as arguments.
    """
    return jax.custom_batching.sequential_vmap(fn) if jax.default_backend() == "cpu" else fn


@jax.custom_batching.custom_vmap
def as_argument(tree: Any) -> Any:
    """The same values, as if they had been passed into the program: no constants, and under `vmap` one of each per run.

    An initial state holds zeros that XLA would fold into the updates and that `vmap` would leave unbatched. With this,
    an update compiles alike, and has the same bits, whether its state was made in the same program or outside it.
    """
    return jax.lax.optimization_barrier(tree)


@as_argument.def_vmap
def _as_argument_batched(axis_size: int, in_batched: list[Any], tree: Any) -> tuple[Any, Any]:
    def spread(batched: bool, x: jax.Array) -> jax.Array:
        return x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))

    tree = jax.tree.map(spread, in_batched[0], tree)
    return as_argument(tree), jax.tree.map(lambda _: True, tree)
