"""What adapters share: states whose types hold, and a time limit where a suite leaves it to a wrapper."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.errors import UsageError, reason


class Timed(NamedTuple):
    """A suite's own state, and the steps that its episode has had."""

    inner: Any
    steps: jax.Array  # [] int32


def start_episode(inner: Any) -> Timed:
    """The state of a fresh episode."""
    return Timed(strong(inner), jnp.zeros((), jnp.int32))


def continue_episode(state: Timed, inner: Any, over: Any, limit: int | None) -> tuple[Timed, jax.Array, jax.Array]:
    """`(state, terminated, truncated)` after a step to `inner`, with which the process is `over` or not."""
    steps = state.steps + 1
    terminated = jnp.asarray(over).astype(bool)
    truncated = jnp.zeros((), bool) if limit is None else (steps >= limit) & ~terminated
    return Timed(strong(inner, state.inner), steps), terminated, truncated


def strong(tree: Any, like: Any = None) -> Any:
    """Arrays of the types in `like`, or of their own; never weak ones, which a scan's carry must not be."""

    def cast(x: Any, old: Any) -> jax.Array:
        is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return x if is_key else jnp.asarray(x).astype(jnp.asarray(old).dtype)

    return jax.tree.map(cast, tree, tree if like is None else like)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that a suite gives about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def mujoco_frames(model: Any, poses: Iterable[dict[str, Any]]) -> Iterator[np.ndarray]:
    """MuJoCo's pictures of a model, [360, 480, 3]; a pose is what to set in its `MjData`.

    Raises:
        UsageError: this machine has no OpenGL.
    """
    import mujoco

    data = mujoco.MjData(model)
    try:
        renderer = mujoco.Renderer(model, min(360, model.vis.global_.offheight), min(480, model.vis.global_.offwidth))
    except Exception as error:  # whatever the bindings of EGL, OSMesa and GLFW raise
        raise UsageError(
            f"MuJoCo cannot draw on this machine ({reason(error)}); install EGL or OSMesa, "
            "and set MUJOCO_GL=egl or MUJOCO_GL=osmesa."
        ) from error
    with contextlib.closing(renderer):
        for pose in poses:
            for name, value in pose.items():
                setattr(data, name, value)
            mujoco.mj_forward(model, data)
            renderer.update_scene(data)
            yield renderer.render()
