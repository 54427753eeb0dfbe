"""PRNG keys: what counts as one, and tags that keep keys for different purposes apart.

With JAX's partitionable Threefry, `fold_in(key, i)` is `split(key, n)[i]` for every n > i. A small number folded in
would therefore repeat a key that a split has given away. Every other purpose folds in a tag of its own, larger than
any number of keys that is split off.
"""

from typing import Any

import jax
import jax.numpy as jnp

from purejaxppo.errors import UsageError

EVALUATION = 0x6576616C  # of the episodes that measure a policy
FISHER = 0x46495348  # of the samples that the Fisher matrix is estimated from
RENDERING = 0x72656E64  # of the episodes that are filmed
EXPORT = 0x65787074  # of the episodes that an exported file is checked on
ACTIONS = 0x61637473  # of sampled actions that do not follow from the key of their step
RESUMED = 0x72657375  # of host environments' episodes after a resume


def is_key(x: Any) -> bool:
    """Whether the elements of an array, or of its shape and type, are PRNG keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def default_implementation() -> str:
    """Of the keys that `jax.random.key` makes here."""
    return str(jax.random.key_impl(jax.random.key(0)))


def stay_apart(tree: Any) -> bool:
    """Whether a tree's keys, or the usual ones if it has none, draw under `vmap` what each draws alone.

    RBG's do not: all numbers come from the first key.
    """
    implementations = {str(jax.random.key_impl(x)) for x in jax.tree.leaves(tree) if is_key(x)}
    return (implementations or {default_implementation()}) == {"threefry2x32"}


def as_data(x: Any) -> Any:
    """The integers that PRNG keys are; other arrays as they are."""
    return jax.random.key_data(x) if is_key(x) else x


def as_key(key: Any) -> jax.Array:
    """One key []; the words of `PRNGKey` are accepted too. Raises: UsageError: it is none, or several."""
    if isinstance(key, jax.Array) and key.dtype == jnp.uint32 and key.ndim == 1:
        key = jax.random.wrap_key_data(key)
    if not isinstance(key, jax.Array) or not is_key(key) or key.ndim:
        given = f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else repr(key)
        raise UsageError(f"key = {given:.80} is not one PRNG key; pass jax.random.key(0), or vmap over several.")
    return key
