"""Jumanji environments (https://github.com/instadeepai/jumanji)."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jumanji
import numpy as np

from purejaxppo.envs.base import BaseEnv
from purejaxppo.envs.common import Timed, continue_episode, quiet, start_episode
from purejaxppo.errors import UsageError
from purejaxppo.spaces import ACTION_MASK, Box, Discrete, MultiBinary, MultiDiscrete
from purejaxppo.types import Observation

_NEVER = np.iinfo(np.int32).max


def names() -> list[str]:
    return sorted(jumanji.registered_environments())


class JumanjiEnv(BaseEnv):
    """One Jumanji environment, for one agent. Its `time_limit`, where it has one, truncates.

    An observation is all of Jumanji's in one vector, [O] float32; with an action mask, that is the entry `values` of a
    dictionary and the mask, flattened, the other.

    Args:
        name: `Snake-v1`, say.
        params: what the environment's constructor takes.

    Raises:
        UsageError: its actions are neither Discrete nor a vector of such, or it is one of several agents.
    """

    def __init__(self, name: str, **params: Any) -> None:
        with quiet():
            self._env: Any = jumanji.make(name, **params)
            _, start = jax.eval_shape(self._env.reset, jax.random.key(0))
        acted = self._env.action_spec
        several = isinstance(acted, jumanji.specs.MultiDiscreteArray) and len(acted.shape) == 1
        if not (several or isinstance(acted, jumanji.specs.DiscreteArray)) or start.reward.shape:
            raise UsageError(
                f"env = 'jumanji/{name}' has actions {type(acted).__name__} and rewards of shape {start.reward.shape}; "
                "only one agent's actions, Discrete or a vector of such, are supported: choose another one."
            )
        self._limit = getattr(self._env, "time_limit", None)
        if self._limit is not None:
            self._env.time_limit = _NEVER  # Jumanji would call it a termination
        sizes = tuple(int(n) for n in np.ravel(acted.num_values))
        self.action_space = MultiDiscrete(sizes) if several else Discrete(*sizes)
        seen = jax.eval_shape(self._observe, start.observation)
        values = seen["values"] if isinstance(seen, dict) else seen
        self.observation_space: Any = Box(-jnp.inf, jnp.inf, values.shape)
        if isinstance(seen, dict):
            self.observation_space = {"values": self.observation_space, ACTION_MASK: MultiBinary(sum(sizes))}

    def reset(self, key: jax.Array) -> tuple[Timed, Observation]:
        state, timestep = self._env.reset(key)
        return start_episode(state), self._observe(timestep.observation)

    def step(
        self, key: jax.Array, state: Timed, action: jax.Array
    ) -> tuple[Timed, Observation, jax.Array, jax.Array, jax.Array]:
        reached, timestep = self._env.step(state.inner, action)
        state, terminated, truncated = continue_episode(state, reached, timestep.last(), self._limit)
        return state, self._observe(timestep.observation), timestep.reward.astype(jnp.float32), terminated, truncated

    def _observe(self, observation: Any) -> Observation:
        leaves = jax.tree.leaves_with_path(observation)
        masks = [part for path, part in leaves if ACTION_MASK in str(path[0])]
        others = [part for path, part in leaves if ACTION_MASK not in str(path[0])]
        values = jnp.concatenate([jnp.ravel(part).astype(jnp.float32) for part in others])
        space: Any = self.action_space
        size = sum(space.nvec) if isinstance(space, MultiDiscrete) else space.n
        if [mask.size for mask in masks] != [size]:  # none, or one over pairs of factors
            return values
        return {"values": values, ACTION_MASK: jnp.ravel(masks[0]).astype(bool)}

    def render_frames(self, states: Sequence[Timed]) -> Iterator[np.ndarray]:
        """Jumanji's own pictures, drawn with matplotlib."""
        viewer = self._env._viewer
        viewer._display = viewer._display_rgb_array
        return (np.asarray(viewer.render(state.inner))[..., :3] for state in states)
