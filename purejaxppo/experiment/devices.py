"""Runs laid out over devices."""

import inspect
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from purejaxppo.types import UsageError

# LLVM's level 1 instead of 3: PPO on CartPole compiled in 6.4 s instead of 12.0 s and ran as fast (2.7 s, 2.8 s)
QUICK_COMPILATION = {"xla_backend_optimization_level": 1, "xla_cpu_prefer_vector_width": 512}


def use_cpu_cores() -> None:
    """Make every CPU core a JAX device. Has an effect only before JAX's first use, and if the user has not chosen."""
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError:  # JAX is already in use in this process, with the devices that it has
        return


def choose_devices(wanted: int | None) -> list[jax.Device]:
    """The first `wanted` devices, or all."""
    devices = jax.devices()
    if wanted is not None and not 1 <= wanted <= len(devices):
        raise UsageError(f"devices = {wanted} must be within 1 … {len(devices)}, the number of devices here.")
    return devices[:wanted]


def over_runs(fn: Callable[..., Any], devices: Sequence[jax.Device], shared: int = 0, donate: bool = False) -> Any:
    """`fn` for one run, jitted for many: vmapped over the leading axis of its arguments and sharded over devices.

    The last `shared` arguments are the same for all runs; with `donate`, the first is used up. The number of runs must
    be a multiple of the number of devices. No device waits for another: the program has no collectives.
    """
    mesh = Mesh(np.asarray(devices), ("run",), axis_types=(AxisType.Auto,))
    run, same = PartitionSpec("run"), PartitionSpec()
    own = len(inspect.signature(fn).parameters) - shared
    specs = (run,) * own + (same,) * shared
    mapped = jax.vmap(fn, in_axes=(0,) * own + (None,) * shared)
    many = jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=run, check_vma=False)
    return jax.jit(
        many,
        in_shardings=tuple(NamedSharding(mesh, spec) for spec in specs),  # else an argument not used has another one
        donate_argnums=(0,) if donate else (),
        compiler_options=QUICK_COMPILATION if devices[0].platform == "cpu" else None,
    )


def available_bytes(device: jax.Device) -> int | None:
    """Free memory for arrays on a device, where it can be known."""
    if device.platform != "cpu":
        stats = device.memory_stats()
        return stats["bytes_limit"] - stats["bytes_in_use"] if stats else None
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
