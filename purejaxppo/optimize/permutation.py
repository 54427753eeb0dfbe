"""Random permutations without sorting."""

import jax
import jax.numpy as jnp

from purejaxppo.platforms import on_cpu

ROUNDS = 24  # an index that no round moves: once in 2^24


@jax.named_scope("shuffle")
def permutation(key: jax.Array, size: int) -> jax.Array:
    """A random order of 0 … size-1, [size] int32, by the swap-or-not shuffle (Hoang, Morris and Rogaway, 2012).

    In each round a random shift s pairs every x with s - x (mod size), and a random bit of each pair says whether the
    two change places. Each index follows that rule by itself, so all of them are done at once: on a CPU 16 to 200
    times faster than `jax.random.permutation`, which sorts.

    The shuffle's proof asks for independent bits; these are a hash (two rounds of multiply and xor-shift) of the
    pair's larger member under the round's key.
    """
    keys = jax.random.bits(key, (ROUNDS, 2), jnp.uint32)

    def swap_or_not(x: jax.Array, round_key: jax.Array) -> tuple[jax.Array, None]:
        shift = round_key[0] % size
        partner = jnp.where(x <= shift, shift - x, shift + size - x)
        return jnp.where(_bit(jnp.maximum(x, partner) ^ round_key[1]), partner, x), None

    rounds_at_once = 1 if on_cpu() else ROUNDS  # one kernel; a CPU has no gain and compiles longer
    order, _ = jax.lax.scan(swap_or_not, jnp.arange(size, dtype=jnp.uint32), keys, unroll=rounds_at_once)
    return order.astype(jnp.int32)


def _bit(x: jax.Array) -> jax.Array:
    """One well-mixed bit of uint32s, as bool."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x >> 31 == 1
