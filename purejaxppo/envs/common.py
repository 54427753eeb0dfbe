"""What adapters share: states whose types hold, and a time limit where a suite leaves it to a wrapper."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.envs.base import BaseEnv, Step
from purejaxppo.errors import UsageError, reason
from purejaxppo.keys import is_key
from purejaxppo.spaces import Box
from purejaxppo.types import Observation


class Timed(NamedTuple):
    """A suite's own state, and the steps that its episode has had."""

    inner: Any
    steps: jax.Array  # [] int32


class TimedEnv(BaseEnv):
    """An environment of a suite that leaves the time limit to others. An adapter has the first two methods."""

    time_limit: int | None  # steps, which truncate

    def start(self, key: jax.Array) -> tuple[Any, Observation]:
        """`(inner, obs)` of a fresh episode."""
        raise NotImplementedError

    def advance(self, key: jax.Array, inner: Any, action: jax.Array) -> tuple[Any, Observation, jax.Array, jax.Array]:
        """`(inner, obs, reward, over)` of one step, with which the process is `over` or not."""
        raise NotImplementedError

    def reset(self, key: jax.Array) -> tuple[Timed, Observation]:
        inner, obs = self.start(key)
        return Timed(strong(inner), jnp.zeros((), jnp.int32)), obs

    def step(self, key: jax.Array, state: Timed, action: jax.Array) -> Step:
        inner, obs, reward, over = self.advance(key, state.inner, action)
        steps, terminated = state.steps + 1, jnp.asarray(over).astype(bool)
        truncated = jnp.zeros((), bool) if self.time_limit is None else (steps >= self.time_limit) & ~terminated
        return Timed(strong(inner, state.inner), steps), obs, jnp.asarray(reward, jnp.float32), terminated, truncated


class PhysicsEnv(TimedEnv):
    """brax's interface, which is Playground's, too: a state has the observation, the reward and whether it is done."""

    def __init__(self, env: Any, time_limit: int) -> None:
        with quiet():
            start = jax.eval_shape(env.reset, jax.random.key(0))
        self._env, self.time_limit, self.render_fps = env, time_limit, float(1.0 / env.dt)
        self.observation_space = jax.tree.map(lambda x: Box(-jnp.inf, jnp.inf, x.shape), self._seen(start))
        self.action_space = Box(-1.0, 1.0, (env.action_size,))

    def start(self, key: jax.Array) -> tuple[Any, Observation]:
        state = self._env.reset(key)
        return state, self._seen(state)

    def advance(self, key: jax.Array, inner: Any, action: jax.Array) -> tuple[Any, Observation, jax.Array, jax.Array]:
        reached = self._env.step(inner, action)
        return reached, self._seen(reached), reached.reward, reached.done

    def _seen(self, state: Any) -> Observation:
        return dict(state.obs) if isinstance(state.obs, Mapping) else state.obs


def strong(tree: Any, like: Any = None) -> Any:
    """Arrays of the types in `like`, or of their own; never weak ones, which a scan's carry must not be."""

    def cast(x: Any, old: Any) -> jax.Array:
        return x if isinstance(x, jax.Array) and is_key(x) else jnp.asarray(x).astype(jnp.asarray(old).dtype)

    return jax.tree.map(cast, tree, tree if like is None else like)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that a suite gives about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def mujoco_frames(model: Any, poses: Iterable[dict[str, Any]]) -> Iterator[np.ndarray]:
    """MuJoCo's pictures [360, 480, 3] of poses, which are set in its `MjData`. Raises: UsageError: no OpenGL."""
    import mujoco

    data = mujoco.MjData(model)
    try:
        renderer = mujoco.Renderer(model, min(360, model.vis.global_.offheight), min(480, model.vis.global_.offwidth))
    except Exception as error:  # whatever the bindings of EGL, OSMesa and GLFW raise
        raise UsageError(
            f"MuJoCo cannot draw here ({reason(error)}); install EGL or OSMesa, and set MUJOCO_GL=egl or osmesa."
        ) from error
    with contextlib.closing(renderer):
        for pose in poses:
            for name, value in pose.items():
                setattr(data, name, value)
            mujoco.mj_forward(model, data)
            renderer.update_scene(data)
            yield renderer.render()
