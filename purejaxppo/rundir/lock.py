"""Who writes a run directory: one process, of whatever machine.

On one machine, `flock` tells at once. Where directories are shared by machines, locks may be local or missing (NFS), so
the process also claims the directory by a file `.claim.json`, made with O_EXCL, which it renews as long as it lives.
"""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from purejaxppo.errors import UsageError
from purejaxppo.parallel.hosts import group
from purejaxppo.rundir.files import SCORES, SWEEP, TUNE, UNFINISHED, replacing

CLAIM = ".claim.json"
_LEFT_OVER = re.compile(r"\.[0-9a-f]{16}\.(saving\.json|dead)")
RENEW_SECONDS = 5.0
SHARED_SECONDS = 10.0  # that a shared file system may take until all machines see a new file
DEAD_SECONDS = 30.0  # a claim of another machine that is not renewed for so long is nobody's
_HELD: set[object] = set()  # tokens of the claims of this process


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Create the directory of a run or a sweep, and hold it, see `lock`; what is there is never written over.

    If the block fails before anything was logged or saved, nothing is left, so that it can be begun again.

    Raises:
        UsageError: it exists and holds something, or cannot be created; or another process holds it.
    """
    existed, place = out.exists(), out.resolve()  # it may be a link
    with ExitStack() as held:
        try:
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock(out))  # before it is looked into: another process may begin in it, too
            found = [path for path in out.iterdir() if path.name != CLAIM]
            if any(not _LEFT_OVER.fullmatch(path.name) for path in found):
                raise UsageError(f"out = {str(out)!r} already holds files; choose another --out, or --resume it.")
            for draft in found:  # of a process that was killed while it began here
                draft.unlink()
        except OSError as error:
            why = error.strerror or str(error)
            raise UsageError(f"out = {str(out)!r} cannot be written ({why}); choose another --out.") from error
        try:
            yield out
        except BaseException:
            logged = any(path.stat().st_size for path in out.rglob("metrics*.csv"))
            if not logged and not any(out.glob("**/checkpoints/[0-9]*")) and not (out / SCORES).exists():
                with suppress(OSError):
                    for path in [*place.iterdir()] if existed else [place]:  # who made it may stand in it
                        if path.is_dir() and not path.is_symlink():
                            shutil.rmtree(path, ignore_errors=True)
                        else:
                            path.unlink(missing_ok=True)
            raise


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold a run directory, while entered or until the process ends; and that of its sweep or study, which then waits.

    Raises:
        UsageError: another process holds it, or what it is part of, or a run or a batch that is part of it.
    """
    with ExitStack() as held:
        here, me = _flock(held, out), _claim_of_this_process()
        while not _take(out, me, _watch({out: here})[out]):
            pass
        held.enter_context(_renewed(out / CLAIM, me))
        parts = *out.glob(f"*/{CLAIM}"), *out.glob(f"{UNFINISHED}/*/{CLAIM}")
        places = {claim.parent: here for claim in parts}
        whole = out.resolve().parent
        if any((whole / name).exists() for name in (SWEEP, TUNE)):
            places[whole] = _flock(held, whole, shared=True)  # other runs of it may go on, too
            for claim in whole.glob(f"{UNFINISHED}/*/{CLAIM}"):  # a worker, which may be training just this run
                with ExitStack() as looked, suppress(FileNotFoundError):  # deleted by who has finished it
                    places[claim.parent] = _flock(looked, claim.parent, shared=True)
        _watch(places)
        yield


@contextmanager
def lock_shared(sweep: Path) -> Iterator[None]:
    """Hold a sweep's directory together with its other workers. Raises: UsageError: a process holds it alone."""
    with ExitStack() as held:
        dead = _watch({sweep: _flock(held, sweep, shared=True)})[sweep]
        _bury(sweep / CLAIM, dead, secrets.token_hex(8))
        yield


@contextmanager
def lock_free(directory: Path, seen: dict[Path, tuple[dict[str, object], float]]) -> Iterator[bool]:
    """Hold a directory if nobody does, or who did is dead. Else False, without waiting for whether a claim is renewed.

    So it is tried again and again, and `seen` keeps what the claims of other machines said, and since when.
    """
    with ExitStack() as held:
        taken = False
        with suppress(UsageError, FileNotFoundError):  # held on this machine; deleted by who has finished it
            here, now = _flock(held, directory), time.monotonic()
            claim = _read(directory / CLAIM)
            if claim != seen.get(directory, ({}, now))[0]:
                seen[directory] = claim, now
            left = here and claim.get("host") == socket.gethostname()
            if not claim or left or now - seen[directory][1] >= DEAD_SECONDS:
                me = _claim_of_this_process()
                if taken := _take(directory, me, claim):
                    held.enter_context(_renewed(directory / CLAIM, me))
        yield taken


def _flock(held: ExitStack, directory: Path, shared: bool = False) -> bool:
    """Whether it is certain now that no other process of this machine has it. Raises: UsageError, one has."""
    handle = os.open(directory, os.O_RDONLY)
    held.callback(os.close, handle)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise _taken(directory) from error
    except OSError:  # a file system without locks
        return False
    return True


def _claim_of_this_process() -> dict[str, object]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "token": secrets.token_hex(8)}


def _take(directory: Path, me: dict[str, object], seen: dict[str, object]) -> bool:
    """Claim a directory on which nobody's claim is, or the one `seen`. False: another has been faster."""
    path = directory / CLAIM
    if not _bury(path, seen, str(me["token"])):
        return False
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w") as file:
            file.write(json.dumps(me | {"renewed": 0}))
    except FileExistsError:
        return False
    return _stands(path, str(me["token"]))


def _stands(path: Path, token: str) -> bool:
    """Whether a claim that was just made holds: not where another one had only been moved away, see `_bury`."""
    ends = time.monotonic() + DEAD_SECONDS
    while (moved := [*path.parent.glob(".*.dead")]) and time.monotonic() < ends:
        time.sleep(0.005)
    for left in moved:  # by a process that was killed while it looked
        left.unlink(missing_ok=True)
    return _token(path) == token


def _bury(path: Path, seen: dict[str, object], token: str) -> bool:
    """Take away the claim `seen` of a process that is dead. False: it is another one's meanwhile."""
    dead = path.with_name(f".{token}.dead")
    with suppress(FileNotFoundError):  # of several that wait, one takes it away
        path.rename(dead)
        if _read(dead) != seen:
            dead.rename(path)  # also over one that was made meanwhile: its maker looks once more
            return False
        dead.unlink()
    return True


@contextmanager
def _renewed(path: Path, me: dict[str, object]) -> Iterator[None]:
    """Renew a claim while entered, and give it back."""
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(path, me, ended), name="renews-claim", daemon=True)
    thread.start()
    _HELD.add(me["token"])
    try:
        yield
    finally:
        _HELD.discard(me["token"])
        ended.set()
        thread.join()
        if _token(path) == me["token"]:
            path.unlink(missing_ok=True)


def _renew(path: Path, mine: dict[str, object], ended: threading.Event) -> None:
    count = 0
    while not ended.wait(RENEW_SECONDS):
        if _token(path) != mine["token"]:  # moved away, or this process stood still for so long that it seemed dead
            continue
        count += 1
        with suppress(OSError), replacing(path) as draft:
            draft.write_text(json.dumps(mine | {"renewed": count}))


@contextmanager
def held_for_all(out: Path, hold: Callable[[Path], AbstractContextManager[Any]]) -> Iterator[None]:
    """Process 0 holds a directory, by `new_directory` or `lock`, for all that it trains together with.

    Raises:
        UsageError: as `hold`; or the directory is not the same in all of them.
    """
    with ExitStack() as stack:
        group().by_leader(lambda: stack.enter_context(hold(out)) and None)
        if group().count > 1:
            _check_shared(out)
        yield


def _check_shared(directory: Path) -> None:
    token, ends = group().told(_token(directory / CLAIM)), time.monotonic() + SHARED_SECONDS
    while (seen := _token(directory / CLAIM)) != token and time.monotonic() < ends:
        os.listdir(directory.parent)  # else NFS may still say that it is not there, as it was when it was looked for
        time.sleep(0.2)
    blind = "" if seen == token else f"process {group().index} on {socket.gethostname()}"
    if found := next((line for line in group().all_of(blind) if line), ""):
        raise UsageError(
            f"{directory} is not shared: {found} does not see what process 0 wrote there within {SHARED_SECONDS:g} s; "
            "choose a directory on a file system that all have."
        )


def check_claim(directory: Path) -> None:
    """Before a checkpoint is written: nobody has taken over a directory, if it is claimed at all.

    Raises:
        OSError: another machine's process has, as this one stood still for long.
    """
    claim = _read(directory / CLAIM)
    if claim and claim.get("token") not in _HELD:
        raise OSError(errno.EBUSY, f"{_owner(claim)} has taken it over", str(directory))


def owner_of(directory: Path) -> str:
    """Who holds a directory, as far as it says."""
    return _owner(_read(directory / CLAIM))


def _watch(places: Mapping[Path, bool]) -> dict[Path, dict[str, object]]:
    """Return once none of the claims on some directories is renewed any more; and what each says, {} if there is none.

    Of each directory, whether it is certain already that it is nobody's on this machine.

    Raises:
        UsageError: one is renewed.
    """
    found, host = {place: _read(place / CLAIM) for place in places}, socket.gethostname()
    left = [place for place, claim in found.items() if claim and not (places[place] and claim.get("host") == host)]
    if left:
        whom = ", ".join(sorted({_owner(found[place]) for place in left}))
        live = "they live" if "," in whom else "it lives"
        warnings.warn(
            f"{left[0]} was last written by {whom:.300}; looking for {DEAD_SECONDS:g} s if {live}", stacklevel=4
        )
    ends = time.monotonic() + DEAD_SECONDS
    while left and time.monotonic() < ends:
        time.sleep(RENEW_SECONDS / 5)
        for place in [*left]:
            if (now := _read(place / CLAIM)) != found[place]:
                if now:
                    raise _taken(place, _owner(now))
                left.remove(place)
                found[place] = now
    return found


def _owner(claim: dict[str, object]) -> str:
    return f"process {claim.get('pid')!s:.20} of {claim.get('host')!s:.80}"


def _taken(directory: Path, who: str = "another process") -> UsageError:
    return UsageError(f"{directory} is being written by {who}; wait for it, or stop it.")


def _token(path: Path) -> object:
    return _read(path).get("token")


def _read(path: Path) -> dict[str, object]:
    """What a claim says; {} if there is none, or what stands there is none."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > 4096:
            return {}
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
