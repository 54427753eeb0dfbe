"""What moves parameters along gradients: Adam, or another optimiser in its place."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from purejaxppo.advantages import root
from purejaxppo.errors import UsageError, reason

OPTIMIZERS = ("adam", "rmsprop")


class Moments(struct.PyTreeNode):
    """The state of an optimiser other than Adam, where Adam's own would be."""

    state: Any


def is_moments(x: Any) -> bool:
    """Whether a part of a state is an optimiser's: Adam's, or another's."""
    return isinstance(x, optax.ScaleByAdamState | Moments)


def with_moments_of(optimizer: Any, state: Any, params: Any) -> Any:
    """An algorithm's state before the first update, Adam's moments of `params` in it replaced by those of `optimizer`.

    Args:
        optimizer: one of `OPTIMIZERS`, or a function of the learning rate that makes one of optax's.
    """
    if optimizer == "adam":
        return state
    made = optax.scale_by_rms(initial_scale=0.0) if optimizer == "rmsprop" else optimizer(1.0)
    return jax.tree.map(lambda x: Moments(made.init(params)) if is_moments(x) else x, state, is_leaf=is_moments)


def check_optimizer(optimizer: Any, eps: Any, weight_decay: Any) -> None:
    """Refuse what makes no optimiser, or settings that it would not look at. Raises: UsageError."""
    try:
        made = optimizer(1.0)
    except Exception as error:
        raise UsageError(
            f"optimizer = {optimizer!r:.80} must be one of {', '.join(OPTIMIZERS)}, or a function of the learning rate "
            f"that makes one of optax's, such as optax.lion ({reason(error):.200})."
        ) from error
    if not hasattr(made, "init") or not hasattr(made, "update"):
        raise UsageError(f"optimizer = {optimizer!r:.80} makes {made!r:.80}, which has no init and update.")
    kept = jax.tree_util.tree_leaves_with_path(jax.eval_shape(made.init, jnp.zeros(1)))
    if any("hyperparams" in (path := jax.tree_util.keystr(place)) and "learning_rate" in path for place, _ in kept):
        raise UsageError(
            f"optimizer = {optimizer!r:.80} keeps a learning rate of its own, which ours would not reach; pass "
            "it without optax.inject_hyperparams."
        )
    for name, value, usual in (("optimizer_eps", eps, 1e-5), ("weight_decay", weight_decay, 0.0)):
        if not isinstance(value, jax.Array) and value != usual:
            raise UsageError(f"{name} = {value} would do nothing with an optimizer of your own; set it there.")


def direction(moments: Any, gradient: Any, eps: jax.Array | float) -> tuple[Any, Any]:
    """What Adam or RMSprop make of a gradient, and their moments after it.

    Adam: m̂ / (√v̂ + ε), with β = 0.9 and 0.999 (Kingma and Ba, 2015). RMSprop: g / (√v + ε) with
    v = 0.99 v + 0.01 g² from 0, as PyTorch has it and with it the A2C of Stable-Baselines3.
    """
    if isinstance(moments, Moments):
        second = optax.tree.update_moment(gradient, moments.state.nu, 0.99, 2)
        step = jax.tree.map(lambda v, g: 1.0 / (root(v) + eps) * g, second, gradient)
        return step, Moments(moments.state._replace(nu=second))
    count = optax.safe_increment(moments.count)
    first, second = (
        optax.tree.update_moment(gradient, moment, decay, order)
        for moment, decay, order in ((moments.mu, 0.9, 1), (moments.nu, 0.999, 2))
    )
    unbiased = (optax.tree.bias_correction(x, decay, count) for x, decay in ((first, 0.9), (second, 0.999)))
    step = jax.tree.map(lambda m, v: m / (root(v) + eps), *unbiased)
    return step, moments._replace(count=count, mu=first, nu=second)
