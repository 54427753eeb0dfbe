"""How processes come together before JAX starts.

First they meet, at the address of the coordinator: each says which one it is and what it runs, and process 0 lets all
go on or tells all what does not fit. JAX's own runtime would wait, and then abort the process. After that, process 0
starts JAX's coordinator at the same address, and nowhere else.
"""

import ctypes
import json
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

from purejaxppo.errors import UsageError
from purejaxppo.parallel.hosts import Joined, group, use
from purejaxppo.parallel.places import Place

SAY_SECONDS = 10.0  # after which a process says for whom it waits
CONNECT_SECONDS = 30.0  # at least, for JAX to connect processes that have met
NAME_SECONDS = 30.0  # for a name to be known, as in a cluster that has just started
_HELLO = 65536  # bytes that are read of what somebody says at the meeting


def join(place: Place, about: dict[str, str], share_runs: bool, say: Callable[[str], None]) -> None:
    """Meet the others, start JAX's distributed runtime, and let `hosts.group` return all.

    Args:
        about: what must be the same in all, as the versions of packages.
        say: told for whom this process waits, if it is for long.
        share_runs: whether programs may have collectives over processes. On CPUs each process listens for them.

    Raises:
        UsageError: somebody does not come in time, or does not fit.
    """
    names = meet(place, about, say)
    import jax
    from jax._src import distributed

    runtime: Any = distributed
    _die_quietly()
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which is ours
    make_client = runtime._jax.get_distributed_runtime_client
    make_gloo = partial(runtime._jax.make_gloo_tcp_collectives, hostname=_own_address(place))
    # JAX has a CPU run no program of several processes without collectives. MPI's are never begun, and open no port
    unused = runtime._jax.make_mpi_collectives
    runtime._jax.make_gloo_tcp_collectives = make_gloo if share_runs else lambda **_: unused()
    local = None if place.local_device is None else [place.local_device]
    # all have come: who is lost now is not waited for as long as one that is yet to start
    patience = min(place.wait, max(place.timeout, CONNECT_SECONDS))
    start = partial(
        jax.distributed.initialize,
        place.coordinator,
        place.processes,
        place.process,
        local,
        cluster_detection_method="deactivate",
        initialization_timeout=int(patience),
        heartbeat_timeout_seconds=int(10 * place.timeout),  # ours is faster, and has a name for who is lost
        coordinator_bind_address=_numeric(place),
    )
    try:  # with a callback of ours, JAX raises or calls it, where it would end the process with a core dump
        runtime._jax.get_distributed_runtime_client = lambda *a, **k: make_client(
            *a, **k, missed_heartbeat_callback=_coordinator_lost, shutdown_on_destruction=False
        )
        with ThreadPoolExecutor(1) as other:  # signals are handled meanwhile
            other.submit(start).result()
    except RuntimeError as error:
        raise UsageError(
            f"JAX cannot join the {place.processes} processes at {place.coordinator} within {patience:g} s, though all "
            "have come there; one has ended since, or the port is not open between all machines. Start all again."
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


def _die_quietly() -> None:
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


def _numeric(place: Place) -> str:
    """The address that the coordinator's name stands for: the only one to listen on."""
    family, _, _, _, address = _resolved(place)
    host = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
    return f"{host}:{address[1]}"


def meet(place: Place, about: dict[str, str], say: Callable[[str], None] = lambda _: None) -> list[str]:
    """Wait until all are there, and return where each is. Raises: UsageError."""
    name = f"{socket.gethostname()}, pid {os.getpid()}"
    hello = {"processes": place.processes, "process": place.process, "name": name, "about": about}
    if place.process == 0:
        try:
            family, _, _, _, address = _resolved(place)
            listener = socket.create_server(address[:2], family=family, backlog=4096)
        except OSError as error:
            answer = _ask(place, hello, 1.0, say)  # is there a process 0 already? then it must hear that there are two
            why = f"cannot be listened on here ({error.strerror or error}); process 0 runs where it is, on a free port"
            raise UsageError(answer.get("error") or f"coordinator = {place.coordinator!r} {why}.") from error
        with listener:
            return _receive(listener, place, hello, say)
    answer = _ask(place, hello, place.wait, say)
    if "names" not in answer:
        silent = f"process 0 of {place.processes} did not answer at {place.coordinator} within {place.wait:g} s"
        why = "start it, or give all its address; or it has begun already, with another process of this number"
        raise UsageError(answer.get("error") or f"{silent}; {why}.")
    return [str(name) for name in answer["names"]]


def _resolved(place: Place) -> Any:
    """The coordinator's address. Its name may be known only some seconds after this process has started."""
    ends = time.monotonic() + min(place.wait, NAME_SECONDS)
    while True:
        try:
            return socket.getaddrinfo(*place.address, type=socket.SOCK_STREAM)[0]
        except socket.gaierror:
            if time.monotonic() > ends:
                raise
            time.sleep(0.5)


def _receive(listener: socket.socket, place: Place, mine: dict[str, Any], say: Callable[[str], None]) -> list[str]:
    """Process 0: hear all, and let them go on, or tell them what does not fit."""
    come: dict[int, dict[str, Any]] = {0: mine}
    problem, ends, patience = "", time.monotonic() + place.wait, time.monotonic() + SAY_SECONDS
    with ExitStack() as stack:
        guests: list[tuple[int, socket.socket]] = []
        while len(guests) < place.processes - 1:
            missing = ", ".join(str(i) for i in range(place.processes) if i not in come)
            if time.monotonic() > patience and not problem:
                patience = ends
                say(f"waiting for process {missing:.60} of {place.processes} at {place.coordinator}")
            listener.settimeout(max(0.01, min(ends, patience) - time.monotonic()))
            try:
                guest = stack.enter_context(listener.accept()[0])
            except TimeoutError:
                guest = None
            if time.monotonic() > ends:  # whoever else knocks
                if problem:
                    break
                where = f"at {place.coordinator} within {place.wait:g} s"
                problem = f"process {missing:.60} of {place.processes} did not come {where}; start all, or pass wait=S."
                break
            if guest and (hello := _read(guest, min(2.0, max(0.01, ends - time.monotonic())))) and "process" in hello:
                _forget_who_left(guests, come)
                if not problem and (problem := _misfit(come, hello)):
                    ends = min(ends, time.monotonic() + 5.0)  # those that come late shall hear it, too
                guests.append((hello["process"], guest))
                come.setdefault(hello["process"], hello)
        names = [come[i]["name"] for i in sorted(come)]
        answer = json.dumps({"error": problem} if problem else {"names": names}) + "\n"
        for _, guest in guests:
            try:
                guest.sendall(answer.encode())
            except OSError:  # it has gone meanwhile, which JAX's own meeting finds out
                continue
    if problem:
        raise UsageError(problem)
    return names


def _forget_who_left(guests: list[tuple[int, socket.socket]], come: dict[int, dict[str, Any]]) -> None:
    """One that has ended may be started again."""
    for i, guest in [guest for guest in guests if _has_left(guest[1])]:
        guests.remove((i, guest))
        come.pop(i, None)


def _has_left(guest: socket.socket) -> bool:
    """Whether the one at the other end has closed the connection; until it is answered it says nothing more."""
    guest.settimeout(0.0)
    try:
        return not guest.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        guest.settimeout(2.0)


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
            return f"{name} is {there or 'missing'} {where}, and {here or 'missing'} in process 0; give all the same."
    return ""


def _ask(place: Place, hello: dict[str, Any], wait: float, say: Callable[[str], None]) -> dict[str, Any]:
    """What process 0 answers; {} if it cannot be reached in time."""
    ends, patience = time.monotonic() + wait, time.monotonic() + SAY_SECONDS
    while time.monotonic() < ends:
        if time.monotonic() > patience:
            patience = ends
            say(f"waiting for process 0 of {place.processes} at {place.coordinator}")
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
            if time.monotonic() > ends:
                return None
            if not (part := connection.recv(_HELLO)):
                return None
            data += part
        content = json.loads(data)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    if "process" in content:
        i, count, about = (content.get(name) for name in ("process", "processes", "about"))
        numbers = type(i) is type(count) is int and 0 <= i < count
        if not numbers or not isinstance(about, dict) or "name" not in content:
            return None
        content["about"] = {_printable(name): _printable(x) for name, x in about.items()}
    return content | {name: _printable(content[name]) for name in ("name", "error") if name in content}


def _printable(text: Any) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(text)[:400])
