"""brax environments (https://github.com/google/brax), on each of its four physics backends."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from brax import envs

from purejaxppo.envs.base import BaseEnv
from purejaxppo.envs.common import Timed, continue_episode, mujoco_frames, quiet, start_episode
from purejaxppo.spaces import Box


def names() -> list[str]:
    return sorted(set(envs._envs) - {"fast"})  # which is brax's own test double


class BraxEnv(BaseEnv):
    """One brax environment without brax's wrappers: no auto-reset to a cached start, and a time limit that truncates.

    Args:
        name: `ant`, say.
        backend: `generalized`, `spring`, `positional` or `mjx`; brax's choice if left out.
        episode_length: the time limit; brax's trainers take 1,000.
        params: what else the environment's constructor takes.
    """

    action_space: Box

    def __init__(self, name: str, episode_length: int = 1000, **params: Any) -> None:
        with quiet():
            self._env = envs.get_environment(name, **params)
            start = jax.eval_shape(self._env.reset, jax.random.key(0))
        self._limit = episode_length
        self.observation_space = Box(-jnp.inf, jnp.inf, start.obs.shape)
        self.action_space = Box(-1.0, 1.0, (self._env.action_size,))
        self.render_fps = float(1.0 / self._env.dt)

    def reset(self, key: jax.Array) -> tuple[Timed, jax.Array]:
        state = start_episode(self._env.reset(key))
        return state, state.inner.obs

    def step(
        self, key: jax.Array, state: Timed, action: jax.Array
    ) -> tuple[Timed, jax.Array, jax.Array, jax.Array, jax.Array]:
        reached = self._env.step(state.inner, action)
        state, terminated, truncated = continue_episode(state, reached, reached.done, self._limit)
        return state, state.inner.obs, state.inner.reward, terminated, truncated

    def render_frames(self, states: Sequence[Timed]) -> Iterator[np.ndarray]:
        """MuJoCo's pictures of the poses. Raises: UsageError: this machine has no OpenGL."""
        poses = (state.inner.pipeline_state for state in states)
        return mujoco_frames(self._env.sys.mj_model, ({"qpos": pose.q, "qvel": pose.qd} for pose in poses))
