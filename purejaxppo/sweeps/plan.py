"""Which settings share a program, and how many of them fit into memory at once."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax

from purejaxppo.config import Config
from purejaxppo.parallel.devices import available_bytes, process_bytes, require_memory
from purejaxppo.sweeps.axes import Settings, label, traced

Compiled = TypeVar("Compiled")


class SettingsGroup(NamedTuple):
    """Settings whose static fields are equal: one program serves them all."""

    static: Settings  # that they have in common, of those that are swept
    swept: tuple[str, ...]  # the numbers in which they differ
    members: list[int]  # which settings

    @property
    def name(self) -> str:
        return label(self.static) or "all"


def group_settings(config: Config, settings: Sequence[Settings]) -> list[SettingsGroup]:
    """In the order in which the groups first appear."""
    members: dict[str, list[int]] = {}
    numbers = [name for name in settings[0] if traced(config, name)]
    statics = [{name: x for name, x in own.items() if name not in numbers} for own in settings]
    for i, static in enumerate(statics):
        members.setdefault(repr(static), []).append(i)

    def swept(own: list[int]) -> tuple[str, ...]:
        return tuple(name for name in numbers if len({settings[i][name] for i in own}) > 1)

    return [SettingsGroup(statics[own[0]], swept(own), own) for own in members.values()]


def fit(
    compiled: Callable[[int], Compiled],
    device_bytes: Callable[[Compiled], int],
    count: int,
    devices: list[jax.Device],
    at_most: int | None = None,
) -> tuple[Compiled, int]:
    """A program for `count` settings at once, or else for as many as fit, in batches of equal size.

    Args:
        compiled: a number of settings ↦ their program.
        device_bytes: what it takes on each device.
        at_most: so many settings at once; None: all.

    Returns:
        The program, and the number of settings that it is for.

    Raises:
        UsageError: not even one fits.
    """
    at_once, free = batch_size(count, at_most or count), available_bytes(devices)
    while True:
        program = compiled(at_once)
        need = process_bytes(device_bytes(program), devices)
        if free is None or need <= free:
            return program, at_once
        if at_once == 1:
            require_memory(need, devices, "all seeds of one setting", "--num-seeds, --num-envs or --num-steps")
        fewer = max(1, min(at_once - 1, int(at_once * free / need)))
        at_once = batch_size(count, fewer)


def batch_size(count: int, at_most: int) -> int:
    """Of the fewest batches, as equal as can be."""
    return -(-count // -(-count // at_most))


def batches(members: Sequence[Any], size: int) -> list[list[Any]]:
    return [list(members[i : i + size]) for i in range(0, len(members), size)]
