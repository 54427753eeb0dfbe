"""The platform that is compiled for. Where two formulations of one computation differ only in speed, it decides."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.extend

SMALL = 512  # operations of a function that is small: CartPole's step has 76, Breakout's 238
_platform: ContextVar[str | None] = ContextVar("platform", default=None)


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """What is traced within will run on devices of this `platform`, as `Device.platform` names it."""
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def on_cpu() -> bool:
    """Whether what is now traced will run on CPUs.

    A CPU works through small loops and branches quickly, and does best with what fits into its caches. On an
    accelerator each operation that XLA cannot fuse costs a launch of some microseconds, however small it is: there,
    few operations on large arrays are best.
    """
    return target_platform() == "cpu"


def target_platform() -> str:
    """Where what is now traced will run: as `compiling_for` says, else where JAX puts it by default."""
    platform = _platform.get()
    if platform is None:
        device = jax.config.jax_default_device  # type: ignore[attr-defined]
        platform = getattr(device, "platform", device) or jax.default_backend()
    return str(platform)


def is_small(fn: Callable[..., Any], *args: Any) -> bool:
    """Whether `fn` is so little work that doing it always costs less than a branch: few operations and no loop."""
    return _operations(jax.make_jaxpr(fn)(*args).jaxpr) <= SMALL


def _operations(jaxpr: Any) -> float:
    """How many there are, those of inner functions included; infinitely many where there is a loop or a callback."""
    total = 0.0
    for equation in jaxpr.eqns:
        inner = list(jax.extend.core.jaxprs_in_params(equation.params))
        if equation.primitive.name in ("while", "scan") or "callback" in equation.primitive.name:
            return float("inf")
        total += sum(map(_operations, inner)) if inner else 1
    return total
