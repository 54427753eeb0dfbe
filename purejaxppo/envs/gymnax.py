"""gymnax environments (https://github.com/RobertTLange/gymnax)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.types import Box, Discrete, Space, UsageError, reason


def gymnax_names() -> list[str]:
    import gymnax  # two seconds of imports, spared to those who bring their own environment

    return list(gymnax.registered_envs)


class GymnaxEnv:
    """One gymnax environment with its default parameters, or some of them replaced.

    Observations become float32, integer ones (`Discrete`) one-hot. Reaching `max_steps_in_episode` is truncation,
    unless the same step ends the process anyway.

    Raises:
        UsageError: the environment cannot be made, or its spaces are neither Box nor Discrete.
    """

    def __init__(self, name: str, **params: Any) -> None:
        import gymnax

        with jax.ensure_compile_time_eval():  # this may be the first use of the environment, and under a trace
            try:
                self._env, defaults = gymnax.make(name)
            except Exception as error:
                raise UsageError(
                    f"env = {name!r} cannot be made: gymnax raised {reason(error)}; choose another one."
                ) from error
            self._params: Any = defaults.replace(**params)
            self.action_space = _convert(name, self._env.action_space(self._params))
            observed = _convert(name, self._env.observation_space(self._params))
        self.name, self._replaced = name, [f"{key}={value!r}" for key, value in params.items()]
        self._one_hot = isinstance(observed, Discrete)
        self.observation_space = Box(0.0, 1.0, (observed.n,)) if isinstance(observed, Discrete) else observed

    def __repr__(self) -> str:
        return f"GymnaxEnv({', '.join([repr(self.name), *self._replaced])})"

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        obs, state = self._env.reset_env(key, self._params)
        # gymnax states hold Python numbers; a scan carry must not be weakly typed
        return jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.asarray(x).dtype), state), self._observe(obs)

    def step(
        self, key: jax.Array, state: Any, action: jax.Array
    ) -> tuple[Any, jax.Array, jax.Array, jax.Array, jax.Array]:
        obs, new_state, reward, terminated, _ = self._env.step_env(key, state, action, self._params)
        new_state = jax.tree.map(lambda new, old: jnp.asarray(new).astype(old.dtype), new_state, state)
        terminated = jnp.asarray(terminated, bool)
        truncated = jnp.asarray(self._env.is_truncated(new_state, self._params), bool) & ~terminated
        return new_state, self._observe(obs), jnp.asarray(reward, jnp.float32), terminated, truncated

    def _observe(self, obs: Any) -> jax.Array:
        if self._one_hot:
            return jax.nn.one_hot(obs, self.observation_space.shape[0])
        return jnp.asarray(obs, jnp.float32).reshape(self.observation_space.shape)


def _convert(name: str, space: Any) -> Space:
    kind = type(space).__name__
    if kind == "Discrete":
        return Discrete(int(space.n))
    if kind == "Box":
        return Box(np.asarray(space.low), np.asarray(space.high), tuple(space.shape))
    raise UsageError(f"env = {name!r} has a {kind} space; only Box and Discrete are supported: choose another one.")
