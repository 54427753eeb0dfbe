"""What a natural-gradient step needs to know about the objective near the present policy."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.flatten_util import ravel_pytree

from purejaxppo.kernels.choice import kernel_or_xla
from purejaxppo.keys import FISHER
from purejaxppo.optimize.fisher import fisher_by_kernel, fisher_vector_product
from purejaxppo.optimize.permutation import permutation
from purejaxppo.optimize.surrogate import surrogate_and_kl
from purejaxppo.parallel.mesh import key_of_shard, mean_over_shards
from purejaxppo.types import Batch, Params, Policy


class LocalModel(NamedTuple):
    """The surrogate to first order, the KL to second, and both exactly; all in the flat parameters θ [P]."""

    theta: jax.Array  # [P]
    unravel: Callable[[jax.Array], Params]
    gradient: jax.Array  # [P] of the surrogate at θ
    product: Callable[[jax.Array], jax.Array]  # v [P] ↦ (F + damping · I) v
    evaluate: Callable[[jax.Array], tuple[jax.Array, jax.Array]]  # θ' ↦ surrogate gain, mean KL


def local_model(
    key: jax.Array,
    policy: Policy,
    params: Params,
    batch: Batch,
    advantage: jax.Array,
    damping: jax.Array | float,
    subsample: int,
    kernels: str = "xla",
) -> LocalModel:
    """Linearise at `params`. F is estimated from one sample (or sequence) in `subsample`, drawn without replacement."""
    theta, unravel = ravel_pytree(params)
    evaluate = surrogate_and_kl(policy, unravel, batch, advantage)
    gradient = mean_over_shards(jax.grad(lambda theta: evaluate(theta)[0])(theta))
    obs, size = batch.obs, len(batch.log_prob)
    if subsample > 1:
        own_key = jax.random.fold_in(key_of_shard(key), FISHER)
        chosen = permutation(own_key, size)[: max(size // subsample, 1)]
        obs = jax.tree.map(lambda x: x[chosen], obs)
    product = kernel_or_xla(
        kernels,
        "a Fisher product",
        lambda: fisher_by_kernel(policy, params, obs, damping),
        lambda: fisher_vector_product(lambda theta: policy(unravel(theta), obs), theta, damping),
        pays_if_exact=True,  # by XLA, activations of the whole batch go through memory in each product
    )
    return LocalModel(theta, unravel, gradient, product, lambda theta: mean_over_shards(evaluate(theta)))
