"""What moves parameters along gradients: Adam, or RMSprop in its place."""

from typing import Any

import jax
import optax
from flax import struct

OPTIMIZERS = ("adam", "rmsprop")


class Moments(struct.PyTreeNode):
    """The state of an optimiser other than Adam, where Adam's own would be."""

    state: Any


def is_moments(x: Any) -> bool:
    """Whether a part of a state is an optimiser's: Adam's, or another's."""
    return isinstance(x, optax.ScaleByAdamState | Moments)


def with_moments_of(optimizer: str, state: Any) -> Any:
    """An algorithm's state before the first update, Adam's moments in it replaced by those of `optimizer`."""
    if optimizer == "adam":
        return state
    return jax.tree.map(lambda x: Moments(_rmsprop(1e-5).init(x.mu)) if is_moments(x) else x, state, is_leaf=is_moments)


def direction(moments: Any, gradient: Any, eps: jax.Array | float) -> tuple[Any, Any]:
    """What Adam or RMSprop make of a gradient, and their moments after it.

    Adam: m̂ / (√v̂ + ε), with β = 0.9 and 0.999 (Kingma and Ba, 2015). RMSprop: g / (√v + ε) with
    v = 0.99 v + 0.01 g² from 0, as PyTorch has it and with it the A2C of Stable-Baselines3.
    """
    if isinstance(moments, Moments):
        step, state = _rmsprop(eps).update(gradient, moments.state)
        return step, Moments(state)
    return optax.scale_by_adam(eps=eps).update(gradient, moments)


def _rmsprop(eps: jax.Array | float) -> optax.GradientTransformation:
    return optax.scale_by_rms(decay=0.99, eps=eps, initial_scale=0.0, eps_in_sqrt=False)
