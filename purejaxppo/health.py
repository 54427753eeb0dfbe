"""Seeds whose numbers turn non-finite: found after each update, and frozen before it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from purejaxppo.parallel.mesh import sum_over_shards
from purejaxppo.types import Batch, Failure, Metrics, TrainState, Transition

# Failure.cause counts them from 1
CAUSES = ("observation", "reward", "advantage", "loss", "gradient", "parameters", "observation statistics")


def finite(tree: Any) -> jax.Array:
    """True if every floating-point number of the tree is finite.

    Arrays of one shape, as a parameter and its moments, are looked at together: a kernel or two for all of them.
    """
    alike: dict[tuple[int, ...], list[jax.Array]] = {}
    for x in jax.tree.leaves(tree):
        if jnp.issubdtype(x.dtype, jnp.floating):
            alike.setdefault(x.shape, []).append(jnp.isfinite(x))
    # an observation may hold none
    return jnp.all(jnp.asarray([jnp.all(functools.reduce(jnp.logical_and, group)) for group in alike.values()], bool))


def cause_of_failure(
    transitions: Transition,
    batch: Batch | None,
    metrics: Metrics,
    state: TrainState,
    overflowed: jax.Array | None = None,
) -> jax.Array:
    """The first of `CAUSES`, counted from 1, that is not finite in the update that led to `state`; 0 if all are.

    What has failed once stays so. `overflowed`: observations are finite, but their variance is not. Methods without a
    critic have no batch, and fewer metrics.
    """
    parts = (
        (transitions.obs, transitions.next_obs),
        transitions.reward,
        batch and (batch.advantage, batch.value, batch.value_target),
        (metrics["policy_loss"], metrics.get("value_loss")),
        (metrics.get("grad_norm"), metrics.get("value_grad_norm")),
        (state.policy, state.critic, state.algorithm, state.critic_optimizer),
    )
    bad = [~finite(part) for part in parts] + ([] if overflowed is None else [overflowed])
    failed = sum_over_shards(jnp.stack(bad).astype(jnp.int32)) > 0
    cause = jnp.where(jnp.any(failed), jnp.argmax(failed) + 1, 0).astype(jnp.int32)
    return jnp.where(state.failure.cause > 0, state.failure.cause, cause)


def freeze(old: TrainState, new: TrainState, metrics: Metrics, cause: jax.Array) -> tuple[TrainState, Metrics]:
    """`new` and its metrics if `cause` is 0; else `old`, for good, with the failure noted and metrics of NaN.

    Which is the state's own update counter and key, too. `alive` is 1 in updates that were made, 0 in others.
    """
    alive = cause == 0
    failed = Failure(update=old.update + 1, cause=cause)
    # a branch for a run alone, and under `vmap` a select of each array
    state: TrainState = jax.lax.cond(alive, lambda a, b: a, lambda a, b: b, new, old.replace(failure=failed))
    metrics = {name: jnp.where(alive, x, jnp.nan) for name, x in metrics.items()}
    return state, metrics | {"alive": alive.astype(jnp.float32)}
