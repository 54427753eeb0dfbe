"""gymnax environments (https://github.com/RobertTLange/gymnax)."""

import functools
import importlib
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.envs.base import BaseEnv, Step
from purejaxppo.envs.common import strong
from purejaxppo.errors import UsageError, reason
from purejaxppo.spaces import Box, Discrete

CLASSIC_CONTROL = {  # drawn by Gymnasium, at its frames per second
    "Acrobot-v1": 15.0,
    "CartPole-v1": 50.0,
    "MountainCar-v0": 30.0,
    "MountainCarContinuous-v0": 30.0,
    "Pendulum-v1": 30.0,
}
DRAWN = (  # that gymnax's Visualizer knows beside those
    *("Asterix-MinAtar", "Breakout-MinAtar", "Catch-bsuite", "FourRooms-misc", "Freeway-MinAtar", "MetaMaze-misc"),
    *("PointRobot-misc", "Pong-misc", "Seaquest-MinAtar", "SpaceInvaders-MinAtar"),
)


class _Deferred(ModuleType):
    """A library that is imported when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@functools.cache
def _gymnax() -> Any:
    """gymnax, without what it needs for drawing only: seaborn and pyplot are 2.0 of the 2.6 seconds of its import."""
    deferred = {name: _Deferred(name) for name in ("seaborn", "matplotlib.pyplot") if name not in sys.modules}
    sys.modules.update(deferred)
    try:
        return importlib.import_module("gymnax")
    finally:
        for name, module in deferred.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def names() -> list[str]:
    return list(_gymnax().registered_envs)


class GymnaxEnv(BaseEnv):
    """One gymnax environment with its default parameters, or some of them replaced; or made with others.

    Observations become float32; integer ones (`Discrete`) one-hot and, like MinAtar's zeros and ones, bool, which takes
    a quarter of the memory. Reaching `max_steps_in_episode` is truncation, unless the same step ends the process.

    Raises:
        UsageError: the environment cannot be made, or its spaces are neither Box nor Discrete.
    """

    def __init__(self, name: str, **params: Any) -> None:
        gymnax = _gymnax()
        with jax.ensure_compile_time_eval():  # this may be the first use of the environment, and under a trace
            try:
                self._env, defaults = gymnax.make(name)
                known = vars(defaults)
                if own := {key: x for key, x in params.items() if key not in known}:
                    self._env, defaults = gymnax.make(name, **own)
                self._params: Any = defaults.replace(**{key: x for key, x in params.items() if key in known})
            except Exception as error:
                raise UsageError(f"env = {name!r} cannot be made ({reason(error)}); choose another one.") from error
            self.action_space = _convert(name, self._env.action_space(self._params))
            observed = _convert(name, self._env.observation_space(self._params))
        self.name, self._replaced = name, [f"{key}={value!r}" for key, value in params.items()]
        self.render_fps = CLASSIC_CONTROL.get(name, 10.0)
        self._one_hot = isinstance(observed, Discrete)
        self._dtype = jnp.bool_ if name.endswith("-MinAtar") else jnp.float32
        self.observation_space = Box(0.0, 1.0, (observed.n,)) if isinstance(observed, Discrete) else observed

    def __repr__(self) -> str:
        return f"GymnaxEnv({', '.join([repr(self.name), *self._replaced])})"

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        obs, state = self._env.reset_env(key, self._params)
        return strong(state), self._observe(obs)

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> Step:
        obs, new_state, reward, terminated, _ = self._env.step_env(key, state, action, self._params)
        if self.name == "MountainCarContinuous-v0":  # Gymnasium's car stops at the left wall; gymnax 1.0's does not
            at_wall = (new_state.position <= self._params.min_position) & (new_state.velocity < 0)
            new_state = new_state.replace(velocity=jnp.where(at_wall, 0.0, new_state.velocity))
            obs = self._env.get_obs(new_state)
        new_state = strong(new_state, state)
        terminated = jnp.asarray(terminated, bool)
        truncated = jnp.asarray(self._env.is_truncated(new_state, self._params), bool) & ~terminated
        return new_state, self._observe(obs), jnp.asarray(reward, jnp.float32), terminated, truncated

    def render_frames(self, states: Sequence[Any]) -> Iterator[np.ndarray]:
        """Pictures by gymnax's own renderers. Raises: UsageError: gymnax cannot draw this environment."""
        if self.name in CLASSIC_CONTROL:
            return self._in_gymnasium(states)
        if self.name in DRAWN:
            return self._in_matplotlib(states)
        raise UsageError(
            f"env = {self.name!r} is not drawn by gymnax; those are {', '.join((*CLASSIC_CONTROL, *DRAWN))}."
        )

    def _in_gymnasium(self, states: Sequence[Any]) -> Iterator[np.ndarray]:
        """As gymnax's `render_gym_frame`, but with one environment for all frames: 1 ms each instead of 35."""
        import gymnasium
        from gymnax.visualize import vis_gym

        env: Any = gymnasium.make(self.name, render_mode="rgb_array").unwrapped
        env.reset()
        vis_gym.set_gym_params(env, self.name, self._params)
        try:
            for state in states:
                env.state = vis_gym.get_gym_state(state, self.name)
                if self.name == "Pendulum-v1":
                    env.last_u = np.asarray(state.last_u, np.float64)
                yield env.render()
        finally:
            env.close()

    def _in_matplotlib(self, states: Sequence[Any]) -> Iterator[np.ndarray]:
        """gymnax's `Visualizer`, its axes filling the picture."""
        from gymnax.visualize import Visualizer
        from matplotlib import pyplot
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        drawing = Visualizer(self._env, self._params, states)
        try:
            canvas: Any = FigureCanvasAgg(drawing.fig)
            drawing.init()
            (left, right), (low, high) = drawing.ax.get_xlim(), drawing.ax.get_ylim()
            drawing.fig.set(dpi=100, size_inches=(4.0, 4.0 * abs((high - low) / (right - left))))
            drawing.ax.set_position((0.0, 0.0, 1.0, 1.0))
            drawing.ax.spines[:].set_visible(False)
            for i in range(len(states)):
                drawing.update(i)
                drawing.ax.set_title("")
                canvas.draw()
                yield np.array(canvas.buffer_rgba())[..., :3]
        finally:
            pyplot.close(drawing.fig)

    def _observe(self, obs: Any) -> jax.Array:
        if self._one_hot:
            return jax.nn.one_hot(obs, self.observation_space.shape[0], dtype=bool)
        return jnp.asarray(obs, self._dtype).reshape(self.observation_space.shape)


def _convert(name: str, space: Any) -> Box | Discrete:
    kind = type(space).__name__
    if kind == "Discrete":
        return Discrete(int(space.n))
    if kind == "Box":
        return Box(np.asarray(space.low), np.asarray(space.high), tuple(space.shape))
    raise UsageError(f"env = {name!r} has a {kind} space; only Box and Discrete are supported: choose another one.")
