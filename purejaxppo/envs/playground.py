"""MuJoCo Playground environments (https://github.com/google-deepmind/mujoco_playground)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mujoco_playground import registry

from purejaxppo.envs.common import PhysicsEnv, Timed, mujoco_frames, quiet
from purejaxppo.errors import UsageError


def names() -> list[str]:
    return list(registry.ALL_ENVS)


class PlaygroundEnv(PhysicsEnv):
    """One environment without Playground's wrappers; its `episode_length` truncates.

    A dictionary of observations stays one. `policy_obs=("state",)` and `critic_obs=("privileged_state",)` make the
    critic see more than the policy.

    Args:
        name: `CartpoleBalance`, say. Robots' models (all but the DM-control suite) are downloaded at first use.
        params: values of the environment's configuration to replace. `impl` is `jax`, MJX itself, unless given here.
    """

    def __init__(self, name: str, **params: Any) -> None:
        """Raises: UsageError: a parameter that Playground's own training reads, and no environment."""
        if (times := params.get("action_repeat", 1)) != 1:
            raise UsageError(f"action_repeat = {times} of {name} would do nothing; pass --action-repeat {times}.")
        with quiet():
            config = registry.get_default_config(name)
            given = {"impl": "jax", **params} if "impl" in config else params
            super().__init__(registry.load(name, config, given), config.episode_length)

    def render_frames(self, states: Sequence[Timed]) -> Iterator[np.ndarray]:
        """MuJoCo's pictures of the poses. Raises: UsageError: this machine has no OpenGL."""
        poses = (state.inner.data for state in states)
        parts = ("qpos", "qvel", "mocap_pos", "mocap_quat")
        return mujoco_frames(self._env.mj_model, ({part: getattr(pose, part) for part in parts} for pose in poses))
