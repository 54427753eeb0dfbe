"""One run on several devices: the axes of the mesh, and what is shared on them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from purejaxppo.parallel.packing import Packing

# Axes of the device mesh. Their names are ours alone, so that a user's `vmap(axis_name="env")` is none of them.
RUN_AXIS = "purejaxppo.run"  # on it runs are split
ENV_AXIS = "purejaxppo.env"  # on it one run's environments are split, and everything else is replicated
NET_AXIS = "purejaxppo.net"  # on it a policy and its critic are improved apart; both do everything else


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


def on_net_axis(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """The results of both: one made after the other, or on `NET_AXIS` each by a device, which hands it over as it is.

    All numbers in them must be real.
    """
    if shards(NET_AXIS) == 1:
        return first(), second()
    first, second = jax.jit(first), jax.jit(second)  # that each is traced once, for its shapes and for its work
    no_first, no_second = (jax.tree.map(jnp.zeros_like, jax.eval_shape(fn)) for fn in (first, second))
    made = jax.lax.cond(jax.lax.axis_index(NET_AXIS) == 0, lambda: (first(), no_second), lambda: (no_first, second()))
    packing = Packing(made, 0)  # for one collective, of bits
    both = packing.unpack(jax.lax.all_gather(packing.pack(made), NET_AXIS))
    return jax.tree.map(lambda x: x[0], both[0]), jax.tree.map(lambda x: x[1], both[1])


def moments(x: jax.Array, axis: int | tuple[int, ...] | None = None) -> tuple[jax.Array, jax.Array]:
    """Mean and population variance, over all devices' samples."""
    mean, variance = jnp.mean(x, axis=axis), jnp.var(x, axis=axis)
    if shards() == 1:
        return mean, variance
    means, variances = jax.lax.all_gather(jnp.stack([mean, variance]), ENV_AXIS, axis=1)
    mean = jnp.mean(means, axis=0, keepdims=True)
    return mean[0], jnp.mean(variances + (means - mean) ** 2, axis=0)
