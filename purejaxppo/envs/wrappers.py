"""Environments around environments, each keeping the protocol: frame stacking, action repeat."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.envs.base import FACTS, BaseEnv, Step
from purejaxppo.errors import UsageError
from purejaxppo.spaces import ACTION_MASK, Box, Discrete, MultiDiscrete, ObservationSpace, Space, channels_first
from purejaxppo.types import EnvState, Observation

_METHODS = ("close", "from_gymnasium", "to_gymnasium")


class Wrapper(BaseEnv):
    """`env`, with all that it has; what a wrapper changes, it defines anew."""

    def __init__(self, env: BaseEnv) -> None:
        self.env = env
        for name in ("observation_space", "action_space", *FACTS, "tells_success", *_METHODS):
            setattr(self, name, getattr(env, name))

    def inner(self, state: EnvState) -> EnvState:
        """The state of `env` within one of the wrapper's."""
        return state

    @property
    def failed(self) -> Any:
        return self.env.failed

    def __enter__(self) -> Self:
        self.env.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.env.__exit__(*error)

    def release(self, state: EnvState) -> Any:
        return self.env.release(self.inner(state))

    def render_frames(self, states: Sequence[EnvState]) -> Iterator[np.ndarray]:
        return self.env.render_frames([self.inner(state) for state in states])


class ActionRepeat(Wrapper):
    """Each action is taken `times` times; the rewards are summed (Mnih et al., 2015).

    Until the episode ends, or the action mask forbids it.
    """

    def __init__(self, env: BaseEnv, times: int) -> None:
        super().__init__(env)
        self.times, self.render_fps = times, env.render_fps / times  # a picture for each decision

    def __repr__(self) -> str:
        return f"ActionRepeat({self.env!r}, {self.times})"

    def reset(self, key: jax.Array) -> tuple[EnvState, Observation]:
        return self.env.reset(key)

    def restart(self, key: jax.Array, state: EnvState) -> tuple[EnvState, Observation]:
        return self.env.restart(key, state)

    def begin_anew(self, key: jax.Array, state: EnvState) -> tuple[EnvState, Observation]:
        return self.env.begin_anew(key, state)

    def step_with_success(self, key: jax.Array, state: EnvState, action: jax.Array) -> tuple[Step, Any]:
        def again(before: tuple[Step, Any], key: jax.Array) -> tuple[tuple[Step, Any], None]:
            state, seen, total, terminated, truncated = before[0]
            over = terminated | truncated | ~is_valid(self.action_space, seen, action)
            still = self.env.at_rest(state, over)
            (state, obs, reward, *ends), success = self.env.step_with_success(key, still, action)
            after = (state, obs, total + reward, *ends), success
            return jax.tree.map(lambda old, new: jnp.where(over, old, new), before, after), None

        first, *others = jax.random.split(key, self.times)
        reached: tuple[Step, Any] = self.env.step_with_success(first, state, action)
        return jax.lax.scan(again, reached, jnp.stack(others))[0] if others else reached


def is_valid(space: Space, obs: Observation, action: jax.Array) -> jax.Array:
    """Whether the mask of an observation, if it has one, allows an action, [] bool; where it allows none, it does."""
    if not isinstance(obs, Mapping) or ACTION_MASK not in obs or not isinstance(space, Discrete | MultiDiscrete):
        return jnp.ones((), bool)
    ends = np.cumsum(space.nvec[:-1]) if isinstance(space, MultiDiscrete) else ()
    factors = zip(jnp.split(jnp.asarray(obs[ACTION_MASK]), ends), jnp.ravel(action), strict=True)
    return jnp.all(jnp.stack([mask[taken] | ~jnp.any(mask) for mask, taken in factors]))


class Stacked(NamedTuple):
    """A state, and what was seen of it last."""

    inner: EnvState
    obs: Observation


class FrameStack(Wrapper):
    """The last `count` observations as one, the newest last; an episode's first is there `count` times.

    [H, W] becomes [H, W, count], [H, W, C] and [C, H, W] become [H, W, count · C], and vectors [O] become [count · O].
    Integers and action masks are the newest alone.
    """

    def __init__(self, env: BaseEnv, count: int) -> None:
        super().__init__(env)
        self.count, self._unstacked = count, env.observation_space
        self.observation_space: ObservationSpace = self._map(self._widen)

    def __repr__(self) -> str:
        return f"FrameStack({self.env!r}, {self.count})"

    def inner(self, state: Stacked) -> EnvState:
        return state.inner

    def reset(self, key: jax.Array) -> tuple[Stacked, Observation]:
        return self._begin(*self.env.reset(key))

    def restart(self, key: jax.Array, state: Stacked) -> tuple[Stacked, Observation]:
        return self._begin(*self.env.restart(key, state.inner))

    def begin_anew(self, key: jax.Array, state: Stacked) -> tuple[Stacked, Observation]:
        return self._begin(*self.env.begin_anew(key, state.inner))

    def step_with_success(self, key: jax.Array, state: Stacked, action: jax.Array) -> tuple[Step, Any]:
        (inner, seen, *rest), success = self.env.step_with_success(key, state.inner, action)
        obs = self.push(state.obs, seen)
        return (Stacked(inner, obs), obs, *rest), success

    def fill(self, seen: Observation) -> Observation:
        """The stack after an episode's first observation."""

        def repeat(space: Any, new: jax.Array) -> jax.Array:
            if not isinstance(space, Box):
                return new
            return jnp.concatenate([_as_frame(new, space.shape)] * self.count, axis=-1)

        return self._map(repeat, seen)

    def push(self, stack: Observation, seen: Observation) -> Observation:
        """The stack after one more observation."""

        def append(space: Any, old: jax.Array, new: jax.Array) -> jax.Array:
            if not isinstance(space, Box):
                return new
            frame = _as_frame(new, space.shape)
            return jnp.concatenate([old[..., frame.shape[-1] :], frame], axis=-1)

        return self._map(append, stack, seen)

    def _begin(self, inner: EnvState, seen: Observation) -> tuple[Stacked, Observation]:
        obs = self.fill(seen)
        return Stacked(inner, obs), obs

    def _widen(self, space: Any) -> Any:
        if not isinstance(space, Box):
            return space
        ends = (_as_frame(np.broadcast_to(end, space.shape), space.shape) for end in (space.low, space.high))
        low, high = (np.concatenate([end] * self.count, -1) for end in ends)
        if low.ndim == 3 and channels_first(low.shape):
            raise UsageError(
                f"frame_stack = {self.count} makes {space!r} images {list(low.shape)}, which look like [C, H, W], "
                "channels first; choose another one, or stack them in the environment."
            )
        return Box(low, high, low.shape)

    def _map(self, change: Any, *observations: Any) -> Any:
        """`change(space, *entries)` of each entry, or of the observation itself."""
        space = self._unstacked
        if not isinstance(space, Mapping):
            return change(space, *observations)
        return {name: change(entry, *(obs[name] for obs in observations)) for name, entry in space.items()}


def _as_frame(x: Any, shape: tuple[int, ...]) -> Any:
    """What frames are joined along is the last axis: numbers and [H, W] get one, [C, H, W] becomes [H, W, C]."""
    if len(shape) in (0, 2):
        return x[..., None]
    return x.swapaxes(-3, -2).swapaxes(-2, -1) if channels_first(shape) else x


def wrapped(env: BaseEnv, frame_stack: int, action_repeat: int) -> BaseEnv:
    """`env` as a config asks for it."""
    if action_repeat > 1:
        env = ActionRepeat(env, action_repeat)
    return FrameStack(env, frame_stack) if frame_stack > 1 else env
