"""MuJoCo Playground environments (https://github.com/google-deepmind/mujoco_playground)."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mujoco_playground import dm_control_suite, locomotion, manipulation, registry

from purejaxppo.envs.common import PhysicsEnv, Timed, mujoco_frames, quiet
from purejaxppo.errors import UsageError


def names() -> list[str]:
    """Those of one's own as well, registered with one of Playground's three parts."""
    return [name for part in (dm_control_suite, locomotion, manipulation) for name in part.ALL_ENVS]


class PlaygroundEnv(PhysicsEnv):
    """One environment without Playground's wrappers; its `episode_length` truncates.

    A dictionary of observations stays one. `policy_obs=("state",)` and `critic_obs=("privileged_state",)` make the
    critic see more than the policy.

    Args:
        name: `CartpoleBalance`, say. Robots' models (all but the DM-control suite) are downloaded at first use.
        params: values of the environment's configuration to replace, `reward_config.scales.energy` for one within
            another. `impl` is `jax`, MJX itself, unless given here.
    """

    def __init__(self, name: str, **params: Any) -> None:
        """Raises: UsageError: a parameter that Playground's wrappers read, which are not used."""
        if (times := params.get("action_repeat", 1)) != 1:
            raise UsageError(f"action_repeat = {times} of {name} would repeat nothing; pass --action-repeat {times}.")
        with quiet():
            config = registry.get_default_config(name)
            given = {"impl": "jax", **params} if "impl" in config else params
            super().__init__(registry.load(name, config, given), config.episode_length)
        if (times := config.get("action_repeat", 1)) != 1:
            warnings.warn(f"{name}: its configuration asks for --action-repeat {times}", stacklevel=2)

    def render_frames(self, states: Sequence[Timed]) -> Iterator[np.ndarray]:
        """MuJoCo's pictures of the poses. Raises: UsageError: this machine has no OpenGL."""
        poses = (state.inner.data for state in states)
        parts = ("qpos", "qvel", "mocap_pos", "mocap_quat")
        return mujoco_frames(self._env.mj_model, ({part: getattr(pose, part) for part in parts} for pose in poses))
