"""Adam over shuffled minibatches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from purejaxppo.optimize.permutation import permutation
from purejaxppo.parallel.mesh import key_of_shard, mean_over_shards
from purejaxppo.parallel.packing import packed_scan
from purejaxppo.target import on_cpu
from purejaxppo.types import Metrics, Params

Loss = Callable[[Params, Any], tuple[jax.Array, Metrics]]  # (params, minibatch) -> (scalar, metrics)


class Pair(NamedTuple):
    """The moments of two fits in one loop."""

    first: Any
    second: Any


def pair_moments(state: Any, moments: Any) -> Any:
    """An algorithm's state, Adam's moments in it paired with others."""
    return jax.tree.map(lambda x: Pair(x, moments) if _is_moments(x) else x, state, is_leaf=_is_moments)


def split_moments(state: Any) -> tuple[Any, Any]:
    """What `pair_moments` was given."""
    (moments,) = (x.second for x in jax.tree.leaves(state, is_leaf=_is_pair) if _is_pair(x))
    return jax.tree.map(lambda x: x.first if _is_pair(x) else x, state, is_leaf=_is_pair), moments


def _is_moments(x: Any) -> bool:
    return isinstance(x, optax.ScaleByAdamState)


def _is_pair(x: Any) -> bool:
    return isinstance(x, Pair)


class MinibatchAdam(struct.PyTreeNode):
    """Adam (Kingma and Ba, 2015; ε = 1e-5 as in OpenAI Baselines) on gradients clipped by their global norm."""

    learning_rate: jax.Array | float
    max_grad_norm: jax.Array | float
    num_epochs: int = struct.field(pytree_node=False)
    num_minibatches: int = struct.field(pytree_node=False)
    extra_loss: Loss | None = struct.field(pytree_node=False, default=None)  # added to each loss that is minimised
    # two fits in one loop: parameters are a pair, and moments a `Pair`; the loss depends on the first, `extra_loss` on
    # the second, and each is clipped and moved by itself
    apart: bool = struct.field(pytree_node=False, default=False)

    @staticmethod
    def init(params: Params) -> Any:
        return optax.scale_by_adam(eps=1e-5).init(params)

    @jax.named_scope("minibatch")
    def minimize(
        self,
        key: jax.Array,
        loss: Loss,
        params: Params,
        moments: Any,
        batch: Any,
        stop: Callable[[Metrics], jax.Array] | None = None,
        prepare: Callable[[Any], Any] | None = None,
    ) -> tuple[Params, Any, Metrics]:
        """`num_epochs` passes over `batch` [N, ...], each in `num_minibatches` shuffled parts.

        `prepare(minibatch)` is what the loss is given of one, made of all minibatches of an epoch at once. Once
        `stop(metrics)` is true of a minibatch, neither it nor any later one moves the parameters (the first of a pair).
        Metrics are means over the last epoch, and `grad_norm`, the norm before clipping; of a pair `extra_grad_norm` is
        the second's.
        """
        size = jax.tree.leaves(batch)[0].shape[0]
        objective = loss if self.extra_loss is None else _sum_of(loss, self.extra_loss)
        scan = jax.lax.scan if on_cpu() else packed_scan

        def step(carry: Any, minibatch: Any) -> tuple[Any, Metrics]:
            params, moments, stopped = carry
            (_, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(params, minibatch)
            metrics, gradient = mean_over_shards((metrics, gradient))
            if stop is not None:
                stopped = stopped | stop(metrics)
            halt = None if stop is None else stopped
            if not self.apart:
                params, moments, norm = self._move(params, moments, gradient, halt)
                return (params, moments, stopped), metrics | {"grad_norm": norm}
            moved = [self._move(*part) for part in zip(params, moments, gradient, (halt, None), strict=True)]
            params, moments, norms = zip(*moved, strict=True)
            return (params, Pair(*moments), stopped), metrics | {"grad_norm": norms[0], "extra_grad_norm": norms[1]}

        def epoch(carry: Any, order: jax.Array) -> tuple[Any, Metrics]:
            minibatches = jax.tree.map(lambda x: x[None], batch)
            if self.num_minibatches > 1:
                order = permutation(order, size) if on_cpu() else order
                order = order.reshape(self.num_minibatches, -1)
                minibatches = jax.tree.map(lambda x: x[order], batch)
            if prepare is not None:
                minibatches = jax.vmap(prepare)(minibatches)
            return scan(step, carry, minibatches)

        orders = jax.random.split(key_of_shard(key), self.num_epochs)  # a CPU does well to make each where it is used
        if self.num_minibatches > 1 and not on_cpu():
            orders = jax.vmap(lambda key: permutation(key, size))(orders)
        (params, moments, _), metrics = scan(epoch, (params, moments, jnp.zeros((), bool)), orders)
        return params, moments, jax.tree.map(lambda x: jnp.mean(x[-1]), metrics)

    def _move(self, params: Params, moments: Any, gradient: Params, halt: jax.Array | None) -> tuple[Params, Any, Any]:
        """Parameters and moments after one step, unless it is to `halt`; and the gradient's norm before clipping."""
        norm = jnp.linalg.norm(ravel_pytree(gradient)[0])  # as one array: a tenth fewer kernels than one by one
        clipped = optax.tree.scale(jnp.minimum(1.0, self.max_grad_norm / norm), gradient)
        direction, new_moments = optax.scale_by_adam(eps=1e-5).update(clipped, moments)
        moved = jax.tree.map(lambda p, d: p - self.learning_rate * d, params, direction)
        if halt is not None:
            moved, new_moments = jax.tree.map(
                lambda new, old: jnp.where(halt, old, new), (moved, new_moments), (params, moments)
            )
        return moved, new_moments, norm


def _sum_of(first: Loss, second: Loss) -> Loss:
    def loss(params: Params, minibatch: Any) -> tuple[jax.Array, Metrics]:
        (value, metrics), (more, others) = first(params, minibatch), second(params, minibatch)
        return value + more, metrics | others

    return loss
