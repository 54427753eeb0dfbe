"""Navix, MiniGrid in JAX (https://github.com/epignatelli/navix)."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import navix
import numpy as np
from navix.rendering.cache import RenderingCache

from purejaxppo.envs.base import BaseEnv, Step
from purejaxppo.envs.common import strong
from purejaxppo.spaces import Box, Discrete


def names() -> list[str]:
    return list(navix.registry())


class NavixEnv(BaseEnv):
    """One grid world; observations are the symbolic grid, [H, W, 3], unless `observation_fn` says otherwise.

    Args:
        name: `Navix-Empty-8x8-v0`, say.
        max_steps: the time limit, which truncates. Navix' own default depends on its version; MiniGrid's on the grid.
        params: what else `navix.make` takes. `observation_fn` may be the name of a function in `navix.observations`.
    """

    def __init__(self, name: str, max_steps: int = 100, **params: Any) -> None:
        if isinstance(function := params.get("observation_fn"), str):
            params["observation_fn"] = function = getattr(navix.observations, function)
        self._env = navix.make(name, max_steps=max_steps, **params)
        start = jax.eval_shape(self._env.reset, jax.random.key(0))
        pictures = getattr(function, "__name__", "").startswith("rgb")  # symbols are bytes, too, of at most 10
        self._dtype = jnp.uint8 if pictures else jnp.float32
        self.observation_space = Box(0.0, 255.0, start.observation.shape)
        self.action_space = Discrete(len(self._env.action_set))
        self.render_fps = 8.0

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        timestep = strong(self._env.reset(key))
        return _without_pictures(timestep), timestep.observation.astype(self._dtype)

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> Step:
        before = state.replace(state=state.state.replace(key=key, cache=self._pictures(state)))
        reached = self._env._step(before, action)  # `step` itself resets after an end
        obs, reward = reached.observation.astype(self._dtype), jnp.asarray(reached.reward, jnp.float32)
        reached = strong(_without_pictures(reached), state)
        return reached, obs, reward, reached.is_termination(), reached.is_truncation()

    def render_frames(self, states: Sequence[Any]) -> Iterator[np.ndarray]:
        """Navix's own pictures of the whole grid."""

        @jax.jit
        def draw(state: Any) -> jax.Array:
            return navix.observations.rgb(state.state.replace(cache=self._pictures(state)))

        return (np.asarray(draw(state)) for state in states)

    def _pictures(self, state: Any) -> Any:
        """What rgb observations are made from; XLA leaves it out for others."""
        return RenderingCache.init(state.state.grid)


def _without_pictures(timestep: Any) -> Any:
    """200 kB of background pictures are not carried along by every environment."""
    return timestep.replace(state=timestep.state.replace(cache=None))
