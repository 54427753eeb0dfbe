"""How a trained policy acts: observations as its environment gives them, actions as that takes them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.agent import Agent
from purejaxppo.config import Config
from purejaxppo.envs.base import BaseEnv
from purejaxppo.errors import UsageError, reason
from purejaxppo.networks.heads import visible
from purejaxppo.networks.recurrent import is_recurrent
from purejaxppo.precision import matmul_precision, single_precision
from purejaxppo.rollout import environment_action
from purejaxppo.spaces import ACTION_MASK, Discrete
from purejaxppo.types import Observation, TrainState

_KINDS = {"b": 0, "u": 1, "i": 1, "f": 2}  # of NumPy's dtypes: truth values, whole numbers, real ones


def actor(config: Config, state: TrainState) -> Callable[..., Any]:
    """`act` of one seed's policy, see `load`."""
    env, step = config.environment, stepper(config, state)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state.rollout.obs)
    recurrent, optional = is_recurrent(config.recurrent, config.policy_network), unseen(env, config.policy_obs)

    def act(obs: Any, key: jax.Array | None = None, hidden: Any = None) -> Any:
        action, hidden = step(as_observation(env, shapes, obs, optional), key, hidden)
        action = env.to_gymnasium(action)
        return (action, hidden) if recurrent else action

    return act


def unseen(env: BaseEnv, policy_obs: tuple[str, ...]) -> frozenset[str]:
    """The entries of the observation that are the critic's alone, or nobody's."""
    space = env.observation_space
    if not isinstance(space, Mapping):
        return frozenset()
    return frozenset({*space} - {*visible(space, policy_obs)} - {ACTION_MASK})


def stepper(config: Config, state: TrainState) -> Callable[..., tuple[jax.Array, Any]]:
    """`(obs, key=None, hidden=None)` ↦ action and hidden state, which is () of a policy that has none.

    Observations and actions are those of our spaces, unchecked.
    """
    agent = Agent.of(config)
    policy, space = agent.make_policy(state), agent.env.action_space

    @jax.jit
    @single_precision
    def step(obs: Observation, key: jax.Array | None = None, hidden: Any = None) -> tuple[jax.Array, Any]:
        with matmul_precision(config.precision):
            distribution, hidden = policy(obs, agent.policy.initial_hidden(obs) if hidden is None else hidden)
        action = distribution.mode() if key is None else distribution.sample(key)
        return environment_action(space, distribution, action), hidden

    return step


def as_observation(env: BaseEnv, shapes: Any, obs: Any, optional: frozenset[str] = frozenset()) -> Observation:
    """Our observation for one as the environment gives it, or a batch [..., O]; `shapes` are those of one of ours.

    `optional` entries may be missing, and are zeros then. One mask may be that of a whole batch.

    Raises:
        UsageError: an entry is missing, or of another shape or kind.
    """
    space, named = env.observation_space, isinstance(shapes, Mapping)
    missing = [name for name in optional if isinstance(obs, Mapping) and name not in obs]
    if missing:
        obs = {**obs, **{name: np.zeros(shapes[name].shape, shapes[name].dtype) for name in missing}}
    spaces, wanted = (space, shapes) if named else ({"": space}, {"": shapes})
    try:
        obs = env.from_gymnasium(obs)
        parts = obs if named else {"": obs}
        given = {name: x if isinstance(x := parts[name], jax.Array) else np.asarray(x) for name in wanted}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        told = f"a dictionary of {', '.join(wanted)}" if named else f"numbers {list(shapes.shape)}, or a batch of them"
        raise UsageError(f"obs cannot be read ({reason(error):.80}); pass {told}.") from error
    batch = None
    for name, like in wanted.items():
        x, rank = given[name], len(like.shape)
        label, rule = f"obs{name and f'[{name!r}]'}", f"{like.dtype} {list(like.shape)}, or a batch of them"
        if x.shape[x.ndim - rank :] != like.shape or x.ndim < rank:
            raise UsageError(f"{label} has shape {list(x.shape)}; pass {rule}.")
        if _KINDS.get(x.dtype.kind, 3) > max(1, _KINDS.get(np.dtype(like.dtype).kind, 2)):
            raise UsageError(f"{label} is {x.dtype}; pass {rule}.")
        axes = x.shape[: x.ndim - rank]
        if name in missing or (name == ACTION_MASK and not axes):
            continue
        batch = axes if batch is None else batch
        if axes != batch:
            raise UsageError(f"{label} is a batch {list(axes)}, but other entries {list(batch)}; pass equally many.")
        space = spaces[name]
        if isinstance(space, Discrete) and not isinstance(x, jax.core.Tracer) and np.any((x < 0) | (x >= space.n)):
            raise UsageError(f"{label} is not one of the {space.n} whole numbers of its space; pass one of those.")
    ours = {
        name: jnp.broadcast_to(jnp.asarray(x, wanted[name].dtype), (*(batch or ()), *wanted[name].shape))
        for name, x in given.items()
    }
    return ours if named else ours[""]
