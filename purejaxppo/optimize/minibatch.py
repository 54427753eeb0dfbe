"""Adam over shuffled minibatches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from purejaxppo.optimize.permutation import permutation
from purejaxppo.parallel.mesh import key_of_shard, mean_over_shards
from purejaxppo.types import Metrics, Params

Loss = Callable[[Params, Any], tuple[jax.Array, Metrics]]  # (params, minibatch) -> (scalar, metrics)


class MinibatchAdam(struct.PyTreeNode):
    """Adam (Kingma and Ba, 2015; ε = 1e-5 as in OpenAI Baselines) on gradients clipped by their global norm."""

    learning_rate: jax.Array | float
    max_grad_norm: jax.Array | float
    num_epochs: int = struct.field(pytree_node=False)
    num_minibatches: int = struct.field(pytree_node=False)
    extra_loss: Loss | None = struct.field(pytree_node=False, default=None)  # added to each loss that is minimised

    @staticmethod
    def init(params: Params) -> Any:
        return optax.scale_by_adam(eps=1e-5).init(params)

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
        `stop(metrics)` is true of a minibatch, neither it nor any later one moves the parameters.
        Metrics are means over the last epoch, and `grad_norm`, the norm before clipping.
        """
        size = jax.tree.leaves(batch)[0].shape[0]
        adam = optax.scale_by_adam(eps=1e-5)

        objective = loss if self.extra_loss is None else _sum_of(loss, self.extra_loss)

        def step(carry: Any, minibatch: Any) -> tuple[Any, Metrics]:
            params, moments, stopped = carry
            (_, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(params, minibatch)
            metrics, gradient = mean_over_shards((metrics, gradient))
            if stop is not None:
                stopped = stopped | stop(metrics)
            norm = jnp.linalg.norm(ravel_pytree(gradient)[0])  # as one array: a tenth fewer kernels than one by one
            clipped = optax.tree.scale(jnp.minimum(1.0, self.max_grad_norm / norm), gradient)
            direction, new_moments = adam.update(clipped, moments)
            moved = jax.tree.map(lambda p, d: p - self.learning_rate * d, params, direction)
            if stop is not None:
                moved, new_moments = jax.tree.map(
                    lambda new, old: jnp.where(stopped, old, new), (moved, new_moments), (params, moments)
                )
            return (moved, new_moments, stopped), metrics | {"grad_norm": norm}

        def epoch(carry: Any, key: jax.Array) -> tuple[Any, Metrics]:
            minibatches = jax.tree.map(lambda x: x[None], batch)
            if self.num_minibatches > 1:
                order = permutation(key, size).reshape(self.num_minibatches, -1)
                minibatches = jax.tree.map(lambda x: x[order], batch)
            if prepare is not None:
                minibatches = jax.vmap(prepare)(minibatches)
            return jax.lax.scan(step, carry, minibatches)

        keys = jax.random.split(key_of_shard(key), self.num_epochs)
        (params, moments, _), metrics = jax.lax.scan(epoch, (params, moments, jnp.zeros((), bool)), keys)
        return params, moments, jax.tree.map(lambda x: jnp.mean(x[-1]), metrics)


def _sum_of(first: Loss, second: Loss) -> Loss:
    def loss(params: Params, minibatch: Any) -> tuple[jax.Array, Metrics]:
        (value, metrics), (more, others) = first(params, minibatch), second(params, minibatch)
        return value + more, metrics | others

    return loss
