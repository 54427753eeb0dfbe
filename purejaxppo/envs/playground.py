"""MuJoCo Playground environments (https://github.com/google-deepmind/mujoco_playground)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mujoco_playground import registry

from purejaxppo.envs.base import BaseEnv
from purejaxppo.envs.common import Timed, continue_episode, mujoco_frames, quiet, start_episode
from purejaxppo.spaces import Box
from purejaxppo.types import Observation


def names() -> list[str]:
    return list(registry.ALL_ENVS)


class PlaygroundEnv(BaseEnv):
    """One environment without Playground's wrappers; its `episode_length` truncates.

    A dictionary of observations stays one. `policy_obs=("state",)` and `critic_obs=("privileged_state",)` make the
    critic see more than the policy.

    Args:
        name: `CartpoleBalance`, say. Robots' models (all but the DM-control suite) are downloaded at first use.
        params: values of the environment's configuration to replace. `impl` is `jax`, MJX itself, unless given here.
    """

    def __init__(self, name: str, **params: Any) -> None:
        with quiet():
            config = registry.get_default_config(name)
            given = {"impl": "jax", **params} if "impl" in config else params
            self._env = registry.load(name, config, given)
            start = jax.eval_shape(self._env.reset, jax.random.key(0))
        self._limit = config.episode_length
        self.observation_space: Any = jax.tree.map(lambda x: Box(-jnp.inf, jnp.inf, x.shape), _seen(start.obs))
        self.action_space = Box(-1.0, 1.0, (self._env.action_size,))
        self.render_fps = 1.0 / self._env.dt

    def reset(self, key: jax.Array) -> tuple[Timed, Observation]:
        state = start_episode(self._env.reset(key))
        return state, _seen(state.inner.obs)

    def step(
        self, key: jax.Array, state: Timed, action: jax.Array
    ) -> tuple[Timed, Observation, jax.Array, jax.Array, jax.Array]:
        reached = self._env.step(state.inner, action)
        state, terminated, truncated = continue_episode(state, reached, reached.done, self._limit)
        return state, _seen(state.inner.obs), state.inner.reward, terminated, truncated

    def render_frames(self, states: Sequence[Timed]) -> Iterator[np.ndarray]:
        """MuJoCo's pictures of the poses. Raises: UsageError: this machine has no OpenGL."""
        poses = (state.inner.data for state in states)
        parts = ("qpos", "qvel", "mocap_pos", "mocap_quat")
        return mujoco_frames(self._env.mj_model, ({part: getattr(pose, part) for part in parts} for pose in poses))


def _seen(obs: Any) -> Observation:
    return dict(obs) if isinstance(obs, Mapping) else obs
