"""The devices that there are: how many, with how many threads, with how much memory."""

import contextlib
import importlib.util
import math
import os
import re
import resource
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax

from purejaxppo.errors import UsageError, reason


def use_cpu_cores(alone: bool = False) -> None:
    """Make every CPU core a JAX device; or, for one small run alone, have one device and one thread.

    XLA hands operations to threads that are idle, and a run alone wanders between cores: most small ones take 1.1 to
    1.4 times as long with a second thread. Last digits depend on the number of threads.

    Has an effect only before JAX's first use, after which it warns that cores are not devices; and if neither XLA_FLAGS
    nor JAX_NUM_CPU_DEVICES say how many there are. Who sets NPROC or PJRT_NPROC has chosen the number of threads.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    accelerated = os.environ.get("JAX_PLATFORMS") != "cpu" and importlib.util.find_spec("jax_plugins") is not None
    alone, cores = alone and not accelerated and _chosen_threads() is None, cpu_cores()
    try:
        jax.config.update("jax_num_cpu_devices", 1 if alone else cores)
    except RuntimeError:  # JAX is already in use in this process, with the devices that it has
        if jax.default_backend() == "cpu" and jax.local_device_count() == 1 < cores and not alone:
            warnings.warn(
                f"use_cpu_cores() came after JAX's first use and changes nothing: 1 of {cores} CPU cores is a device; "
                "call it before anything else that uses JAX.",
                stacklevel=2,
            )
        return
    if alone or (cores < _schedulable_cores() and _chosen_threads() is None):
        os.environ["PJRT_NPROC"] = "1" if alone else str(cores)


def threads() -> int | None:
    """How many XLA divides the CPU's work among; None where work is done elsewhere."""
    if jax.default_backend() != "cpu":
        return None
    return max(_chosen_threads() or _schedulable_cores(), jax.local_device_count())


def _chosen_threads() -> int | None:
    """What XLA reads in this order when it starts; each device has a thread all the same."""
    values = (os.environ.get(name, "") for name in ("PJRT_NPROC", "NPROC"))
    return next((int(value) for value in values if value.isdecimal()), None)


def _schedulable_cores() -> int:
    """As XLA counts them, which knows of no quota."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_cores(root: Path = Path("/")) -> int:
    """How many this process may use: those it may be scheduled on, or the quota of its control group if that is less.

    `root` holds `proc` and `sys`.
    """
    quotas = [math.inf]
    for group in _control_groups("cpu", root):
        if "max" in (limit := _words(group / "cpu.max")) or len(limit) != 2:  # version 2; else version 1
            limit = [*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]
        if len(limit) == 2 and int(limit[0]) > 0 < int(limit[1]):
            quotas.append(int(limit[0]) / int(limit[1]))
    return max(1, int(min(_schedulable_cores(), *quotas)))


def choose_devices(wanted: int | Sequence[jax.Device] | None) -> list[jax.Device]:
    """The first `wanted` devices, or all. Raises: UsageError, there are not so many, or JAX cannot find any."""
    if not isinstance(wanted, int | None):
        chosen = [*wanted] if isinstance(wanted, Iterable) else []
        if not chosen or not all(isinstance(device, jax.Device) for device in chosen):
            raise UsageError(f"devices = {wanted!r:.80} must be how many, or a list of some of jax.devices().")
        return chosen
    try:
        devices = sorted(jax.devices(), key=lambda device: device.process_index)
    except (AssertionError, RuntimeError) as error:  # as JAX says it
        asked = str(jax.config.values["jax_platforms"])
        extra = "jax[tpu]" if "tpu" in asked else "purejaxppo[cuda]"
        raise UsageError(
            f"JAX_PLATFORMS = {asked!r} cannot be used here ({reason(error):.200}); unset it, or pip install '{extra}' "
            "where there is such a device."
        ) from error
    if wanted is not None and not 1 <= wanted <= len(devices):
        raise UsageError(f"devices = {wanted} must be within 1 … {len(devices)}, the number of devices here.")
    return devices if wanted is None else first_devices(devices, wanted)


def first_devices(devices: list[jax.Device], count: int) -> list[jax.Device]:
    """So many of them, where that can be equally many of each process."""
    processes = sorted({device.process_index for device in devices})
    if count % len(processes):
        return devices[:count]
    each = count // len(processes)
    own = ([device for device in devices if device.process_index == process][:each] for process in processes)
    chosen = [device for some in own for device in some]
    return chosen if len(chosen) == count else devices[:count]


def available_bytes(devices: Sequence[jax.Device]) -> int | None:
    """Free memory for arrays on each of this process's devices, where it can be known. A CPU's share one memory."""
    devices = [device for device in devices if device.process_index == jax.process_index()]
    if devices[0].platform != "cpu":
        stats = devices[0].memory_stats()
        return stats["bytes_limit"] - stats["bytes_in_use"] if stats else None
    free = free_memory()
    return None if free is None else free // len(devices)


def process_bytes(program: int, devices: Sequence[jax.Device]) -> int:
    """What a process takes for a program that takes so many bytes on each device by XLA's account.

    On CPUs 1.6 times as much were measured, as not all memory that is freed is given back. Elsewhere there are gaps
    between arrays.
    """
    return int(program * (1.6 if devices[0].platform == "cpu" else 1.15))


def require_memory(need: int, devices: Sequence[jax.Device], what: str, way: str) -> None:
    """Raises: UsageError: `what` needs so many bytes on each device, more than are free; lower `way`."""
    free = available_bytes(devices)
    if free is not None and need > free:
        raise UsageError(
            f"{what} need about {need / 2**30:,.1f} GiB on each of {len(devices)} devices and {free / 2**30:,.1f} GiB "
            f"are free; lower {way}."
        )


def most_open_files() -> int:
    """How many this process may have open beside those that libraries do; its limit is raised as far as may be."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if most == resource.RLIM_INFINITY else min(most, 65_536)
    if now != resource.RLIM_INFINITY and now < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has another limit, of which it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
            now = wanted
    return max(1, (wanted if now == resource.RLIM_INFINITY else now) - 256)


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take of the machine's, its control groups' and its own limit (RLIMIT_AS)."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", text_of(root / "proc/meminfo"))
    free = [int(found[1]) * 1024] if found else []
    for group in _control_groups("memory", root):
        for names in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, now = (_words(group / name) for name in names)
            if most and now and most[0].isdecimal():
                cache = re.search(r"^(?:total_)?inactive_file (\d+)", text_of(group / "memory.stat"), re.MULTILINE)
                free.append(max(0, int(most[0]) - int(now[0]) + (int(cache[1]) if cache else 0)))
    pages = _words(root / "proc/self/statm")
    if pages and (most_virtual := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        free.append(max(0, most_virtual - int(pages[0]) * resource.getpagesize()))
    return min(free, default=None)


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """The directories of this process's control group and of all above it, version 2 (no controllers) or 1.

    A container may see its own group as the topmost, though its path says otherwise.
    """
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.lstrip("/")
        while group != top:
            yield group
            group = group.parent
        yield top


def _words(path: Path) -> list[str]:
    return text_of(path).split()


def text_of(path: Path) -> str:
    """Empty if there is no such file."""
    try:
        return path.read_text()
    except OSError:
        return ""
