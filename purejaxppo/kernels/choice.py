"""Which of two equal programs is compiled: a kernel of ours, or what XLA makes of the same operations."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

import jax
import jax.extend

from purejaxppo.errors import UsageError
from purejaxppo.kernels.memory import is_interpreted
from purejaxppo.kernels.padding import NoKernelError
from purejaxppo.parallel.mesh import shards
from purejaxppo.platforms import target_platform

KERNELS = ("auto", "xla", "pallas")
Result = TypeVar("Result")
_notes: ContextVar[list[str] | None] = ContextVar("notes", default=None)


@contextlib.contextmanager
def noted() -> Iterator[list[str]]:
    """A list to which each part of a program that is traced within adds what became of it, one line each."""
    notes: list[str] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def kernel_or_xla(
    kernels: str, part: str, by_kernel: Callable[[], Result], by_xla: Callable[[], Result], pays_if_exact: bool = False
) -> Result:
    """The `part` of a program as `kernels`, one of `KERNELS`, asks for it. `auto` takes a kernel where there is one.

    If products are to be exact, it does so only where a kernel still pays, as matrix units have no float32. Estimated
    for an H100: PPO by kernels 41 ms an update, by XLA 19 ms.

    Raises:
        UsageError: `pallas` was asked for, and there is none for this part or on this platform.
    """
    if kernels == "xla" or (kernels == "auto" and not _has_kernels()):
        return by_xla()
    try:
        if not _has_kernels():
            raise NoKernelError(f"they are for NVIDIA GPUs, and this is compiled for a {target_platform()}")
        if shards() > 1:
            raise NoKernelError("several devices share a run")
        if kernels == "auto" and not pays_if_exact and _is_exact():
            raise NoKernelError("its products would take longer than by XLA with the highest precision")
        result = by_kernel()
    except NoKernelError as reason:
        if kernels == "pallas":
            raise UsageError(f"kernels = 'pallas' cannot be had for {part}: {reason}; leave it at auto.") from None
        _note(f"{part}: XLA, not one kernel: {reason}")
        return by_xla()
    _note(f"{part}: one kernel")
    return result


def check_kernels(kernels: str) -> None:
    """Refuse `pallas` where no program could have a kernel. Raises: UsageError."""
    if kernels == "pallas" and not _has_kernels():
        raise UsageError(
            f"kernels = 'pallas' is for NVIDIA GPUs, and this is compiled for a {target_platform()}; leave it at auto."
        )


def _is_exact() -> bool:
    return jax.config.jax_default_matmul_precision in ("highest", "float32")  # type: ignore[attr-defined]


def _has_kernels() -> bool:
    nvidia = "rocm" not in jax.extend.backend.get_backend().platform_version
    return is_interpreted() or (target_platform() in ("gpu", "cuda") and nvidia)


def _note(line: str) -> None:
    notes = _notes.get()
    if notes is not None and line not in notes:
        notes.append(line)
