"""Which settings of a config do not go together: refused before anything is compiled."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.algorithms.members import check_members_mesh
from purejaxppo.envs.base import BaseEnv
from purejaxppo.envs.check import warn_of_bounds
from purejaxppo.errors import UsageError
from purejaxppo.fields import ends_of, is_number
from purejaxppo.networks.heads import LOG_STD_RANGE, check_network, num_parameters, visible
from purejaxppo.networks.torso import select
from purejaxppo.spaces import ACTION_MASK, Box, channels_first
from purejaxppo.stages import FIXED, FIXED_OF_CONFIG
from purejaxppo.types import traits_of


def check_minibatches(config: Any) -> None:
    """Refuse minibatches that do not divide a rollout, or are of one sample. Raises: UsageError."""
    batch = config.steps_per_update
    what, parts = ("num_envs × num_steps", batch)
    if config.is_recurrent:
        what, parts = "recurrent networks learn from whole sequences: num_envs", config.num_envs
    if config.minibatch_size and batch % config.minibatch_size:
        near = sorted(sorted(_divisors(batch), key=lambda n: abs(n - config.minibatch_size))[:3])
        raise UsageError(
            f"minibatch_size = {config.minibatch_size} does not divide num_envs × num_steps = {batch}; "
            f"the nearest that do: {', '.join(map(str, near))}."
        )
    if parts % config.num_minibatches:
        near = sorted(_divisors(parts), key=lambda n: abs(n - config.num_minibatches))
        raise UsageError(
            f"{what} = {parts} is not divisible by num_minibatches = {config.num_minibatches}; "
            f"the nearest that are: {', '.join(map(str, sorted(near[:3])))}."
        )
    if batch == config.num_minibatches and getattr(config.algo, "normalize_advantages", "") == "minibatch":
        raise UsageError(f"num_minibatches = {batch} leaves one sample each, with an advantage of 0; halve it.")
    if batch == 1 and getattr(config.algo, "normalize_advantages", False) in (True, "batch"):
        raise UsageError("num_envs × num_steps = 1: one sample's standardised advantage is 0; raise num_steps.")


def check_mesh(config: Any, env: int, net: int) -> None:
    """Refuse `env` × `net` devices, on the axes of those names, if they cannot share a run. Raises as `check`."""
    mesh = ",".join(f"{name}={size}" for name, size in (("env", env), ("net", net)) if size > 1)
    if not mesh:
        return
    if config.on_host:
        raise UsageError(f"mesh = {mesh!r}: env and net must be 1 for {config.env!r}, on the host; leave them out.")
    if net > 1 and config.is_joint:
        raise UsageError(
            f"mesh = {mesh!r}: net must be 1 with shared_torso or joint_update, of one loss; leave it out."
        )
    if traits_of(config.algo).evolves:
        check_members_mesh(config, mesh, env, net)
    kind, length = ("sequences", 1) if config.is_recurrent else ("samples", config.num_steps)
    part, rest = divmod(config.num_envs, env)
    if rest or part * length % config.num_minibatches:
        raise UsageError(
            f"mesh = {mesh!r}: env = {env} must divide num_envs = {config.num_envs}, and num_minibatches = "
            f"{config.num_minibatches} each part's {kind}; pass another mesh or num_envs."
        )


def check_agent(config: Any, env: BaseEnv) -> None:
    """Refuse settings that do not fit the environment's spaces, the method or each other. Raises: UsageError."""
    seen, acted, kind = env.observation_space, env.action_space, config.action_distribution
    if not isinstance(acted, Box):
        if kind != "gaussian":
            raise UsageError(f"action_distribution = {kind!r} is for Box actions, not {acted!r}; leave it out.")
    elif kind.startswith(("tanh", "beta")) and not np.isfinite(_width(acted)).all():
        raise UsageError(f"action_distribution = {kind!r} needs bounds, and {acted!r} has none; choose gaussian.")
    if kind.startswith(("gaussian", "gsde")) and config.policy_network is None:
        warn_of_bounds(acted)
    _check_method(config)
    _check_networks(config, kind, isinstance(acted, Box))
    known = sorted(visible(seen, ())) if isinstance(seen, Mapping) else []
    for name in ("policy_obs", "critic_obs"):
        entries = getattr(config, name)
        if not isinstance(entries, tuple) or not {*entries} <= {*known}:
            has = f"its entries are {', '.join(known)}" if known else "it is no dictionary"
            raise UsageError(f"{name} = {entries!r} must name entries of the observation; {has}.")
    _, obs = jax.eval_shape(env.reset, jax.random.key(0))
    for name, shape, entries in (
        ("policy_network", (num_parameters(acted, kind),), config.policy_obs),
        ("critic_network", (), config.critic_obs),
    ):
        masked = name == "policy_network" and isinstance(seen, Mapping) and ACTION_MASK in seen
        check_network(name, getattr(config, name), select(visible(seen, entries), obs), shape, masked)
    _check_images(config, seen)


def _width(box: Box) -> np.ndarray:
    """How far apart the bounds are in float32, in which actions are scaled: ±3e38 are none."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(box.high, np.float32) - np.asarray(box.low, np.float32)


def _check_images(config: Any, seen: Any) -> None:
    """Refuse images that convolutions cannot take, and no convolutions where there is no image. Raises: UsageError."""
    shown = [
        visible(seen, entries)
        for network, entries in ((config.policy_network, config.policy_obs), (config.critic_network, config.critic_obs))
        if network is None or not config.convolutions
    ]
    spaces = [space for x in shown for space in (x.values() if isinstance(x, Mapping) else (x,))]
    images = [space for space in spaces if len(space.shape) == 3]
    if not images and not config.convolutions:
        raise UsageError(
            f"convolutions = False, but no network sees an image [H, W, C] of {config.env_name!r}; leave it at True."
        )
    stacked = ", or give as a vector what frame_stack makes one" if config.frame_stack > 1 else ""
    for image in images:
        height_and_width = image.shape[1:] if channels_first(image.shape) else image.shape[:2]
        if config.convolutions and min(height_and_width) < 3:
            raise UsageError(f"{image!r} holds images smaller than 3 × 3; set convolutions = False{stacked}.")


def one_number_each(config: Any) -> None:
    """Refuse numbers of many runs, which would be broadcast over one run's environments. Raises: UsageError."""
    for where in (config, config.algo):
        for name in (field.name for field in dataclasses.fields(where) if is_number(field)):
            if shape := np.shape(getattr(where, name)):
                raise UsageError(
                    f"{name} has shape {shape}, and a run has one number; jax.vmap over it gives each run its own."
                )


def fixed_numbers(algo: Any) -> tuple[str, ...]:
    """Settings that cannot change during a run, though they are numbers."""
    return FIXED if type(algo) in ALGORITHMS.values() else FIXED_OF_CONFIG


def _check_method(config: Any) -> None:
    """Refuse settings that do not fit the method. Raises: UsageError."""
    fields = [field for field in dataclasses.fields(config.algo) if is_number(field)]
    free = [field for field in fields if field.name not in fixed_numbers(config.algo)]
    annealable = [field.name for field in free if ends_of(field.metadata["interval"])[0] <= 0]  # that may come to 0
    if not isinstance(config.anneal, tuple) or not {*config.anneal} <= {*annealable}:
        names = ", ".join(annealable) or "it has none"
        raise UsageError(f"anneal = {config.anneal!r} must name numbers of {type(config.algo).__name__}: {names}.")
    adapts = not isinstance(config.desired_kl, jax.Array) and config.desired_kl < math.inf  # traced numbers may be inf
    if adapts and not traits_of(config.algo).first_order:
        raise UsageError(
            f"desired_kl = {config.desired_kl} is for first-order methods: the step of {type(config.algo).__name__} "
            "comes from max_kl; leave it out."
        )
    for name in ("shared_torso", "joint_update"):
        if getattr(config, name) and not traits_of(config.algo).first_order:
            raise UsageError(
                f"{name} = True is for first-order methods: the Fisher matrix of {type(config.algo).__name__} is "
                "that of the policy's own parameters; leave it at False."
            )


def _check_networks(config: Any, kind: str, box: bool) -> None:
    """Refuse settings of networks that would do nothing. `box`: whether actions are real numbers."""
    gaussian = box and (kind == "gsde" or "gaussian" in kind) and config.policy_network is None
    if (config.noise_steps or kind == "gsde") and not (kind == "gsde" and gaussian):
        raise UsageError(
            f"noise_steps = {config.noise_steps}, action_distribution = {kind!r}: gsde needs a policy network of ours, "
            "and noise_steps needs gsde; leave them out."
        )
    if not isinstance(config.log_std_init, jax.Array) and config.log_std_init and not gaussian:
        raise UsageError(
            f"log_std_init = {config.log_std_init} is for Gaussian policies over Box actions; leave it out."
        )
    low, high = LOG_STD_RANGE
    given = 0.0 if isinstance(config.log_std_init, jax.Array) else config.log_std_init
    if kind.endswith("state-std") and not low < given < high:
        raise UsageError(f"log_std_init = {given} must be in ({low:g}, {high:g}), within which {kind} keeps log σ.")
    if config.critic_hidden_sizes is not None and (config.shared_torso or config.critic_network is not None):
        raise UsageError(
            f"critic_hidden_sizes = {config.critic_hidden_sizes}, but the critic shares the policy's layers or is a "
            "network of your own; leave it out."
        )
    if config.recurrent != "none" and None not in (config.policy_network, config.critic_network):
        raise UsageError(
            f"recurrent = {config.recurrent!r} would give no memory to networks of your own; leave it out, or build it "
            "into them."
        )
    apart = (config.policy_network, config.critic_network) != (None, None) or config.policy_obs != config.critic_obs
    if config.shared_torso and apart:
        raise UsageError("shared_torso = True, but policy and critic have own networks or observations; leave it out.")


def _divisors(n: int) -> set[int]:
    small = [d for d in range(1, min(math.isqrt(n), 2**20) + 1) if n % d == 0]
    return {*small, *(n // d for d in small)}
