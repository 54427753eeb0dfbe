"""brax environments (https://github.com/google/brax), on each of its four physics backends."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from brax import envs

from purejaxppo.envs.common import PhysicsEnv, Timed, mujoco_frames, quiet


def names() -> list[str]:
    return sorted(set(envs._envs) - {"fast"})  # which is brax's own test double


class BraxEnv(PhysicsEnv):
    """One brax environment without brax's wrappers: no auto-reset to a cached start, and a time limit that truncates.

    Args:
        name: `ant`, say.
        backend: `generalized`, `spring`, `positional` or `mjx`; brax's choice if left out.
        episode_length: the time limit; brax's trainers take 1,000.
        params: what else the environment's constructor takes.
    """

    def __init__(self, name: str, episode_length: int = 1000, **params: Any) -> None:
        with quiet():
            env = envs.get_environment(name, **params)
        super().__init__(env, episode_length)

    def render_frames(self, states: Sequence[Timed]) -> Iterator[np.ndarray]:
        """MuJoCo's pictures of the poses. Raises: UsageError: this machine has no OpenGL."""
        poses = (state.inner.pipeline_state for state in states)
        return mujoco_frames(self._env.sys.mj_model, ({"qpos": pose.q, "qvel": pose.qd} for pose in poses))
