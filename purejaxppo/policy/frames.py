"""Episodes of a policy, picture by picture: in the environment it was trained in, or in one of Gymnasium's."""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.agent import Agent
from purejaxppo.config import Config
from purejaxppo.envs.registry import make_env
from purejaxppo.envs.wrappers import FrameStack, is_valid
from purejaxppo.errors import HostEnvironmentError, UsageError, reason
from purejaxppo.keys import ACTIONS
from purejaxppo.networks.gsde import step_of_noise
from purejaxppo.policy.acting import stepper
from purejaxppo.precision import matmul_precision, single_precision
from purejaxppo.rollout import environment_action
from purejaxppo.spaces import Box
from purejaxppo.types import TrainState


class Frame(NamedTuple):
    """An episode at one moment."""

    picture: np.ndarray  # uint8 [H, W, 3]
    step: int
    total: float  # the return so far
    over: bool  # the episode has ended


class Episode(NamedTuple):
    """The states of one episode, from its start to its end or to the last step allowed: L steps."""

    states: list[Any]  # L + 1, of NumPy arrays
    totals: np.ndarray  # [L + 1] the return so far
    ended: bool


def in_gymnasium(config: Config, name: str) -> Config:
    """`config` with Gymnasium's environment `name`. Raises: UsageError: there is none, or its spaces are others."""
    env, trained_in = make_env(f"gymnasium/{name}"), config.replace(frame_stack=1, action_repeat=1).environment
    for what, bounded in (("observation", False), ("action", True)):
        theirs, ours = (getattr(x, f"{what}_space") for x in (env, trained_in))
        if not _alike(theirs, ours, bounded):
            raise UsageError(
                f"gymnasium = {name!r} has {what}s {theirs!r:.200}, but the policy was trained on {ours!r:.200}; give "
                "the environment that it was trained for."
            )
    return config.replace(env=env)


def _alike(a: Any, b: Any, bounded: bool) -> bool:
    """Whether spaces are of one kind and shape and, if `bounded`, have equal bounds."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_alike(a[name], b[name], bounded) for name in a)
    if isinstance(a, Box) and isinstance(b, Box):
        return a.shape == b.shape and (not bounded or (np.allclose(a.low, b.low) and np.allclose(a.high, b.high)))
    return type(a) is type(b) and a == b


def player(config: Config, max_steps: int) -> Callable[[TrainState, jax.Array], Episode]:
    """`(state, key) ↦ Episode`, compiled; greedy or sampled, as `config.eval_greedy` says."""
    agent = Agent.of(config)
    env = agent.env

    @jax.jit
    @single_precision
    def play(state: TrainState, key: jax.Array) -> Any:
        policy, (start_key, play_key) = agent.make_policy(state), jax.random.split(key)
        start = env.reset(start_key)

        def step(carry: tuple[Any, Any, Any], keys: tuple[jax.Array, jax.Array]) -> Any:
            env_state, obs, hidden = carry
            (action_key, _), (_, step_key) = map(jax.random.split, keys)
            distribution, hidden = policy(obs, hidden)
            action = distribution.mode() if config.eval_greedy else distribution.sample(action_key)
            bounded = environment_action(env.action_space, distribution, action)
            env_state, obs, reward, terminated, truncated = env.step(step_key, env_state, bounded)
            return (env_state, obs, hidden), (env_state, reward, terminated | truncated)

        begun = (*start, agent.policy.initial_hidden(start[1]))
        keys = jax.random.split(play_key, max_steps)
        drawn = keys[step_of_noise(config, jnp.arange(max_steps))]
        with matmul_precision(config.precision):
            _, (states, rewards, done) = jax.lax.scan(step, begun, (drawn, keys))
        states = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start[0], states)
        return states, rewards, done

    def episode(state: TrainState, key: jax.Array) -> Episode:
        states, rewards, done = jax.device_get(play(state, key))
        ended = bool(done.any())
        length = int(done.argmax()) + 1 if ended else max_steps
        totals = np.concatenate([[0.0], np.cumsum(rewards[:length], dtype=np.float64)])
        return Episode([jax.tree.map(lambda x, i=i: x[i], states) for i in range(length + 1)], totals, ended)

    return episode


def compiled_frames(config: Config, state: TrainState, keys: jax.Array, max_steps: int) -> Iterator[Iterator[Frame]]:
    """An episode for each key, drawn by the environment itself. Raises: UsageError: it cannot be drawn."""
    draw, play = config.environment.render_frames, player(config, max_steps)
    draw(())  # before anything is compiled

    def frames(episode: Episode) -> Iterator[Frame]:
        last = len(episode.states) - 1
        for step, (picture, total) in enumerate(zip(draw(episode.states), episode.totals, strict=True)):
            yield Frame(_checked(picture), step, float(total), episode.ended and step == last)

    for key in keys:
        yield frames(play(state, key))


def gymnasium_frames(config: Config, state: TrainState, keys: jax.Array, max_steps: int) -> Iterator[Iterator[Frame]]:
    """Likewise in `config`'s Gymnasium environment, stepped here. Raises: HostEnvironmentError: its own code failed."""
    from gymnasium.error import DependencyNotInstalled

    from purejaxppo.envs.host.worker import action_masks, make

    wrapped: Any = config.environment
    env: Any = config.replace(frame_stack=1, action_repeat=1).environment
    stack, step = wrapped if isinstance(wrapped, FrameStack) else None, stepper(config, state)

    def frames(key: jax.Array) -> Iterator[Frame]:
        try:
            shown = make(env.name, {**env.params, "render_mode": "rgb_array"})
        except Exception as error:  # whatever the environment's code raises
            raise UsageError(f"env = 'gymnasium/{env.name}' cannot be drawn ({reason(error):.200}).") from error
        seed = int(jax.random.bits(key) >> 1)
        with contextlib.closing(shown), _seeded(seed):
            masks = action_masks(shown)
            found, info = shown.reset(seed=seed)
            obs = env.from_gymnasium(found, masks(info))
            obs, steps, total, over, hidden = stack.fill(obs) if stack else obs, 0, 0.0, False, None
            yield Frame(_checked(shown.render()), steps, total, over)
            sampling = None if config.eval_greedy else jax.random.fold_in(key, ACTIONS)
            while not over and steps < max_steps:
                drawn = step_of_noise(config, steps)
                action_key = None if sampling is None else jax.random.fold_in(sampling, drawn)
                action, hidden = step(obs, action_key, hidden)
                for _ in range(config.action_repeat):
                    found, reward, terminated, truncated, info = shown.step(env.to_gymnasium(action))
                    total, over = total + float(reward), bool(terminated or truncated)
                    seen = env.from_gymnasium(found, masks(info))
                    if over or not is_valid(env.action_space, seen, action):
                        break
                obs, steps = stack.push(obs, seen) if stack else seen, steps + 1
                yield Frame(_checked(shown.render()), steps, total, over)

    def told(key: jax.Array) -> Iterator[Frame]:
        try:
            yield from frames(key)
        except (UsageError, ImportError, DependencyNotInstalled):
            raise
        except Exception as error:  # whatever the environment's code raises
            how = f"gymnasium/{env.name} raised {reason(error):.200}; mend the environment"
            if isinstance(error, NotImplementedError):
                how = f"gymnasium/{env.name} has no render() that gives an rgb_array; write it"
            raise HostEnvironmentError(how) from error

    return map(told, keys)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """As a worker seeds an episode; then the generators of this process are as they were."""
    from purejaxppo.envs.host.worker import seed_everything

    before = random.getstate(), np.random.get_state()
    seed_everything(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def _checked(picture: Any) -> np.ndarray:
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise UsageError(f"the renderer gave {array.dtype} {list(array.shape)}, not uint8 [H, W, 3]; correct it.")
    return array
