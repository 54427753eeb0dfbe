"""What is refused of a config whose method evolves members, without gradients and critic."""

from collections.abc import Mapping
from typing import Any

import jax

from purejaxppo.errors import UsageError

OF_GRADIENTS = (  # and of the critic: what would do nothing
    *("gamma", "gae_lambda", "advantage_estimator", "value_target", "truncation_as_termination", "entropy_reward_coef"),
    *("reward_scale", "reward_clip", "normalize_rewards", "learning_rate", "anneal_learning_rate", "desired_kl"),
    *("max_grad_norm", "num_epochs", "num_minibatches", "value_clip_eps", "value_coef", "shared_torso", "joint_update"),
    *("optimizer", "optimizer_eps", "weight_decay", "minibatch_size"),
    *("critic_network", "critic_hidden_sizes", "critic_obs"),
)


def check_members(config: Any, usual: Mapping[str, Any]) -> None:
    """Refuse settings that would do nothing, and members that are too few. Raises: UsageError."""
    each = config.algo.envs_per_member
    for name in OF_GRADIENTS:
        value = getattr(config, name)
        if not isinstance(value, jax.Array) and value != usual[name]:
            raise UsageError(
                f"{name} = {value!r:.80} would do nothing in {config.algo_name}, which has no gradient and no critic; "
                "leave it out."
            )
    if config.kernels == "pallas":
        raise UsageError(f"kernels = 'pallas': there are none for {config.algo_name}; leave it at auto.")
    if config.num_envs % each or config.num_envs < 2 * each:
        raise UsageError(
            f"num_envs = {config.num_envs} must be a multiple of envs_per_member = {each}, for at least 2 members; "
            f"pass {max(2, round(config.num_envs / each)) * each}."
        )


def check_members_mesh(config: Any, mesh: str, env: int, net: int) -> None:
    """Refuse devices that cannot share the members equally. Raises: UsageError."""
    members = config.num_envs // config.algo.envs_per_member
    if net > 1 or members % env:
        raise UsageError(
            f"mesh = {mesh!r}: net must be 1 for {config.algo_name}, which has no critic, and env = {env} must divide "
            f"its {members} members; pass another mesh."
        )
