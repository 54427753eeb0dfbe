"""Which process of how many this one is: as a flag says, or as JAX detects it in a cluster."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from purejaxppo.errors import UsageError

LOST_SECONDS = 60.0  # after which a process that is not heard of is lost
LEAST_LOST_SECONDS = 5.0  # each says once a second that it lives
JOIN_SECONDS = 300.0  # for all processes to come
BY_HAND = "--distributed coordinator=HOST:PORT,processes=N,process=I, or --distributed off for one by itself"


class Place(NamedTuple):
    """Which process of how many this is, and where they meet."""

    coordinator: str  # HOST:PORT of process 0
    processes: int
    process: int
    timeout: float = LOST_SECONDS  # seconds of silence after which a process is lost
    wait: float = JOIN_SECONDS  # seconds for all to come
    local_device: int | None = None  # on this machine, where a scheduler gives each process one

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def parse_place(text: str) -> Place:
    """Of `coordinator=HOST:PORT,processes=N,process=I`. Raises: UsageError."""
    said: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if name not in Place._fields[:5] or name in said or not equals:
            raise _unreadable(text, f"{part!r:.80} is none of its parts, or there twice")
        said[name] = value
    missing = [name for name in Place._fields[:3] if name not in said]
    host, _, port = said.get("coordinator", "").rpartition(":")
    if missing or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise _unreadable(text, f"{' and '.join(missing)} missing" if missing else "the coordinator is not HOST:PORT")
    try:
        processes, process = int(said["processes"]), int(said["process"])
        times = {name: float(said[name]) for name in ("timeout", "wait") if name in said}
    except ValueError as error:
        raise _unreadable(text, "processes, process, timeout and wait are numbers") from error
    limits = times.get("timeout", LOST_SECONDS), times.get("wait", JOIN_SECONDS)
    if not 1 <= processes <= 2**20 or not 0 <= process < processes:
        raise _unreadable(text, "process is in 0 … processes - 1")
    if not LEAST_LOST_SECONDS <= limits[0] <= 1e6 or not 1 <= limits[1] <= 1e6:
        raise _unreadable(text, f"timeout is in seconds ≥ {LEAST_LOST_SECONDS:g}, and wait in seconds ≥ 1")
    return Place(said["coordinator"], processes, process, *limits)


def _unreadable(text: str, why: str) -> UsageError:
    example = "coordinator=HOST:PORT,processes=N,process=I[,timeout=60][,wait=300]"
    return UsageError(f"distributed = {text!r:.160}: {why}; pass {example}, or off.")


def find_place(text: str | None = None, way_out: str = BY_HAND) -> Place | None:
    """What the flag says; without it, what JAX finds in SLURM, Open MPI, Kubernetes and cloud TPU. None: one process.

    Args:
        text: the flag.
        way_out: what to pass where JAX does not find its way.

    Raises:
        UsageError: the flag cannot be read; or JAX finds a cluster, but not its way in it.
    """
    if text == "off":
        return None
    place = _detected(way_out) if text is None else parse_place(text)
    return place if place and place.processes > 1 else None


def expects_others(argv: Sequence[str] = ()) -> bool:
    """Whether flags or the environment look as if this were one process of several."""
    sizes = [os.environ.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
    flag = any(word.partition("=")[0] == "--distributed" for word in argv)
    return flag or any(size != "1" for size in sizes) or "JOB_COMPLETION_INDEX" in os.environ


def _detected(way_out: str) -> Place | None:
    from jax._src import cloud_tpu_init, clusters

    if not expects_others() and not cloud_tpu_init.running_in_cloud_tpu_vm:  # the usual case: nobody is asked
        return None
    try:
        kinds = [kind for kind in clusters.ClusterEnv._cluster_types if not kind.opt_in_only_method]
        found = next((kind for kind in kinds if kind.is_env_present()), None)
        if found is None or (count := found.get_process_count()) <= 1:
            return None
        port = os.environ.get("JAX_COORDINATOR_PORT")
        address = found.get_coordinator_address(timeout_secs=int(JOIN_SECONDS), override_coordinator_port=port)
        told = cloud_tpu_init.running_in_cloud_tpu_vm or os.environ.get("JAX_LOCAL_DEVICE_IDS")
        local = None if told else found.get_local_process_id()
        return Place(address, count, found.get_process_id(), local_device=local)
    except Exception as error:  # of a cluster's client library, or of ours
        raise UsageError(
            f"this seems to be one process of several, and JAX cannot join them ({' '.join(str(error).split()):.200}); "
            f"pass {way_out}."
        ) from error
