"""What an environment may have beside the protocol of `types.Env`, and the defaults for one that has none of it."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from purejaxppo.errors import HostEnvironmentError, UsageError
from purejaxppo.spaces import ObservationSpace, Space
from purejaxppo.types import EnvState, Observation

Step = tuple[EnvState, Observation, jax.Array, jax.Array, jax.Array]
_REQUIRED = ("reset", "step", "observation_space", "action_space")
FACTS = ("on_host", "episodes_at_once", "has_time_limit", "render_fps")
_METHODS = ("restart", "begin_anew", "release", "close", "render_frames")
_SUCCESS = ("tells_success", "step_with_success")  # one says nothing without the other
_LIBRARIES = ("gymnasium", "gym", "gymnax", "brax", "mujoco_playground", "craftax", "navix", "jumanji", "pgx")


class BaseEnv(contextlib.AbstractContextManager["BaseEnv"]):
    """An environment as the rest of the package knows it: the protocol, and what is optional in it.

    Also a context manager, which closes it.
    """

    observation_space: ObservationSpace
    action_space: Space
    on_host: bool = False  # stepped by the host, see `host/env.py`, and not by the compiled program
    episodes_at_once: int | None = None  # the most that one evaluation may play together; None is any number
    has_time_limit: bool = True  # False: it declares none, and episodes may never end
    tells_success: bool = False  # whether an episode that ends was a success
    render_fps: float = 25.0
    failed: Any = None  # which environment on the host failed, see `host/env.py`

    def reset(self, key: jax.Array) -> tuple[EnvState, Observation]:
        raise NotImplementedError

    def step(self, key: jax.Array, state: EnvState, action: jax.Array) -> Step:
        """An environment has this method or the next; each is made of the other."""
        return self.step_with_success(key, state, action)[0]

    def step_with_success(self, key: jax.Array, state: EnvState, action: jax.Array) -> tuple[Step, Any]:
        """A step, and whether the episode that it ended was a success, [] bool; () where that is not told."""
        return self.step(key, state, action), ()

    def restart(self, key: jax.Array, state: EnvState) -> tuple[EnvState, Observation]:
        """The start of the episode after the one in `state`."""
        return self.reset(key)

    def begin_anew(self, key: jax.Array, state: EnvState) -> tuple[EnvState, Observation]:
        """The start of an episode that depends on `key` alone, whether the one in `state` has ended or not."""
        return self.reset(key)

    def at_rest(self, state: EnvState, rests: jax.Array) -> EnvState:
        """`state` for a `step` of which nothing is used where it `rests`: there, no environment need make it."""
        return state

    def release(self, state: EnvState) -> Any:
        """Compiled: nothing more will be asked of `state`."""

    def close(self) -> None:
        """Give back what the environment holds outside of the compiled program."""

    def render_frames(self, states: Sequence[EnvState]) -> Iterator[np.ndarray]:
        """One picture, uint8 [H, W, 3], for each state. Raises: UsageError: at once, it cannot be drawn."""
        raise UsageError(
            "this environment cannot be drawn: it has no method render(state) that returns a picture, uint8 [H, W, 3]; "
            "write it, or pass --gymnasium ID to film in one of Gymnasium's."
        )

    def from_gymnasium(self, obs: Any, action_mask: Any = None) -> Observation:
        """Our observation for Gymnasium's; the same where the environment is not Gymnasium's."""
        return obs

    def to_gymnasium(self, action: Any) -> Any:
        """Gymnasium's action for ours, likewise."""
        return action

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def host_failures(
    env: BaseEnv, seeds: Sequence[int] = (), way_out: Callable[[], str] = lambda: "mend the environment"
) -> Iterator[None]:
    """What JAX raises where an environment on the host fails, in one line; `seeds` are those of the runs that it is in.

    Raises:
        HostEnvironmentError: it names the environment, and the seed.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if (failed := env.failed) is None:
            raise
        whose = f" of seed {seeds[failed.run]}" if seeds else ""
        what = f"{failed.name}: environment {failed.index}{whose} {failed.how}"
        raise HostEnvironmentError(f"{what}; {way_out()}") from error


class UserEnv(BaseEnv):
    """A plain object that has what `types.Env` asks for, with the defaults for all else."""

    def __init__(self, env: Any) -> None:
        self.env = env
        if hasattr(env, "render"):
            self.render_frames = lambda states: (env.render(state) for state in states)  # type: ignore[method-assign]
        with jax.ensure_compile_time_eval():  # of bounds, which may be asked for under a trace
            known: tuple[str, ...] = (*_REQUIRED, *FACTS, *_METHODS)
            known += _SUCCESS if getattr(env, "tells_success", False) and hasattr(env, "step_with_success") else ()
            self.__dict__ |= {name: getattr(env, name) for name in known if hasattr(env, name)}

    def __repr__(self) -> str:
        return repr(self.env)


def adapt(env: Any, name: Any = None) -> BaseEnv:
    """A user's environment, called `name`, as a `BaseEnv`. Raises: UsageError: it lacks a part, or is no instance."""
    if isinstance(env, BaseEnv):
        return env
    label, kind = f"env = {(env if name is None else name)!r:.80}", env if isinstance(env, type) else type(env)
    library = next((root for x in kind.__mro__ if (root := x.__module__.partition(".")[0]) in _LIBRARIES), None)
    if library == "gymnasium":
        module, spec = kind.__module__.replace("__main__", "MODULE"), getattr(env, "spec", None)
        own = f"gymnasium.register('{kind.__name__}-v0', {kind.__name__}) in a module, then env='gymnasium/{module}:"
        how = f"{own}{kind.__name__}-v0'" if spec is None or isinstance(env, type) else f"env='gymnasium/{spec.id}'"
        raise UsageError(f"{label} is Gymnasium's; worker processes make theirs by name: {how}.")
    if library:
        suite = {"gym": "gymnasium", "mujoco_playground": "playground"}.get(library, library)
        raise UsageError(f"{label} is an object of {library}; pass the name it is registered by, env='{suite}/NAME'.")
    if isinstance(env, type):
        raise UsageError(f"{label} is a class; pass an instance, {env.__name__}().")
    if missing := [part for part in _REQUIRED if not hasattr(env, part)]:
        raise UsageError(f"{label} has no {', '.join(missing)}; give a name, or what types.Env describes.")
    return UserEnv(env)
