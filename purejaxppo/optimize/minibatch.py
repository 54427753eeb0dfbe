"""Adam, or RMSprop, over shuffled minibatches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from purejaxppo.advantages import root
from purejaxppo.fields import limitless
from purejaxppo.kernels.choice import kernel_or_xla
from purejaxppo.kernels.epochs import minimize_in_kernel
from purejaxppo.kernels.padding import NoKernelError
from purejaxppo.kernels.samples import in_parts
from purejaxppo.optimize.optimizers import Moments, direction, is_moments
from purejaxppo.optimize.permutation import permutation
from purejaxppo.parallel.mesh import key_of_shard, mean_over_shards
from purejaxppo.parallel.packing import packed_scan
from purejaxppo.platforms import on_cpu
from purejaxppo.types import Metrics, Params

Loss = Callable[[Params, Any], tuple[jax.Array, Metrics]]  # (params, minibatch) -> (scalar, metrics)


class Pair(NamedTuple):
    """The moments of two fits in one loop."""

    first: Any
    second: Any


def pair_moments(state: Any, moments: Any) -> Any:
    """An algorithm's state, Adam's moments in it paired with others."""
    return jax.tree.map(lambda x: Pair(x, moments) if is_moments(x) else x, state, is_leaf=is_moments)


def split_moments(state: Any) -> tuple[Any, Any]:
    """What `pair_moments` was given."""
    (moments,) = (x.second for x in jax.tree.leaves(state, is_leaf=_is_pair) if _is_pair(x))
    return jax.tree.map(lambda x: x.first if _is_pair(x) else x, state, is_leaf=_is_pair), moments


def _is_pair(x: Any) -> bool:
    return isinstance(x, Pair)


class MinibatchAdam(struct.PyTreeNode):
    """Adam (Kingma and Ba, 2015; ε = 1e-5 as in OpenAI Baselines) on gradients clipped by their global norm.

    Or another optimiser, if the moments are another's: see `optimizers.direction`. `weight_decay` λ is decoupled
    (Loshchilov and Hutter, 2019, arXiv:1711.05101): a step of size α is α (direction + λ parameters).
    """

    learning_rate: jax.Array | float
    max_grad_norm: jax.Array | float
    num_epochs: int = struct.field(pytree_node=False)
    num_minibatches: int = struct.field(pytree_node=False)
    kernels: str = struct.field(pytree_node=False, default="xla")
    eps: jax.Array | float = 1e-5
    weight_decay: jax.Array | float = 0.0
    own: Any = struct.field(
        pytree_node=False, default=None
    )  # learning rate ↦ the user's own optimiser, of optax's kind
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
        by_sample: bool = False,
    ) -> tuple[Params, Any, Metrics]:
        """`num_epochs` passes over `batch` [N, ...], each in `num_minibatches` shuffled parts.

        `prepare(minibatch)` is what the loss is given of one, made of all minibatches of an epoch at once. Once
        `stop(metrics)` is true of a minibatch, neither it nor any later one moves the parameters (the first of a pair).
        Metrics are means over the last epoch, and `grad_norm`, the norm before clipping; of a pair `extra_grad_norm` is
        the second's.

        `by_sample`: loss and metrics are means of terms of one sample each, made of nothing but the minibatch's rows.
        A kernel averages such means over parts of a minibatch; any other loss it takes in one part, or leaves to XLA.
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
                norm = _norm_as_one(gradient)
                params, moments = self._move(params, moments, gradient, norm, halt)
                return (params, moments, stopped), metrics | {"grad_norm": norm}
            norms = [_norm_as_one(part) for part in gradient]
            moved = [self._move(*part) for part in zip(params, moments, gradient, norms, (halt, None), strict=True)]
            params, moments = zip(*moved, strict=True)
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

        keys = jax.random.split(key_of_shard(key), self.num_epochs)  # a CPU does well to make orders where it uses them

        def by_xla() -> tuple[Params, Any, Metrics]:
            orders = keys
            if self.num_minibatches > 1 and not on_cpu():
                orders = jax.vmap(lambda key: permutation(key, size))(keys)
            (moved, new_moments, _), metrics = scan(epoch, (params, moments, jnp.zeros((), bool)), orders)
            return moved, new_moments, jax.tree.map(lambda x: jnp.mean(x[-1]), metrics)

        def by_kernel() -> tuple[Params, Any, Metrics]:
            if self.own is not None:
                raise NoKernelError("the optimiser is one of your own")
            orders = jnp.broadcast_to(jnp.arange(size), (self.num_epochs, size))
            if self.num_minibatches > 1:
                orders = jax.vmap(lambda key: permutation(key, size))(keys)
            orders = orders.reshape(self.num_epochs, self.num_minibatches, -1)
            if not by_sample and in_parts(orders.shape[-1])[0] > 1:
                raise NoKernelError(f"the loss of {orders.shape[-1]} samples is not said to be a mean `by_sample`")
            return self._by_kernel(loss, params, moments, batch, orders, stop, prepare)

        return kernel_or_xla(self.kernels, "Adam's minibatches", by_kernel, by_xla)

    def _by_kernel(
        self, loss: Loss, params: Params, moments: Any, batch: Any, orders: jax.Array, stop: Any, prepare: Any
    ) -> tuple[Params, Any, Metrics]:
        """What `minimize` returns, by a kernel; two fits by one each, as both together would not stay on the chip."""

        def fit(objective: Loss, params: Params, moments: Any, stop: Any) -> tuple[Params, Any, Metrics]:
            def move(carry: Any, metrics: Metrics, gradient: Params) -> tuple[Any, Metrics]:
                params, moments, stopped = carry
                if stop is not None:
                    stopped = stopped | stop(metrics)
                norm = optax.tree.norm(gradient)
                params, moments = self._move(params, moments, gradient, norm, None if stop is None else stopped)
                return (params, moments, stopped), metrics | {"grad_norm": norm}

            start = (params, moments, jnp.zeros((), bool))
            (params, moments, _), metrics = minimize_in_kernel(objective, move, start, batch, orders, prepare)
            return params, moments, metrics

        extra = self.extra_loss
        if extra is None or not self.apart:
            return fit(loss if extra is None else _sum_of(loss, extra), params, moments, stop)
        policy, policy_moments, metrics = fit(lambda p, x: loss((p, params[1]), x), params[0], moments.first, stop)
        critic, critic_moments, others = fit(lambda p, x: extra((params[0], p), x), params[1], moments.second, None)
        metrics = others | metrics | {"extra_grad_norm": others["grad_norm"]}
        return (policy, critic), Pair(policy_moments, critic_moments), metrics

    def _move(
        self, params: Params, moments: Any, gradient: Params, norm: jax.Array, halt: jax.Array | None
    ) -> tuple[Params, Any]:
        """Parameters and moments after one step along a gradient of that norm, unless it is to `halt`."""
        clipped = gradient
        if not limitless(self.max_grad_norm):
            long = norm > self.max_grad_norm  # where it is not, nothing of the quotient is in a derivative either
            shorter = jnp.where(long, self.max_grad_norm, 1.0) / jnp.where(long, norm, 1.0)
            clipped = optax.tree.scale(shorter, gradient)
        if self.own is not None:
            step, state = self.own(self.learning_rate).update(clipped, moments.state, params)
            moved, new_moments = optax.apply_updates(params, step), Moments(state)
        else:
            step, new_moments = direction(moments, clipped, self.eps)
            if isinstance(self.weight_decay, jax.Array) or self.weight_decay:
                step = jax.tree.map(lambda d, p: d + self.weight_decay * p, step, params)
            moved = jax.tree.map(lambda p, d: p - self.learning_rate * d, params, step)
        if halt is not None:
            moved, new_moments = jax.tree.map(
                lambda new, old: jnp.where(halt, old, new), (moved, new_moments), (params, moments)
            )
        return moved, new_moments


def _norm_as_one(gradient: Params) -> jax.Array:
    """Its norm, as that of one array: a tenth fewer kernels of XLA's than one by one."""
    return root(jnp.sum(jnp.square(ravel_pytree(gradient)[0])))


def _sum_of(first: Loss, second: Loss) -> Loss:
    def loss(params: Params, minibatch: Any) -> tuple[jax.Array, Metrics]:
        (value, metrics), (more, others) = first(params, minibatch), second(params, minibatch)
        return value + more, metrics | others

    return loss
