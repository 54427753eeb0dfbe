"""Fisher-vector products of a policy."""

from collections.abc import Callable
from typing import Any

import jax
from jax.flatten_util import ravel_pytree

from purejaxppo.kernels.samples import mean_in_kernel
from purejaxppo.networks.linear import forward_mode
from purejaxppo.parallel.mesh import mean_over_shards
from purejaxppo.platforms import on_cpu
from purejaxppo.types import Params, Policy


def fisher_vector_product(
    distribution: Callable[[jax.Array], Any], theta: jax.Array, damping: jax.Array | float
) -> Callable[[jax.Array], jax.Array]:
    """v ↦ (F + damping · I) v, with F = 1/N Σ_s J_sᵀ M_s J_s = ∇² mean KL(π_θ ‖ ·) at θ.

    J is the Jacobian of the distribution's parameters in θ and M their own Fisher matrix (Pascanu and Bengio, 2014,
    arXiv:1301.3584; Schulman et al., 2015, arXiv:1502.05477, appendix C.1). This Gauss–Newton form is positive
    semi-definite by construction; the network is linearised once in each direction, and each product costs one pass
    forward, one back.

    Args:
        distribution: θ [P] ↦ a batch of N distributions.
        theta: parameters [P].
        damping: added to the diagonal, ≥ 0.
    """
    if not on_cpu():  # of all seeds together, each array with an entry per sample and unit is a gigabyte
        distribution = jax.checkpoint(distribution, prevent_cse=False, policy=_is_worth_keeping)
    with forward_mode():  # what is fast back is slow forward: see `linear`
        at_theta, push_forward = jax.linearize(distribution, theta)
    _, pull_back = jax.vjp(distribution, theta)
    size = at_theta.entropy().size

    def product(v: jax.Array) -> jax.Array:
        (curvature,) = pull_back(at_theta.fisher(push_forward(v)))
        return mean_over_shards(curvature) / size + damping * v

    return product


def _is_worth_keeping(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether products use a result once more, or make it again: a slope (1 - y)(1 + y) costs less than to read it."""
    return primitive.name not in ("add", "sub", "mul")


def fisher_by_kernel(
    policy: Policy, params: Params, obs: Any, damping: jax.Array | float
) -> Callable[[jax.Array], jax.Array]:
    """`fisher_vector_product` of a policy on observations [N], each product one kernel: no activation leaves the chip.

    Raises:
        NoKernelError: there is no kernel for this policy, or for so many observations.
    """
    theta, unravel = ravel_pytree(params)

    def mean_curvature(both: tuple[Params, Params], obs: Any) -> Params:
        def distribution(params: Params) -> Any:
            return policy(params, obs)

        at_params, tangent = jax.jvp(distribution, both[:1], both[1:])
        (curvature,) = jax.vjp(distribution, both[0])[1](at_params.fisher(tangent))
        return jax.tree.map(lambda x: x / at_params.entropy().size, curvature)

    def product(v: jax.Array) -> jax.Array:
        return ravel_pytree(mean_in_kernel(mean_curvature, (params, unravel(v)), obs))[0] + damping * v

    jax.eval_shape(product, theta)
    return product
