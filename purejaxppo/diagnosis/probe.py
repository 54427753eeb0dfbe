"""Short checks on a run's environment itself: a fresh policy acts in it, and the trained one, if there is one."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.agent import Agent
from purejaxppo.config import Config
from purejaxppo.envs.base import host_failures
from purejaxppo.networks.torso import are_bytes
from purejaxppo.precision import single_precision
from purejaxppo.rollout import begin_episodes, environment_action, rollout, step_envs
from purejaxppo.spaces import ACTION_MASK, Box, Discrete
from purejaxppo.train import init
from purejaxppo.types import RolloutState, TrainState, Transition

STEPS, ENVS = 500, 16
ON_HOST = 200, 4
ACTIONS = 8  # that are tried in each state
AHEAD = 100  # steps that returns are compared over


class ProbeResult(NamedTuple):
    """What was found; None where it cannot be known, as on the host, whose environments have no state to go back to."""

    episodes: int  # that ended
    returns: np.ndarray  # [episodes] of a fresh policy
    length: float  # median length of an episode; NaN if none ended
    ends_at_limit_as_terminated: bool  # all after the same number of steps, and all by `terminated`
    rewards: tuple[float, float]  # the least and the greatest
    observation_std: np.ndarray | None  # of each entry as the network takes it; 1 of a `Discrete` one that varies
    not_finite: str  # "", or what held NaN or infinity
    reproducible: bool | None
    actions_matter: bool | None
    at_bounds: float | None  # share of the trained policy's actions
    one_valid_action: float = math.nan  # share of the states; NaN without masks
    action_effect: float = math.nan  # how far returns vary with the actions alone, see `effect_of_actions`; or unknown


def probe(config: Config, trained: TrainState | None = None) -> ProbeResult:
    """Act for a few hundred steps.

    Args:
        trained: the state of one trained seed.

    Raises:
        HostEnvironmentError: an environment on the host failed.
    """
    agent = Agent.of(config)
    steps, envs = ON_HOST if agent.env.on_host else (STEPS, ENVS)
    with agent.env, host_failures(agent.env):
        fresh = jax.jit(partial(init, config))(jax.random.key(0))
        begun, seen = _act(agent, fresh, steps, envs)
        same, matter = (None, None) if agent.env.on_host else _step_again(agent, fresh, begun)
        effect = math.nan if agent.env.on_host else effect_of_actions(agent, fresh, begun)
        returns, lengths, limit = _episodes(seen)
        parts = {"observations": (seen.obs, seen.next_obs), "rewards": seen.reward}
        bad = [name for name, x in parts.items() if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(x))]
        return ProbeResult(
            episodes=len(returns),
            returns=returns,
            length=float(np.median(lengths)) if lengths.size else math.nan,
            ends_at_limit_as_terminated=limit,
            rewards=(float(np.min(seen.reward)), float(np.max(seen.reward))),
            observation_std=_deviations(agent, seen),
            not_finite=" and ".join(bad),
            reproducible=same,
            actions_matter=matter,
            at_bounds=_at_bounds(agent, trained, steps, envs),
            one_valid_action=_one_valid_action(agent.env.action_space, seen.obs),
            action_effect=effect,
        )


def _act(agent: Agent, state: TrainState, steps: int, envs: int) -> tuple[RolloutState, Transition]:
    """A rollout [steps, envs] of a state's policy, on the host, and where the environments then are."""

    @jax.jit
    def act(state: TrainState) -> tuple[RolloutState, Transition]:
        start_key, key = jax.random.split(jax.random.key(1))
        begun = begin_episodes(start_key, agent.env, envs)
        begun = begun._replace(hidden=agent.policy.initial_hidden(begun.obs))
        ended, transitions, _ = rollout(key, agent.env, agent.make_policy(state), begun, steps)
        return ended, transitions

    ended, transitions = act(state)
    return ended, jax.device_get(transitions)


@single_precision
def _step_again(agent: Agent, state: TrainState, begun: RolloutState) -> tuple[bool, bool]:
    """Whether the same key, state and action give the same step, and whether other actions give another."""

    @jax.jit
    def step(key: jax.Array) -> Any:
        envs = len(begun.episode_length)
        distribution, _ = agent.make_policy(state)(begun.obs, begun.hidden, begun.episode_length == 0)
        keys = jax.random.split(jax.random.key(2), envs)
        (_, *found), _ = step_envs(keys, agent.env, begun.env, distribution, distribution.sample(key))
        return found

    first, again = (jax.device_get(step(jax.random.key(3))) for _ in range(2))
    others = [jax.device_get(step(jax.random.key(3 + i))) for i in range(1, ACTIONS)]

    def equal(a: Any, b: Any) -> bool:
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return all(np.array_equal(x, y, equal_nan=True) for x, y in pairs)

    return equal(first, again), not all(equal(first, other) for other in others)


@single_precision
def effect_of_actions(agent: Agent, state: TrainState, begun: RolloutState) -> float:
    """The standard deviation of returns that is due to the actions, as a share of all of it; 0 if returns never vary.

    A fresh policy acts several times from each state, with other random actions each time, and the same keys for the
    environment. So what differs between these tries is due to actions alone: σ² within a state, averaged over states.
    Returns are undiscounted, up to the end of the episode or for `AHEAD` steps.
    """
    envs = len(begun.episode_length)
    policy = agent.make_policy(state)
    env_keys = jax.random.split(jax.random.key(4), (AHEAD, envs))

    def step(carry: Any, keys: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        now, goes_on, total = carry
        distribution, hidden = policy(now.obs, now.hidden, now.episode_length == 0)
        action = distribution.sample(keys[1])
        stepped, _ = step_envs(keys[0], agent.env, now.env, distribution, action)
        env, obs, reward, terminated, truncated = stepped
        now = now._replace(env=env, obs=obs, hidden=hidden, episode_length=now.episode_length + 1)
        return (now, goes_on & ~(terminated | truncated), total + jnp.where(goes_on, reward, 0.0)), None

    def play(key: jax.Array) -> jax.Array:
        start = (begun, jnp.ones(envs, bool), jnp.zeros(envs))
        return jax.lax.scan(step, start, (env_keys, jax.random.split(key, AHEAD)))[0][2]

    tries = jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(5), ACTIONS))
    returns = np.asarray(tries, np.float64)  # [ACTIONS, envs]
    everything = returns.std()
    return float(np.sqrt(returns.var(axis=0, ddof=1).mean()) / everything) if everything else 0.0


def _episodes(seen: Transition) -> tuple[np.ndarray, np.ndarray, bool]:
    """Returns and lengths of those that ended, and whether a time limit seems to be told as their termination."""
    done = seen.terminated | seen.truncated
    returns, lengths, total, begin = [], [], np.zeros(done.shape[1]), np.zeros(done.shape[1], int)
    for t in range(len(done)):
        total += seen.reward[t]
        for i in np.flatnonzero(done[t]):
            returns.append(total[i])
            lengths.append(t + 1 - begin[i])
            total[i], begin[i] = 0.0, t + 1
    alike = len(lengths) >= done.shape[1] and len({*lengths}) == 1 and lengths[0] >= 10
    return np.array(returns), np.array(lengths), bool(alike and not seen.truncated.any())


def _deviations(agent: Agent, seen: Transition) -> np.ndarray | None:
    """[entries] of the observations as they are before normalisation."""
    obs, space = jax.device_get(agent.clip(seen.obs)), agent.env.observation_space
    entries, spaces = (x if isinstance(x, dict) else {"": x} for x in (obs, space))
    found = []
    for name, x in entries.items():
        if name != ACTION_MASK and x.size:
            deviation = np.asarray(x, np.float64).reshape(seen.reward.size, -1).std(axis=0)
            if isinstance(spaces[name], Discrete):  # is embedded
                deviation = np.sign(deviation)
            found.append(deviation / 255.0 if are_bytes(spaces[name], x.dtype) else deviation)
    return np.concatenate(found) if found else None


def _one_valid_action(space: Any, obs: Any) -> float:
    """The share of observations whose mask leaves one action: one of each factor, where there are several."""
    if not isinstance(obs, dict) or ACTION_MASK not in obs:
        return math.nan
    return float((obs[ACTION_MASK].sum(axis=-1) == len(getattr(space, "nvec", (0,)))).mean())


def _at_bounds(agent: Agent, trained: TrainState | None, steps: int, envs: int) -> float | None:
    """The share of the trained policy's actions that lie at a bound, once they are bounded."""
    space = agent.env.action_space
    if (
        trained is None
        or not isinstance(space, Box)
        or not np.isfinite([*np.ravel(space.low), *np.ravel(space.high)]).all()
    ):
        return None
    _, seen = _act(agent, trained, steps, envs)
    action = np.asarray(environment_action(space, seen.distribution, jnp.asarray(seen.action)))
    margin = 1e-3 * (np.asarray(space.high) - np.asarray(space.low))
    return float(((action <= space.low + margin) | (action >= space.high - margin)).mean())
