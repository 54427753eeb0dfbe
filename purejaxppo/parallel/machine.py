"""What decides the last digits of a run beside its settings and the packages' versions."""

import os
import platform
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax

from purejaxppo.parallel.devices import text_of

_INSTRUCTION_SETS = ("amx_tile", "avx512f", "avx2", "avx", "sse4_2", "asimd")  # the first that there is

_CONTEXTS = (  # JAX's context managers that say how something is computed
    *("default_matmul_precision", "threefry_partitionable", "default_prng_impl", "default_device", "enable_x64"),
    *("debug_nans", "numpy_rank_promotion"),
)


def jax_settings() -> dict[str, str]:
    """Those of JAX that numbers depend on."""
    names = ("jax_threefry_partitionable", "jax_enable_x64", "jax_default_matmul_precision")
    return {name: str(getattr(jax.config, name)) for name in names}


def for_other_thread(work: Callable[..., Any]) -> Callable[..., Any]:
    """`work`, with what JAX's context managers say here, which JAX keeps for each thread apart."""
    here = {name: getattr(jax.config, f"jax_{name}") for name in _CONTEXTS}

    def within(*arguments: Any) -> Any:
        with ExitStack() as stack:
            for name, value in here.items():
                if getattr(jax.config, f"jax_{name}") != value:
                    stack.enter_context(getattr(jax, name)(value))
            return work(*arguments)

    return within


def fingerprint(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Platform and kind of the devices, the CPU's model and instruction set, and JAX's and XLA's settings."""
    device = jax.devices()[0]
    found = {
        "platform": device.platform,
        "device_kind": device.device_kind,
        "XLA_FLAGS": " ".join(sorted(os.environ.get("XLA_FLAGS", "").split())),
    }
    found |= jax_settings()
    if device.platform == "cpu":
        text = text_of(cpuinfo)  # empty where it is not Linux
        model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
        words = {*flags[1].split()} if flags else set()
        found["cpu"] = model[1].strip() if model else platform.processor() or platform.machine()
        found["instructions"] = next((name for name in _INSTRUCTION_SETS if name in words), platform.machine())
    return found
