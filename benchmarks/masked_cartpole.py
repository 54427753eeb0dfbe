"""CartPole without its velocities: who does not remember cannot balance."""

from typing import Any

import jax

from purejaxppo.envs.registry import make_env
from purejaxppo.spaces import Box, Discrete


class MaskedCartPole:
    """CartPole-v1, of which position and angle are observed: POPGym's PositionOnlyCartPole (arXiv:2303.01859)."""

    action_space = Discrete(2)

    def __init__(self) -> None:
        self.inner = make_env("CartPole-v1")
        space = self.inner.observation_space
        self.observation_space = Box(space.low[::2], space.high[::2], (2,))

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        """Of CartPole's observation (x, ẋ, θ, θ̇), x and θ."""
        state, obs = self.inner.reset(key)
        return state, obs[::2]

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, ...]:
        state, obs, *rest = self.inner.step(key, state, action)
        return (state, obs[::2], *rest)
