"""The fields of a config or an algorithm: what each may be, and what is checked."""

import dataclasses
import math
import numbers
from typing import Any

import jax
from flax import struct

from purejaxppo.errors import UsageError


def number(default: float | None, interval: str, help: str) -> Any:
    """A hyperparameter that may be traced, so that one compiled program serves many values of it."""
    return struct.field(default=default, metadata={"interval": interval, "help": help, "type": float})


def limitless(bound: Any) -> bool:
    """Whether a number is inf and not traced: what it would limit need not be compiled."""
    return not isinstance(bound, jax.Array) and bound == math.inf


def static(default: Any, help: str, *, interval: str = "", choices: tuple[str, ...] = ()) -> Any:
    """A hyperparameter that sets shapes or program structure: another value is another compile."""
    metadata = {"interval": interval, "choices": choices, "help": help}
    return struct.field(pytree_node=False, default=default, metadata=metadata)


def check_field(field: "dataclasses.Field[Any]", value: Any, usual: Any) -> None:
    """Hold one value against the type, interval and choices that its field declares; `usual` is the way out."""
    choices, interval = field.metadata.get("choices", ()), field.metadata.get("interval", "")
    whole = field.metadata.get("type") is not float
    if isinstance(value, jax.Array):
        if whole and interval:
            raise UsageError(f"{field.name} = {value!r} is static and cannot be an array; pass a Python number.")
        return  # traced, or one value per run
    if choices and value not in choices:
        raise UsageError(f"{field.name} = {value!r} is not one of: {', '.join(choices)}; the default is {usual}.")
    if isinstance(usual, bool) and not isinstance(value, bool):
        raise UsageError(f"{field.name} = {value!r} must be True or False; the default is {usual}.")
    if not interval:
        return
    if isinstance(usual, tuple) and not isinstance(value, tuple):
        raise UsageError(f"{field.name} = {value!r} must be a tuple; the default is {usual}.")
    for x in value if isinstance(value, tuple) else (value,):
        valid = isinstance(x, numbers.Integral if whole else numbers.Real) and not isinstance(x, bool)
        if not valid or not _within(x, interval):
            kind = "a whole number" if whole else "a number"
            raise UsageError(f"{field.name} = {x!r} must be {kind} in {interval}; the default is {usual}.")


def _within(x: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = x >= low if interval[0] == "[" else x > low
    return above and (x <= high if interval[-1] == "]" else x < high)
