"""Spaces of observations and actions."""

from typing import Any, NamedTuple


class Box(NamedTuple):
    """Real vectors. `low` and `high` broadcast against `shape`; ±inf where there is no bound."""

    low: Any
    high: Any
    shape: tuple[int, ...]


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
