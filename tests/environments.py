"""Small environments with known answers; each probes one thing. Frozen dataclasses, so equal ones compile once."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from purejaxppo.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space
from purejaxppo.tabular import MDP

THREE = Discrete(3)
REAL_LINE = (-jnp.inf, jnp.inf)


class Count(NamedTuple):
    """A state that knows only how many steps its episode has had."""

    steps: jax.Array


@dataclasses.dataclass(frozen=True)
class StepCounter:
    """Reward 1 each step; the observation is the step counter; after `limit` steps it is cut off, or ends."""

    limit: int = 5
    terminates: bool = False

    @property
    def observation_space(self) -> Box:
        return Box(*REAL_LINE, (1,))

    @property
    def action_space(self) -> Space:
        return Discrete(2)

    def observe(self, steps):
        return steps.astype(jnp.float32)[None]

    def reset(self, key):
        steps = jnp.zeros((), jnp.int32)
        return Count(steps), self.observe(steps)

    def step(self, key, state, action):
        steps = state.steps + 1
        over = steps >= self.limit
        never = jnp.zeros((), bool)
        ends = (over, never) if self.terminates else (never, over)
        return Count(steps), self.observe(steps), jnp.ones(()), *ends


class WithGoal(StepCounter):
    """Computes a constant of its own when it is made."""

    def __init__(self):
        self.goal = jnp.asarray([0.5, 0.25]) * 2

    def observe(self, steps):
        return super().observe(steps) + self.goal[0]


@dataclasses.dataclass(frozen=True)
class ConstantReward(StepCounter):
    """The same, but the observation is always 1: nothing in it tells how much time is left."""

    def observe(self, steps):
        return jnp.ones(1)


@dataclasses.dataclass(frozen=True)
class OneHotCounter(StepCounter):
    """The same, with the step counter as a one-hot vector."""

    @property
    def observation_space(self) -> Box:
        return Box(0.0, 1.0, (self.limit + 1,))

    def observe(self, steps):
        return jax.nn.one_hot(steps, self.limit + 1)


class Position(NamedTuple):
    """Where a walker stands, or what an episode drew at the start; and since when."""

    x: jax.Array
    steps: jax.Array


@dataclasses.dataclass(frozen=True)
class RandomStart:
    """Observation (start, steps), with the start drawn from the reset key and kept until the time limit."""

    limit: int = 4

    @property
    def observation_space(self) -> Box:
        return Box(*REAL_LINE, (2,))

    @property
    def action_space(self) -> Space:
        return Discrete(2)

    def observe(self, state):
        return jnp.stack([state.x, state.steps.astype(jnp.float32)])

    def reset(self, key):
        state = Position(jax.random.uniform(key), jnp.zeros((), jnp.int32))
        return state, self.observe(state)

    def step(self, key, state, action):
        state = state._replace(steps=state.steps + 1)
        return state, self.observe(state), jnp.ones(()), jnp.zeros((), bool), state.steps >= self.limit


@dataclasses.dataclass(frozen=True)
class RandomLength(RandomStart):
    """Ends after a number of steps, 1 … `limit`, drawn at the start; the reward of step t is t, so R = L (L + 1) / 2.

    Every other length is a truncation.
    """

    limit: int = 6

    def reset(self, key):
        state = Position(jax.random.randint(key, (), 1, self.limit + 1).astype(jnp.float32), jnp.zeros((), jnp.int32))
        return state, self.observe(state)

    def step(self, key, state, action):
        state = state._replace(steps=state.steps + 1)
        over, odd = state.steps >= state.x, state.x % 2 == 1
        return state, self.observe(state), state.steps.astype(jnp.float32), over & odd, over & ~odd


@dataclasses.dataclass(frozen=True)
class Bandit(StepCounter):
    """One step; reward 1 for action 1, else 0."""

    limit: int = 1
    terminates: bool = True

    def step(self, key, state, action):
        state, obs, _, terminated, truncated = super().step(key, state, action)
        return state, obs, (action == 1).astype(jnp.float32), terminated, truncated


@dataclasses.dataclass(frozen=True)
class ActionRecorder(RandomStart):
    """The observation is the action that the environment received, which the bounds keep within ±½."""

    limit: int = 8

    @property
    def action_space(self) -> Space:
        return Box(-0.5, 0.5, (2,))

    def reset(self, key):
        return Count(jnp.zeros((), jnp.int32)), jnp.zeros(2)

    def step(self, key, state, action):
        steps = state.steps + 1
        return Count(steps), action, -jnp.sum(action**2), jnp.zeros((), bool), steps >= self.limit


@dataclasses.dataclass(frozen=True)
class Walk(RandomStart):
    """A noisy walk on a line, with everything that an option can bear on.

    Observation (x, steps); x starts within ±0.1, moves by the action, is rewarded by x and the action; beyond ±1 the
    episode ends, at `limit` steps it is cut off. Discrete actions 0 and 1, or one in ±1.
    """

    limit: int = 9
    continuous: bool = False

    @property
    def action_space(self) -> Space:
        return Box(-1.0, 1.0, (1,)) if self.continuous else Discrete(2)

    def reset(self, key):
        state = Position(jax.random.uniform(key, minval=-0.1, maxval=0.1), jnp.zeros((), jnp.int32))
        return state, self.observe(state)

    def step(self, key, state, action):
        force = action[0] if self.continuous else 2.0 * action - 1.0
        x = state.x + 0.25 * force + 0.1 * jax.random.normal(key)
        state = Position(x, state.steps + 1)
        terminated = jnp.abs(x) > 1.0
        return state, self.observe(state), 1.0 + x - 0.1 * force, terminated, (state.steps >= self.limit) & ~terminated


def returns_of(lengths):
    """The return of a complete `RandomLength` episode of each length."""
    return lengths * (lengths + 1) / 2


@dataclasses.dataclass(frozen=True)
class Probe:
    """One step. x is -1 or 1, and the best action follows from it; that one is rewarded by 1, others by less.

    Observed as a vector, an integer, or a dict with the entries `side` (x), `noise` and, where `mask` forbids some
    actions, `action_mask`. Action 0 (of each factor) is then forbidden, and pays 10.
    """

    action_space: Space = THREE
    observes: str = "vector"
    mask: tuple[bool, ...] = ()

    @property
    def observation_space(self):
        entries = {"side": Box(-1.0, 1.0, (1,)), "noise": Box(*REAL_LINE, (2, 2))}
        if self.mask:
            entries["action_mask"] = MultiBinary(len(self.mask))
        return {"vector": entries["side"], "integer": Discrete(2), "dict": entries}[self.observes]

    def observe(self, x, key):
        entries = {"side": x[None], "noise": jax.random.normal(key, (2, 2))}
        if self.mask:
            entries["action_mask"] = jnp.asarray(self.mask)
        return {"vector": x[None], "integer": (x > 0).astype(jnp.int32), "dict": entries}[self.observes]

    def reset(self, key):
        x = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
        return x, self.observe(x, key)

    def step(self, key, state, action):
        positive, space = (state > 0).astype(jnp.int32), self.action_space
        if isinstance(space, Box):
            target = space.low + (space.high - space.low) * (0.5 + 0.25 * state)
            reward = 1.0 - 4.0 * jnp.mean(jnp.abs(action - target)) / (space.high - space.low)
        elif isinstance(space, MultiBinary):
            reward = jnp.mean(action == jnp.arange(space.n) % 2 ^ positive)
        else:
            n = jnp.asarray(space.nvec if isinstance(space, MultiDiscrete) else [space.n])
            reward = jnp.mean(jnp.atleast_1d(action) == n - 1 - positive)
            reward = jnp.where(jnp.any(action == 0) & bool(self.mask), 10.0, reward)
        yes = jnp.ones((), bool)
        return state, self.observe(state, key), reward.astype(jnp.float32), yes, ~yes


@dataclasses.dataclass(frozen=True)
class Recall(Probe):
    """The same, but x is seen only at the start, 0 in its place after that, and what pays is the action `delay` later.

    Who does not remember x has at most the better half of the probe's reward.
    """

    delay: int = 3

    def reset(self, key):
        x, obs = super().reset(key)
        return Position(x, jnp.zeros((), jnp.int32)), obs

    def step(self, key, state, action):
        _, obs, reward, yes, no = super().step(key, state.x, action)
        obs = self.observe(0.0 * state.x, key)
        state = state._replace(steps=state.steps + 1)
        over = state.steps > self.delay
        return state, obs, jnp.where(over, reward, 0.0), over & yes, no


@dataclasses.dataclass(frozen=True, eq=False)
class RestartingMDP:
    """A `tabular.MDP` that ends with probability 1-γ after each step: its undiscounted returns are the discounted ones.

    The observation is the state's number.
    """

    mdp: MDP

    @property
    def observation_space(self) -> Discrete:
        return Discrete(self.mdp.reward.shape[0])

    @property
    def action_space(self) -> Discrete:
        return Discrete(self.mdp.reward.shape[1])

    def reset(self, key):
        state = jax.random.categorical(key, jnp.log(self.mdp.start))
        return state, state

    def step(self, key, state, action):
        next_key, end_key = jax.random.split(key)
        reached = jax.random.categorical(next_key, jnp.log(self.mdp.transition[state, action]))
        ends = jax.random.bernoulli(end_key, 1.0 - self.mdp.gamma)
        return reached, reached, self.mdp.reward[state, action], ends, jnp.zeros((), bool)
