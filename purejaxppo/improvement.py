"""How an update moves policy and critic: by two losses, one after the other or in one loop, or by one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from purejaxppo.agent import Agent
from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.optimize.minibatch import MinibatchAdam, pair_moments, split_moments
from purejaxppo.parallel.mesh import NET_AXIS, on_net_axis, shards
from purejaxppo.parallel.vmapping import in_lots
from purejaxppo.platforms import on_cpu
from purejaxppo.types import Batch, Metrics, Params, TrainState, traits_of

LOT_SAMPLES = 2**21  # that an accelerator improves on at once, where a method keeps activations of all of them


def improvement(config: Config) -> Callable[..., tuple[TrainState, Metrics]]:
    """How policy and critic are moved: by one loss, or by two of their own; these on an accelerator in one loop."""
    if config.is_joint:
        return improve_jointly
    together = traits_of(config.algo).by_minibatches and not on_cpu() and shards(NET_AXIS) == 1
    return improve_side_by_side if together else improve_apart


def improve_apart(
    agent: Agent, state: TrainState, adam: MinibatchAdam, key: jax.Array, batch: Batch
) -> tuple[TrainState, Metrics]:
    """The policy moved by the algorithm; the critic fitted by Adam, on the policy's minibatches if it has any."""
    (policy, algorithm, metrics), (critic, moments, fit) = on_net_axis(
        update_rule(agent, key, state.policy, state.algorithm, batch, adam),
        partial(adam.minimize, key, value_loss(agent), state.critic, state.critic_optimizer, batch, by_sample=True),
    )
    metrics |= {"value_loss": fit["value_loss"], "value_grad_norm": fit["grad_norm"]}
    return state.replace(policy=policy, algorithm=algorithm, critic=critic, critic_optimizer=moments), metrics


def update_rule(agent: Agent, key: jax.Array, *arguments: Any) -> Callable[[], Any]:
    """The algorithm's own update, of (policy, state, batch, optimizer), yet to be called."""
    algo, acts = agent.config.algo, agent.policy.apply
    if not traits_of(algo).run_by_run:
        return partial(algo.update, key, acts, *arguments)

    def update(algo: Any, key: jax.Array, *arguments: Any) -> Any:
        return algo.update(key, acts, *arguments)

    samples = agent.config.num_envs // shards() * agent.config.num_steps
    return partial(in_lots(update, 1 if on_cpu() else max(LOT_SAMPLES // samples, 1)), algo, key, *arguments)


def improve_side_by_side(
    agent: Agent, state: TrainState, adam: MinibatchAdam, key: jax.Array, batch: Batch
) -> tuple[TrainState, Metrics]:
    """`improve_apart`, both in one loop over the minibatches, with half as many launches; the numbers are the same."""
    both = state.replace(algorithm=pair_moments(state.algorithm, state.critic_optimizer))
    moved, metrics = improve_jointly(agent, both, adam.replace(apart=True), key, batch)
    algorithm, moments = split_moments(moved.algorithm)
    return moved.replace(algorithm=algorithm, critic_optimizer=moments), metrics


def improve_jointly(
    agent: Agent, state: TrainState, adam: MinibatchAdam, key: jax.Array, batch: Batch
) -> tuple[TrainState, Metrics]:
    """Policy and critic moved by one loss: one gradient, one norm, one Adam (of each, if `adam` holds them apart)."""
    critic_loss = value_loss(agent)

    def extra_loss(joined: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
        return critic_loss(agent.critic_params(*agent.split(joined)), batch)

    joined, algorithm, metrics = agent.config.algo.update(
        key,
        agent.joined_policy,
        agent.join(state.policy, state.critic),
        state.algorithm,
        batch,
        adam.replace(extra_loss=extra_loss),
    )
    told(agent.config, metrics, "grad_norm")
    told(agent.config, metrics, "value_loss", or_else="leave joint_update or shared_torso out")
    policy, critic = agent.split(joined)
    metrics["value_grad_norm"] = metrics.pop("extra_grad_norm", metrics["grad_norm"])
    return state.replace(policy=policy, algorithm=algorithm, critic=critic), metrics


def told(config: Config, metrics: Metrics, *names: str, or_else: str = "optimizer.minimize does") -> None:
    """Hold an update rule against what it must return. Raises: UsageError: a metric is missing."""
    for name in names:
        if name not in metrics:
            raise UsageError(f"the update of {type(config.algo).__name__} returns no metric {name}; {or_else}.")


def value_loss(agent: Agent) -> Callable[[Params, Batch], tuple[jax.Array, Metrics]]:
    """½ mean (V - target)²; with `value_clip_eps`, the larger of it and that of V kept within ±ε of its old value.

    Where policy and critic are moved by one loss, it is weighted by `value_coef`.
    """
    config, critic = agent.config, agent.critic
    weight = config.value_coef if config.is_joint else 1.0

    def loss(params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
        values = critic.apply(params, batch.obs)
        clipped = batch.value + jnp.clip(values - batch.value, -config.value_clip_eps, config.value_clip_eps)
        errors = jnp.maximum((values - batch.value_target) ** 2, (clipped - batch.value_target) ** 2)
        value = 0.5 * jnp.mean(errors)
        return weight * value, {"value_loss": value}

    return loss
