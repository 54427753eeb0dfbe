"""A policy in the original: Gymnasium environments, stepped by the host."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from purejaxppo.envs.base import BaseEnv
from purejaxppo.envs.wrappers import Wrapper
from purejaxppo.errors import UsageError, reason
from purejaxppo.spaces import Box, MultiDiscrete

AT_ONCE = 64  # environments per call of the policy


def open_env(name: str, port: BaseEnv, **options: Any) -> Any:
    """The Gymnasium environment `name`, in whose spaces a policy trained in `port` can act.

    Raises:
        UsageError: there is none, it cannot be made, or its spaces are others.
    """
    import gymnasium

    if ":" not in name and name not in gymnasium.registry:
        close = difflib.get_close_matches(name, gymnasium.registry, n=3, cutoff=0.4)
        hint = (
            f"did you mean {' or '.join(close)}?" if close else "give module:ID if a package of its own registers it."
        )
        raise UsageError(f"gymnasium = {name!r} is not a registered environment; {hint}")
    try:
        env: Any = gymnasium.make(name, **options)
    except Exception as error:  # whatever the environment's code raises
        raise UsageError(f"gymnasium = {name!r} cannot be made ({reason(error)}); install what it needs.") from error
    _check_spaces(name, env, port)
    return env


def play(
    name: str,
    port: BaseEnv,
    act: Callable[..., tuple[jax.Array, Any]],
    episodes: int,
    seed: Sequence[int],
    key: jax.Array | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Play exactly `episodes` episodes with `act(obs, key, hidden)`; their returns and lengths, [episodes].

    In each round, every environment plays one episode to its end. So all that begin count: to take the first E to end
    would favour short ones. With a `key` actions are sampled, without they are the policy's mode.

    Raises:
        UsageError: as `open_env`.
    """
    envs = [open_env(name, port) for _ in range(min(episodes, AT_ONCE))]
    seeds = np.random.SeedSequence(seed).generate_state(episodes)
    returns, lengths = np.zeros(episodes), np.zeros(episodes, np.int64)
    obs = np.zeros((len(envs), *port.observation_space.shape), np.float32)
    calls = 0
    try:
        for first in range(0, episodes, AT_ONCE):
            playing, hidden = list(range(min(AT_ONCE, episodes - first))), None
            for i in playing:
                obs[i], _ = envs[i].reset(seed=int(seeds[first + i]))
            while playing:
                drawn, hidden = act(obs, None if key is None else jax.random.fold_in(key, calls), hidden)
                actions, calls = np.asarray(drawn), calls + 1
                ended = set()
                for i in playing:
                    obs[i], reward, terminated, truncated, _ = envs[i].step(for_gymnasium(envs[i], actions[i]))
                    returns[first + i] += float(reward)
                    lengths[first + i] += 1
                    if terminated or truncated:
                        ended.add(i)
                playing = [i for i in playing if i not in ended]
    finally:
        for env in envs:
            env.close()
    return returns, lengths


def for_gymnasium(env: Any, action: Any) -> Any:
    """One action of the policy, as `env.step` takes it."""
    space = env.action_space
    if space.shape:
        return np.asarray(action, space.dtype) + getattr(space, "start", 0)
    return int(action) + int(space.start)


def _check_spaces(name: str, env: Any, port: BaseEnv) -> None:
    """Raises: UsageError: observations or actions differ in kind, shape, number or bounds."""
    from gymnasium import spaces

    if isinstance(port, Wrapper):
        raise UsageError(
            f"gymnasium = {name!r} neither stacks frames nor repeats actions, as the policy was trained with; evaluate "
            "it without --gymnasium."
        )
    seen, acted, own = env.observation_space, env.action_space, port.action_space
    shape = port.observation_space.shape if isinstance(port.observation_space, Box) else "of dictionaries or integers"
    if not isinstance(seen, spaces.Box) or seen.shape != shape:
        raise UsageError(
            f"gymnasium = {name!r} has observations {seen}, but the policy was trained on shape {shape}; give the "
            "environment that it was trained for."
        )
    if isinstance(own, Box):
        same = isinstance(acted, spaces.Box) and acted.shape == own.shape
        same = same and all(np.allclose(a, b) for a, b in ((acted.low, own.low), (acted.high, own.high)))
        wanted = f"Box({own.low}, {own.high}, {own.shape})"
    else:
        size, kind = "nvec" if isinstance(own, MultiDiscrete) else "n", type(own).__name__
        same = type(acted).__name__ == kind and np.array_equal(getattr(acted, size), getattr(own, size))
        wanted = f"{kind}({getattr(own, size)})"
    if not same:
        raise UsageError(
            f"gymnasium = {name!r} has actions {acted}, but the policy was trained on {wanted}; give the environment "
            "that it was trained for."
        )
