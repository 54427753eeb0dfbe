"""Whole training states on disk, through orbax."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp


def _as_data(state: Any) -> Any:
    """PRNG keys as the integers that they are; the implementation's name stands in config.json."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def save(directory: Path, state: Any) -> None:
    """Write a state of all seeds; when this returns, it is on disk."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.absolute(), _as_data(state))


def restore(directory: Path, like: Any) -> Any:
    """Read a state back. `like` gives its structure: a state or its `jax.eval_shape`, of as many seeds."""
    import orbax.checkpoint as ocp

    shapes = jax.eval_shape(_as_data, like)
    with ocp.StandardCheckpointer() as checkpointer:
        data = checkpointer.restore(directory.absolute(), shapes)
    return jax.tree.map(
        lambda x, y: jax.random.wrap_key_data(x, impl=jax.random.key_impl(y)) if _is_key(y) else x, data, like
    )
