"""Jumanji environments (https://github.com/instadeepai/jumanji)."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jumanji
import numpy as np

from purejaxppo.envs.common import Timed, TimedEnv, quiet
from purejaxppo.errors import UsageError
from purejaxppo.spaces import ACTION_MASK, Box, Discrete, MultiBinary, MultiDiscrete
from purejaxppo.types import Observation

_NEVER = np.iinfo(np.int32).max


def names() -> list[str]:
    return sorted(jumanji.registered_environments())


class JumanjiEnv(TimedEnv):
    """One Jumanji environment, for one agent or several that are moved together. A `time_limit`, if any, truncates.

    An observation is all of Jumanji's in one vector, [O] float32; with an action mask, that is the entry `values` of a
    dictionary and the mask, flattened, the other. Where the mask is over all combinations of a vector of actions, as
    Tetris' is over rotations × columns, an action is the number of such a combination.

    Args:
        name: `Snake-v1`, say.
        params: what the environment's constructor takes.

    Raises:
        UsageError: its actions are neither Discrete nor a vector of such, or several agents have rewards of their own.
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
                "only Discrete actions or a vector of such, with one reward, are supported: choose another one."
            )
        self.time_limit = getattr(self._env, "time_limit", None)
        if self.time_limit is not None:
            self._env.time_limit = _NEVER  # Jumanji would call it a termination
        self._sizes = tuple(int(n) for n in np.ravel(acted.num_values))
        self._num_masked = 0
        masks = [part.shape for path, part in jax.tree.leaves_with_path(start.observation) if _is_mask(path)]
        self._joint = several and masks == [self._sizes]
        self.action_space = (
            MultiDiscrete(self._sizes) if several and not self._joint else Discrete(math.prod(self._sizes))
        )
        if masks and (self._joint or math.prod(masks[0]) == sum(self._sizes)):
            self._num_masked = math.prod(masks[0])
        seen = jax.eval_shape(self._observe, start.observation)
        values = seen["values"] if isinstance(seen, dict) else seen
        self.observation_space: Any = Box(-jnp.inf, jnp.inf, values.shape)
        if isinstance(seen, dict):
            self.observation_space = {"values": self.observation_space, ACTION_MASK: MultiBinary(self._num_masked)}

    def start(self, key: jax.Array) -> tuple[Any, Observation]:
        state, timestep = self._env.reset(key)
        return state, self._observe(timestep.observation)

    def advance(self, key: jax.Array, inner: Any, action: jax.Array) -> tuple[Any, Observation, jax.Array, jax.Array]:
        if self._joint:
            action = jnp.stack(jnp.unravel_index(action, self._sizes)).astype(action.dtype)
        reached, timestep = self._env.step(inner, action)
        return reached, self._observe(timestep.observation), timestep.reward, timestep.last()

    def _observe(self, observation: Any) -> Observation:
        leaves = jax.tree.leaves_with_path(observation)
        values = jnp.concatenate([jnp.ravel(part).astype(jnp.float32) for path, part in leaves if not _is_mask(path)])
        if not self._num_masked:
            return values
        [mask] = [part for path, part in leaves if _is_mask(path)]
        return {"values": values, ACTION_MASK: jnp.ravel(mask).astype(bool)}

    def render_frames(self, states: Sequence[Timed]) -> Iterator[np.ndarray]:
        """Jumanji's own pictures, drawn with matplotlib."""
        names = ("_viewer", "_env_viewer", "viewer")  # not all environments call it alike
        viewer: Any = next((getattr(self._env, name) for name in names if hasattr(self._env, name)), None)
        if viewer is None:
            raise UsageError(f"{type(self._env).__name__} has no viewer that is known; it cannot be filmed.")
        viewer._display = viewer._display_rgb_array
        return (np.asarray(viewer.render(state.inner))[..., :3] for state in states)


def _is_mask(path: Any) -> bool:
    return ACTION_MASK in str(path[0])
