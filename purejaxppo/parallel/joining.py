"""How processes find each other before JAX starts: by a flag, or as JAX detects it in a cluster.

First they meet, at the address of the coordinator: each says which one it is and what it runs, and process 0 lets all
go on or tells all what does not fit. JAX's own runtime would wait, and then abort the process. After that, process 0
starts JAX's coordinator at the same address, and nowhere else.
"""

import ctypes
import json
import os
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from purejaxppo.errors import UsageError
from purejaxppo.parallel.hosts import LOST_SECONDS, Joined, group, use

JOIN_SECONDS = 300.0  # for all processes to come
_HELLO = 65536  # bytes that are read of what somebody says at the meeting


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
    if not 1 <= processes <= 2**20 or not 0 <= process < processes or not all(1 <= x <= 1e6 for x in times.values()):
        raise _unreadable(text, "process is in 0 … processes - 1, and timeout and wait are in seconds ≥ 1")
    limits = times.get("timeout", LOST_SECONDS), times.get("wait", JOIN_SECONDS)
    return Place(said["coordinator"], processes, process, *limits)


def _unreadable(text: str, why: str) -> UsageError:
    example = "coordinator=HOST:PORT,processes=N,process=I[,timeout=60][,wait=300]"
    return UsageError(f"distributed = {text!r:.160}: {why}; pass {example}, or off.")


def find_place(text: str | None) -> Place | None:
    """What the flag says; without it, what JAX finds in SLURM, Open MPI, Kubernetes and cloud TPU. None: one process.

    Raises:
        UsageError: the flag cannot be read; or JAX finds a cluster, but not its way in it.
    """
    if text == "off":
        return None
    place = _detected() if text is None else parse_place(text)
    return place if place and place.processes > 1 else None


def expects_others(argv: Sequence[str] = ()) -> bool:
    """Whether flags or the environment look as if this were one process of several."""
    sizes = [os.environ.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
    flag = any(word.partition("=")[0] == "--distributed" for word in argv)
    return flag or any(size != "1" for size in sizes) or "JOB_COMPLETION_INDEX" in os.environ


def _detected() -> Place | None:
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
        local = None if cloud_tpu_init.running_in_cloud_tpu_vm else found.get_local_process_id()
        return Place(address, count, found.get_process_id(), local_device=local)
    except Exception as error:  # of a cluster's client library, or of ours
        raise UsageError(
            f"this seems to be one process of several, and JAX cannot join them ({' '.join(str(error).split()):.200}); "
            "pass --distributed coordinator=HOST:PORT,processes=N,process=I, or --distributed off for one by itself."
        ) from error


def join(place: Place, about: dict[str, str]) -> None:
    """Meet the others, start JAX's distributed runtime, and let `hosts.group` return all.

    Args:
        about: what must be the same in all, as the versions of packages.

    Raises:
        UsageError: somebody does not come in time, or does not fit.
    """
    names = meet(place, about)
    import jax
    from jax._src import distributed

    runtime: Any = distributed
    _die_quietly(place)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which is ours
    make_client = runtime._jax.get_distributed_runtime_client
    host, port = place.address
    # CPUs of several processes have a program together, for which JAX lets each process listen
    runtime._jax.make_gloo_tcp_collectives = partial(
        runtime._jax.make_gloo_tcp_collectives, hostname=_own_address(place)
    )
    local = None if place.local_device is None else [place.local_device]
    try:  # with a callback of ours, JAX raises or calls it, where it would end the process with a core dump
        runtime._jax.get_distributed_runtime_client = lambda *a, **k: make_client(
            *a, **k, missed_heartbeat_callback=_coordinator_lost, shutdown_on_destruction=False
        )
        jax.distributed.initialize(
            place.coordinator,
            place.processes,
            place.process,
            local,
            cluster_detection_method="deactivate",
            initialization_timeout=int(place.wait),
            heartbeat_timeout_seconds=int(10 * place.timeout),  # ours is faster, and has a name for who is lost
            coordinator_bind_address=f"{_numeric(host, port)}:{port}",
        )
    except RuntimeError as error:
        raise UsageError(
            f"JAX cannot join the {place.processes} processes at {place.coordinator} within {place.wait:g} s, though "
            "all have come there; is the port free, and open between all machines?"
        ) from error
    finally:
        runtime._jax.get_distributed_runtime_client = make_client
    joined = Joined(distributed.global_state.client, names, place.process, place.timeout)
    use(joined)
    joined.start()


def _coordinator_lost(*_: Any) -> None:
    """Called by JAX's client, in a thread of its own, when it cannot reach the coordinator any more."""
    present = group()
    if isinstance(present, Joined):
        present._coordinator_lost()


def _die_quietly(place: Place) -> None:
    """Where JAX cannot call our callback, as its argument is of a type that Python does not know, C++ terminates.

    What terminates is then ours, too.
    """
    handler = ctypes.CFUNCTYPE(None)(_coordinator_lost)
    try:
        ctypes.CDLL("libstdc++.so.6")["_ZSt13set_terminatePFvvE"](handler)
    except (OSError, AttributeError):  # not Linux
        return
    _kept.append(handler)


_kept: list[Any] = []  # what C++ may call must not be collected


def _own_address(place: Place) -> str:
    """This machine's, as the coordinator's sees it."""
    family, _, _, _, address = socket.getaddrinfo(*place.address, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as unsent:
        unsent.connect(address)
        return str(unsent.getsockname()[0])


def _numeric(host: str, port: int) -> str:
    """The address that a name stands for: the only one to listen on."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return f"[{address[0]}]" if family == socket.AF_INET6 else str(address[0])


def meet(place: Place, about: dict[str, str]) -> list[str]:
    """Wait until all are there, and return where each is. Raises: UsageError."""
    name = f"{socket.gethostname()}, pid {os.getpid()}"
    hello = {"processes": place.processes, "process": place.process, "name": name, "about": about}
    if place.process == 0:
        try:
            family, _, _, _, address = socket.getaddrinfo(*place.address, type=socket.SOCK_STREAM)[0]
            listener = socket.create_server(address[:2], family=family, backlog=4096)
        except OSError as error:
            answer = _ask(place, hello, 1.0)  # is there a process 0 already? then it must hear that there are two
            why = f"cannot be listened on here ({error.strerror or error}); process 0 runs where it is, on a free port"
            raise UsageError(answer.get("error") or f"coordinator = {place.coordinator!r} {why}.") from error
        with listener:
            return _receive(listener, place, hello)
    answer = _ask(place, hello, place.wait)
    if "names" not in answer:
        silent = f"process 0 of {place.processes} did not answer at {place.coordinator} within {place.wait:g} s"
        raise UsageError(answer.get("error") or f"{silent}; start it, or give all its address.")
    return [str(name) for name in answer["names"]]


def _receive(listener: socket.socket, place: Place, mine: dict[str, Any]) -> list[str]:
    """Process 0: hear all, and let them go on, or tell them what does not fit."""
    come: dict[int, dict[str, Any]] = {0: mine}
    problem, ends = "", time.monotonic() + place.wait
    with ExitStack() as stack:
        guests: list[socket.socket] = []
        while len(guests) < place.processes - 1:
            listener.settimeout(max(0.01, ends - time.monotonic()))
            try:
                guest = stack.enter_context(listener.accept()[0])
            except TimeoutError:
                if problem:
                    break
                missing = ", ".join(str(i) for i in range(place.processes) if i not in come)
                where = f"at {place.coordinator} within {place.wait:g} s"
                problem = f"process {missing:.60} of {place.processes} did not come {where}; start all, or pass wait=S."
                break
            if (hello := _read(guest, 2.0)) and "process" in hello:
                guests.append(guest)
                if not problem and (problem := _misfit(come, hello)):
                    ends = min(ends, time.monotonic() + 5.0)  # those that come late shall hear it, too
                come.setdefault(hello["process"], hello)
        names = [come[i]["name"] for i in sorted(come)]
        answer = json.dumps({"error": problem} if problem else {"names": names}) + "\n"
        for guest in guests:
            try:
                guest.sendall(answer.encode())
            except OSError:  # it has gone meanwhile, which JAX's own meeting finds out
                continue
    if problem:
        raise UsageError(problem)
    return names


def _misfit(come: dict[int, dict[str, Any]], hello: dict[str, Any]) -> str:
    """What does not fit of one that has come, to the others; empty if all does."""
    i, first = hello["process"], come[0]
    if hello["processes"] != first["processes"]:
        return (
            f"process {i} ({hello['name']}) says that there are {hello['processes']} processes, and process 0 "
            f"{first['processes']}; start all with the same number."
        )
    if i in come:
        both = f"{come[i]['name']}, and {hello['name']}"
        return f"two processes have the number {i} ({both}); give each another of 0 … {first['processes'] - 1}."
    for name in sorted(first["about"].keys() | hello["about"].keys()):
        if (there := hello["about"].get(name)) != (here := first["about"].get(name)):
            where = f"in process {i} ({hello['name']})"
            return f"{name} is {there or 'missing'} {where}, and {here or 'missing'} in process 0; install the same."
    return ""


def _ask(place: Place, hello: dict[str, Any], wait: float) -> dict[str, Any]:
    """What process 0 answers; {} if it cannot be reached in time."""
    ends = time.monotonic() + wait
    while time.monotonic() < ends:
        try:
            with socket.create_connection(place.address, timeout=max(0.1, ends - time.monotonic())) as connection:
                connection.sendall((json.dumps(hello) + "\n").encode())
                if answer := _read(connection, max(0.1, ends + 10 - time.monotonic())):  # it waits as long for others
                    return answer
        except OSError:  # it is not there yet
            pass
        time.sleep(0.2)
    return {}


def _read(connection: socket.socket, seconds: float) -> dict[str, Any] | None:
    """One line of JSON from somebody, who is not trusted to be one of ours; None if it is none."""
    ends, data = time.monotonic() + seconds, b""
    try:
        while not data.endswith(b"\n") and len(data) < 64 * _HELLO:
            connection.settimeout(max(0.01, ends - time.monotonic()))
            if not (part := connection.recv(_HELLO)):
                return None
            data += part
        content = json.loads(data)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("about", {}), dict):
        return None
    if "process" in content and not all(type(content.get(name)) is int for name in ("process", "processes")):
        return None
    return content
