"""Gymnasium environments for `survival_promises.py`: one is slow while a file exists, one fails for some policies."""

import os
import time

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete


class Slow(gymnasium.Env):
    """Episodes of 7 steps, each of which takes half a second while there is a file `slow`."""

    observation_space = Box(-1.0, 1.0, (2,))
    action_space = Discrete(2)

    def __init__(self, slow: str = "") -> None:
        self.slow = slow

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def observe(self):
        return self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)

    def step(self, action):
        if self.slow and os.path.exists(self.slow):
            time.sleep(0.5)
        return self.observe(), float(action), False, False, {}


class Monotony(Slow):
    """Raises once it has been given the same action 80 times on end, as a policy does that learns by huge steps."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.times = -1, 0

    def observe(self):
        return np.ones(2, np.float32)

    def step(self, action):
        self.times = self.times + 1 if action == self.last else 1
        self.last = action
        if self.times == 80:
            raise ValueError("the lever is stuck")
        return super().step(action)


gymnasium.register("Slow-v0", Slow, max_episode_steps=7)
gymnasium.register("Monotony-v0", Monotony, max_episode_steps=7)
