"""Recurrent cells: hidden states that begin anew with each episode."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

CELLS = {"gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}
RECURRENT = ("none", *CELLS)


def is_recurrent(kind: str, network: Any) -> bool:
    """Whether a network has a hidden state: the user's own if it is a flax cell, ours if `kind` names one."""
    return kind != "none" if network is None else isinstance(network, nn.RNNCellBase)


def initial_carry(cell: nn.RNNCellBase, x: Any) -> Any:
    """The hidden state [..., H] before the first of inputs x [..., F]."""
    return cell.initialize_carry(jax.random.key(0), jax.tree.map(jnp.shape, x))


def restart(start: jax.Array, initial: Any, hidden: Any) -> Any:
    """`initial` where `start` [...], an episode's first observation comes next; `hidden` [..., H] elsewhere."""

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(start.reshape(start.shape + (1,) * (b.ndim - start.ndim)), a, b)

    return jax.tree.map(choose, initial, hidden)


def unroll(cell: nn.RNNCellBase, x: Any, hidden: Any, start: jax.Array | None) -> tuple[Any, Any]:
    """A cell's output and its hidden state after one step on x [..., F]; or, given `start`, after each of T steps.

    Then x is [T, ..., F], `start` [T, ...] says which of them begin an episode, and both results are [T, ...].
    """

    def step(cell: nn.RNNCellBase, hidden: Any, inputs: tuple[Any, jax.Array]) -> tuple[Any, tuple[Any, Any]]:
        x, start = inputs
        hidden, y = cell(restart(start, initial_carry(cell, x), hidden), x)
        return hidden, (y, hidden)

    if start is None:
        hidden, y = cell(hidden, x)
        return y, hidden
    _, results = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})(cell, hidden, (x, start))
    return results


def swap(tree: Any) -> Any:
    """[T, B, ...] ↔ [B, T, ...]."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1), tree)
