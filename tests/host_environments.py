"""Gymnasium environments of the tests' own, with known rewards and ends; some that fail on purpose."""

import os
import random
import tempfile
import time

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple


class Clock(gymnasium.Env):
    """Observes (start, step): start is drawn at reset. The reward is the step's number plus the action.

    It terminates after `terminates` steps (drawn starts below 0.5 only). At step `fails_at`, of episodes that started
    below `below`, it does as `how` says; unless there is a file `mended`. Closing it leaves a file in `closes_in`.
    """

    observation_space = Box(-np.inf, np.inf, (2,))
    action_space = Discrete(2)

    def __init__(self, terminates=1000, fails_at=0, how="", below=2.0, mended="", closes_in=""):
        self.terminates, self.fails_at, self.how, self.below = terminates, fails_at, how, below
        self.mended, self.closes_in = mended, closes_in

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.how == "slow reset":
            time.sleep(0.5)
        self.start, self.steps = self.np_random.random(), 0
        return self.observe(), {}

    def observe(self):
        return np.array([self.start, self.steps], np.float64)

    def step(self, action):
        self.steps += 1
        bad = self.steps == self.fails_at and self.start < self.below and not os.path.exists(self.mended)
        if bad:
            self.fail()
        obs, reward = self.observe(), float(self.steps + action)
        if bad and self.how == "nan observation":
            obs[1] = np.nan
        if bad and self.how == "infinite observation":
            obs[:] = np.inf, -np.inf
        if bad and self.how == "short observation":
            obs = obs[:1]
        if bad and self.how == "inf reward":
            reward = np.inf
        return obs, reward, bool(self.start < 0.5 and self.steps >= self.terminates), False, {}

    def close(self):
        if self.closes_in:
            tempfile.mkstemp(dir=self.closes_in)

    def fail(self):
        if self.how == "raise":
            raise ValueError("the spring\nis broken")
        if self.how == "abort":
            os.abort()
        if self.how == "abort and leave a process":
            if os.fork() == 0:  # it has the pipes
                time.sleep(3600)
            os.abort()
        if self.how == "hang":
            time.sleep(3600)
        if self.how == "pause":
            time.sleep(0.5)
        if self.how == "rest":
            time.sleep(0.1)


class Goal(Clock):
    """A success is what terminates: of `terminates=3` an episode of 3 steps, where others take 7."""

    def reset(self, **given):
        return super().reset(**given)[0], {"is_success": False}

    def step(self, action):
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {"is_success": True} if terminated else {}


class Spaces(gymnasium.Env):
    """Every kind of entry; what it is given as an action comes back as the reward."""

    observation_space = Dict(
        {
            "picture": Box(0, 255, (4, 4, 1), np.uint8),
            "place": Discrete(5, start=2),
            "nested": Tuple((MultiBinary(2), MultiDiscrete([3, 4]))),
            "action_mask": MultiBinary(3),
        }
    )

    def __init__(self, actions="discrete"):
        self.action_space = {
            "discrete": Discrete(3, start=-1),
            "multi": MultiDiscrete([3, 2]),
            "binary": MultiBinary(2),
            "box": Box(-2.0, 2.0, (1, 2), np.float64),
            "narrow": Box(-0.4, 0.4, (2,), np.float64),  # which float32 rounds outwards
            "whole": Box(-1, 1, (2,), np.int32),
            "high": Box(5.0, 10.0, (2,), np.float64),
            "odd": Dict({"a": Discrete(2)}),
        }[actions]

    def observe(self):
        return {
            "picture": np.full((4, 4, 1), 200, np.uint8),
            "place": 3,
            "nested": (np.array([0, 1], np.int8), np.array([2, 3])),
            "action_mask": np.array([1, 0, 1], np.int8),
        }

    def reset(self, *, seed=None, options=None):
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return self.observe(), float(np.sum(action)), False, False, {}


class Picture(gymnasium.Env):
    """Shows one colour picture of 6 × 8, always."""

    observation_space = Box(0, 255, (6, 8, 3), np.uint8)
    action_space = Discrete(2)
    shown = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        return self.shown, {}

    def step(self, action):
        return self.shown, 1.0, False, False, {}


class Dice(gymnasium.Env):
    """Throws Python's, NumPy's and its own dice; with a method `action_masks`, or the mask in `info`, or in neither."""

    observation_space = Box(-np.inf, np.inf, (3,))
    action_space = Discrete(3)

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, mask="method", render_mode=None):
        self.where, self.render_mode = mask, render_mode
        if mask == "method":
            self.action_masks = lambda: [True, self.steps % 2 == 0, True]
        if mask == "tuple":  # as `MultiDiscrete.sample` takes it
            self.action_space = MultiDiscrete([1, 2])

    def told(self):
        if self.where == "tuple":
            return {"action_mask": (np.ones(1, np.int8), np.asarray([self.steps % 2 == 0, 1], np.int8))}
        return {"action_mask": np.asarray([1, self.steps % 2 == 0, 1], np.int8)} if self.where == "info" else {}

    def render(self):
        return np.full((4, 4, 3), 20 * self.steps, np.uint8)

    def throw(self):
        return np.asarray([random.random(), np.random.random(), self.np_random.random()])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.throw(), self.told()

    def step(self, action):
        self.steps += 1
        return self.throw(), float(np.sum(action)), False, False, self.told()


class Raw(gymnasium.Env):
    """A constant observation, which may not be in its space, and a mask of any type."""

    action_space = Discrete(3)

    def __init__(self, place=0, mask="float"):
        self.place = place
        kind = {"float": np.float32, "bool": np.bool_, "int": np.int64}[mask]
        self.observation_space = Dict({"action_mask": Box(0, 1, (3,), kind), "place": Discrete(3)})
        self.mask = np.asarray([1, 0, 1], kind)

    def reset(self, *, seed=None, options=None):
        return {"action_mask": self.mask, "place": self.place}, {}

    def step(self, action):
        return self.reset()[0], 0.0, False, False, {}


gymnasium.register("Dice-v0", Dice, max_episode_steps=7)
gymnasium.register("Raw-v0", Raw, max_episode_steps=7)
gymnasium.register("Clock-v0", Clock, max_episode_steps=7)
gymnasium.register("Goal-v0", Goal, max_episode_steps=7)
gymnasium.register("Picture-v0", Picture, max_episode_steps=7)
gymnasium.register("Spaces-v0", Spaces, max_episode_steps=7)
