"""Jumanji environments (https://github.com/instadeepai/jumanji)."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jumanji
import numpy as np

from purejaxppo.envs.common import Timed, advance, begin, quiet
from purejaxppo.types import Box, Discrete, UsageError

_NEVER = np.iinfo(np.int32).max


def names() -> list[str]:
    return sorted(jumanji.registered_environments())


class JumanjiEnv:
    """One Jumanji environment, for one agent. Its `time_limit`, where it has one, truncates.

    An observation is all of Jumanji's in one vector, [O] float32, but for the action mask.

    Args:
        name: `Snake-v1`, say.
        params: what the environment's constructor takes.

    Raises:
        UsageError: its actions are not Discrete, or it is one of several agents.
    """

    def __init__(self, name: str, **params: Any) -> None:
        with quiet():
            self._env: Any = jumanji.make(name, **params)
            _, start = jax.eval_shape(self._env.reset, jax.random.key(0))
        acted = self._env.action_spec
        if not isinstance(acted, jumanji.specs.DiscreteArray) or start.reward.shape:
            raise UsageError(
                f"env = 'jumanji/{name}' has actions {type(acted).__name__} and rewards of shape {start.reward.shape}; "
                "only one agent's Discrete actions are supported: choose another one."
            )
        self._limit = getattr(self._env, "time_limit", None)
        if self._limit is not None:
            self._env.time_limit = _NEVER  # Jumanji would call it a termination
        self.observation_space = Box(-jnp.inf, jnp.inf, jax.eval_shape(_observe, start.observation).shape)
        self.action_space = Discrete(int(acted.num_values))

    def reset(self, key: jax.Array) -> tuple[Timed, jax.Array]:
        state, timestep = self._env.reset(key)
        return begin(state), _observe(timestep.observation)

    def step(
        self, key: jax.Array, state: Timed, action: jax.Array
    ) -> tuple[Timed, jax.Array, jax.Array, jax.Array, jax.Array]:
        reached, timestep = self._env.step(state.inner, action)
        state, terminated, truncated = advance(state, reached, timestep.last(), self._limit)
        return state, _observe(timestep.observation), timestep.reward.astype(jnp.float32), terminated, truncated

    def render_frames(self, states: Sequence[Timed]) -> Iterator[np.ndarray]:
        """Jumanji's own pictures, drawn with matplotlib."""
        viewer = self._env._viewer
        viewer._display = viewer._display_rgb_array
        return (np.asarray(viewer.render(state.inner))[..., :3] for state in states)


def _observe(observation: Any) -> jax.Array:
    parts = [part for path, part in jax.tree.leaves_with_path(observation) if "action_mask" not in str(path[0])]
    return jnp.concatenate([jnp.ravel(part).astype(jnp.float32) for part in parts])
