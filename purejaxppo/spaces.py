"""Spaces of observations and actions."""

from typing import Any, NamedTuple

import numpy as np


class Box(NamedTuple):
    """Real vectors. `low` and `high` broadcast against `shape`; ±inf where there is no bound."""

    low: Any
    high: Any
    shape: tuple[int, ...]

    def __repr__(self) -> str:
        return describe(self)


class Discrete(NamedTuple):
    """Integers 0 … n-1."""

    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        return ()


class MultiDiscrete(NamedTuple):
    """Vectors of integers, the i-th from 0 … nvec[i]-1."""

    nvec: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.nvec),)


class MultiBinary(NamedTuple):
    """Vectors of n zeros and ones."""

    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)


Space = Box | Discrete | MultiDiscrete | MultiBinary
ObservationSpace = Any  # a Box, a Discrete, or a dict of them, with or without an action mask, a MultiBinary
ACTION_MASK = "action_mask"  # the entry of an observation that says which actions are valid


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether images of such a shape are [C, H, W] rather than [H, W, C].

    As in Stable-Baselines3 the smallest axis holds the channels; and the rest is a square, or large beside them.
    """
    channels, *sides = shape
    return len(sides) == 2 and channels < min(sides) and (sides[0] == sides[1] or min(sides) >= min(2 * channels, 36))


def describe(space: Any) -> str:
    """A space, ours or Gymnasium's, in a few words: of a box its shape, least and greatest bound, not all of them."""
    if not hasattr(space, "low"):
        return " ".join(repr(space).split())
    low = np.min(np.asarray(space.low, float), initial=np.inf)
    high = np.max(np.asarray(space.high, float), initial=-np.inf)
    dtype = f", {space.dtype}" if hasattr(space, "dtype") else ""
    return f"{type(space).__name__}({low:g}, {high:g}, {space.shape}{dtype})"
