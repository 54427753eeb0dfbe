"""The devices that there are: how many, with how many threads, with how much memory."""

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path

import jax

from purejaxppo.errors import UsageError


def use_cpu_cores(alone: bool = False) -> None:
    """Make every CPU core a JAX device; or, for one small run alone, have one device and one thread.

    XLA hands operations to threads that are idle, and a run alone wanders between cores: most small ones take 1.1 to
    1.4 times as long with a second thread. Last digits depend on the number of threads.

    Has an effect only before JAX's first use, and if the user has not chosen: by XLA_FLAGS, NPROC or PJRT_NPROC.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    accelerated = os.environ.get("JAX_PLATFORMS") != "cpu" and importlib.util.find_spec("jax_plugins") is not None
    alone = alone and not accelerated and _chosen_threads() is None
    try:
        jax.config.update("jax_num_cpu_devices", 1 if alone else _cores())
    except RuntimeError:  # JAX is already in use in this process, with the devices that it has
        return
    if alone:
        os.environ["PJRT_NPROC"] = "1"


def threads() -> int | None:
    """How many XLA divides the CPU's work among; None where work is done elsewhere."""
    if jax.default_backend() != "cpu":
        return None
    return max(_chosen_threads() or _cores(), jax.local_device_count())


def _chosen_threads() -> int | None:
    """What XLA reads in this order when it starts; each device has a thread all the same."""
    values = (os.environ.get(name, "") for name in ("PJRT_NPROC", "NPROC"))
    return next((int(value) for value in values if value.isdecimal()), None)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_devices(wanted: int | None) -> list[jax.Device]:
    """The first `wanted` devices, or all."""
    devices = jax.devices()
    if wanted is not None and not 1 <= wanted <= len(devices):
        raise UsageError(f"devices = {wanted} must be within 1 … {len(devices)}, the number of devices here.")
    return devices[:wanted]


def available_bytes(devices: Sequence[jax.Device]) -> int | None:
    """Free memory for arrays on each device, where it can be known. A CPU's devices share one memory."""
    if devices[0].platform != "cpu":
        stats = devices[0].memory_stats()
        return stats["bytes_limit"] - stats["bytes_in_use"] if stats else None
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 // len(devices) if found else None
