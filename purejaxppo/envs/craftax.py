"""Craftax and Craftax-Classic (https://github.com/MichaelTMatthews/Craftax), symbolic or pixels."""

import functools
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from craftax.craftax_env import make_craftax_env_from_name

from purejaxppo.envs.base import BaseEnv, Step
from purejaxppo.envs.common import strong
from purejaxppo.spaces import Box, Discrete

_NEVER = np.iinfo(np.int32).max
_PIXELS_PER_BLOCK = 16


def names() -> list[str]:
    return ["Craftax-Symbolic-v1", "Craftax-Pixels-v1", "Craftax-Classic-Symbolic-v1", "Craftax-Classic-Pixels-v1"]


class CraftaxEnv(BaseEnv):
    """One game with its default parameters, or some of them replaced; `max_timesteps` truncates."""

    def __init__(self, name: str, **params: Any) -> None:
        self._env = make_craftax_env_from_name(name, auto_reset=False)
        asked = self._env.default_params.replace(**params)
        self._limit = asked.max_timesteps
        self._params = asked.replace(max_timesteps=_NEVER)  # so that "done" is a death, not the time limit
        self._rules = "craftax.craftax_classic" if "Classic" in name else "craftax.craftax"
        seen = self._env.observation_space(self._params)
        self.observation_space = Box(0.0, 1.0, tuple(seen.shape))
        self.action_space = Discrete(self._env.num_actions)

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        obs, state = self._env.reset_env(key, self._params)
        return strong(state), obs.astype(jnp.float32)

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> Step:
        obs, reached, reward, terminated, _ = self._env.step_env(key, state, action, self._params)
        truncated = (reached.timestep >= self._limit) & ~terminated
        reward = jnp.asarray(reward, jnp.float32)
        return strong(reached, state), obs.astype(jnp.float32), reward, terminated, truncated

    def render_frames(self, states: Sequence[Any]) -> Iterator[np.ndarray]:
        """Craftax's own pictures: what its pixel observations show, larger."""
        draw = _renderer(self._rules)
        return (np.asarray(draw(state)).clip(0, 255).astype(np.uint8) for state in states)


@functools.cache
def _renderer(rules: str) -> Any:
    return jax.jit(importlib.import_module(f"{rules}.renderer").make_craftax_pixel_renderer(_PIXELS_PER_BLOCK))
