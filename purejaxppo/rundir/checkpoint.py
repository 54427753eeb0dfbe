"""Whole training states on disk: written through orbax, hashed, read back before they count, and checked when restored.

    checkpoints/<env_steps>/arrays/         orbax's files
    checkpoints/<env_steps>/manifest.json   what they hold, with the SHA-256 of every array and of every file
    checkpoints/<env_steps>/part-<process>/ of several processes: the runs of each, as above, in the manifest's `parts`

The arrays are a tree of two: `state`, the `TrainState` of all seeds, and `totals` [seeds, metrics], the sums since the
last row of metrics.csv. `about` in the manifest has `update` and `env_steps` (made so far), `seeds`, `settings`,
`scores` (the last return of each seed), `score` (their IQM, by which the best checkpoint is kept), `seconds` (spent so
far) and `logs` (length and SHA-256 of metrics.csv at that time, of each run directory that the seeds belong to).

A checkpoint is written under another name and renamed when it is whole: one with a number for a name is complete.
"""

import logging
import os
import re
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purejaxppo._version import __version__
from purejaxppo.errors import UsageError, reason
from purejaxppo.keys import is_key
from purejaxppo.parallel.devices import free_memory
from purejaxppo.parallel.hosts import group
from purejaxppo.rundir.files import malformed, read_json, refusing, sync, to_json
from purejaxppo.rundir.manifest import describe, file_digest, read_manifest, write_manifest
from purejaxppo.rundir.snapshot import Arrays, Snapshot, flatten, leaves_by_path


def save(directory: Path, tree: Any, about: Mapping[str, Any], seeds: list[int] | None = None) -> None:
    """Write a tree of arrays, with `about` (JSON) in the manifest. When this returns, it was read back.

    Of several processes each calls this with its own part of the tree, that of `seeds`, and process 0's `about` holds.

    Raises:
        OSError: it could not be written. Nothing of it is left, and other checkpoints are as they were.
    """
    here = group()
    draft = Path(here.by_leader(lambda: _new_draft(directory)))
    part, failed, digest = draft if here.count == 1 else draft / f"part-{here.index:06}", "", None
    try:
        if here.count == 1:
            _write(draft, tree, about)
        elif seeds:
            part.mkdir()
            _write(part, tree, {"seeds": seeds})
            digest = file_digest(part / "manifest.json")
        for path in (*part.rglob("*"), part) if part.exists() else ():
            sync(path)
    except Exception as error:  # orbax wraps what the system says in errors of many kinds
        failed = f"{f'process {here.index}: ' if here.count > 1 else ''}{reason(error)}"
    here.decided([failed, digest], lambda parts: _publish(draft, directory, about, parts))


def _new_draft(directory: Path) -> str:
    draft = directory.with_name(f".{secrets.token_hex(8)}.saving")
    try:
        draft.parent.mkdir(exist_ok=True)  # but not the run directory, if that was moved away
        draft.mkdir()
    except OSError as error:
        raise OSError(f"checkpoint {directory} cannot be written ({reason(error)})") from error
    return str(draft)


def _write(draft: Path, tree: Any, about: Mapping[str, Any]) -> None:
    """The arrays and their manifest, read back."""
    arrays = flatten(tree)
    content = {
        "purejaxppo": __version__,
        "about": to_json(about),
        "keys": {path: str(jax.random.key_impl(x)) for path, x in leaves_by_path(tree).items() if is_key(x)},
        "arrays": {path: describe(x) for path, x in arrays.items()},
    }
    need, free = sum(x.nbytes for x in arrays.values()) + 2**20, shutil.disk_usage(draft).free
    if need > free:  # found out by orbax, it would leave threads that complain
        raise OSError(f"it may take {need:,} bytes, and {free:,} are free")
    with _orbax(draft) as (checkpointer, folder):
        checkpointer.save(folder, {path: x for path, x in arrays.items() if x.size})
    (draft / "arrays" / "commit_success.txt").unlink(missing_ok=True)  # tells where on this machine it was written
    write_manifest(draft, content)
    read(draft, own=True)


def _publish(draft: Path, directory: Path, about: Mapping[str, Any], parts: list[list[Any]]) -> None:
    """Give a draft that all processes have written its name. Raises: OSError: one could not; nothing is left of it."""
    failed = next((failed for failed, _ in parts if failed), "")
    try:
        if failed:
            raise OSError(failed)
        if len(parts) > 1:
            listed = {f"part-{i:06}": digest for i, (_, digest) in enumerate(parts) if digest}
            write_manifest(draft, {"purejaxppo": __version__, "about": to_json(about), "parts": listed})
        if directory.is_symlink():
            directory.unlink()
        sync(draft)
        if directory.exists():
            _discard(directory)
        draft.rename(directory)
        sync(directory.parent)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise OSError(f"checkpoint {directory} cannot be written ({failed or reason(error)})") from error


def read(directory: Path, own: bool = False) -> Snapshot:
    """Read a checkpoint, checking every file and array against its manifest.

    `own`: this process has just written it, so that its sizes need no look before memory is taken for them.

    Raises:
        UsageError: it is damaged, or of a newer version; the message names the file.
    """
    content, folder = read_manifest(directory), directory / "arrays"
    if "parts" in content:
        return _joined(directory, content)
    with refusing(directory / "manifest.json"):
        described = content["arrays"]
        empty = {path: np.zeros(x["shape"], x["dtype"]) for path, x in described.items() if 0 in x["shape"]}
        shapes = {path: x for path, x in described.items() if path not in empty}
        like = {path: np.broadcast_to(np.zeros((), x["dtype"]), x["shape"]) for path, x in shapes.items()}
    try:
        with _orbax(directory) as (checkpointer, linked):
            if not own:
                metadata = checkpointer.metadata(linked)
                _check_sizes(folder, like, getattr(metadata, "item_metadata", metadata))
            arrays: Arrays = checkpointer.restore(linked, like)
    except UsageError:
        raise
    except Exception as error:  # tensorstore's errors are of many kinds
        raise UsageError(f"{folder} cannot be read ({reason(error)}).") from error
    for path, x in arrays.items():
        if describe(x) != described[path]:
            raise UsageError(f"{folder}: array {path} is not what was saved: its SHA-256 differs.")
    return Snapshot(arrays | empty, content["keys"], content["about"], directory)


def _joined(directory: Path, content: Mapping[str, Any]) -> Snapshot:
    """A checkpoint of several processes, of which each wrote the runs that were its own."""
    parts = []
    with refusing(directory / "manifest.json"):
        listed = dict(content["parts"])
        if not listed or {x.name for x in directory.glob("part-*")} != listed.keys():
            raise malformed(directory / "manifest.json", "its parts are not those that are there")
        for name in sorted(listed):
            if not re.fullmatch(r"part-[0-9]{6}", name) or "parts" in read_manifest(directory / name):
                raise malformed(directory / "manifest.json", f"{name!r:.40} is no part")
            if file_digest(directory / name / "manifest.json") != listed[name]:
                raise UsageError(f"{directory / name} is not the part that was saved: its SHA-256 differs.")
            parts.append(read(directory / name))
        if [seed for part in parts for seed in part.about["seeds"]] != content["about"]["seeds"]:
            raise malformed(directory / "manifest.json", "its parts are of other seeds")
        arrays = {path: np.concatenate([part.arrays[path] for part in parts]) for path in parts[0].arrays}
    return Snapshot(arrays, parts[0].keys, content["about"], directory)


def steps_saved(checkpoints: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. Raises: UsageError: `checkpoints` is a link, which leads elsewhere."""
    if checkpoints.is_symlink():
        raise UsageError(f"{checkpoints} is a link, which is not followed; put the directory itself there.")
    found = checkpoints.iterdir() if checkpoints.is_dir() else ()
    return sorted((x for x in found if re.fullmatch(r"[0-9]{1,18}", x.name) and x.is_dir()), key=lambda x: int(x.name))


def newest_whole(candidates: list[Path], accept: Callable[[Snapshot], None], say: Callable[[str], None]) -> Snapshot:
    """The last of `candidates` that is whole and that `accept` does not refuse; `say` is told of those that are not.

    Raises:
        UsageError: none is whole.
    """
    refused = []
    for candidate in reversed(candidates):
        try:
            snapshot = read(candidate)
            accept(snapshot)
        except UsageError as error:
            refused.append(f"checkpoint {candidate.name} cannot be used: {error}")
            continue
        for text in refused:
            say(text)
        if refused:
            say(f"going on from checkpoint {candidate.name} instead")
        return snapshot
    why = " ".join(refused[:4])
    raise UsageError(f"{why} No usable checkpoint is left in {candidates[0].parent}; train again in a new --out.")


def newest_in_all(checkpoints: Path, accept: Callable[[Snapshot], None], say: Callable[[str], None]) -> Snapshot | None:
    """`newest_whole` of a run's, as process 0 finds it, in all that train together; None if none was saved."""
    found: list[Snapshot] = []

    def name() -> str:
        if saved := steps_saved(checkpoints):
            found.append(newest_whole(saved, accept, say))
        return found[0].directory.name if found else ""

    if (there := group().by_leader(name)) and not found:
        found.append(read(checkpoints / there))
    return found[0] if found else None


def prune(checkpoints: Path, keep: int, written: Path) -> None:
    """Delete all but the last `keep`, the best by `score` and the one just `written`; and what is half written.

    The one just written is not among the last where later ones were found damaged, and the run went on before them.
    """
    saved = steps_saved(checkpoints)
    for draft in checkpoints.glob(".*.saving"):
        shutil.rmtree(draft, ignore_errors=True)

    def score(directory: Path) -> float:
        try:
            return float(read_json(directory / "manifest.json")["content"]["about"]["score"])
        except (UsageError, KeyError, TypeError, ValueError):
            return float("nan")

    best = max((x for x in saved if score(x) == score(x)), key=lambda x: (score(x), int(x.name)), default=None)
    for directory in saved[:-keep]:
        if directory not in (best, written) and not directory.is_symlink():
            _discard(directory)


def _discard(directory: Path) -> None:
    """Delete a checkpoint, its name first: of what others have open, NFS keeps files until they are closed."""
    shutil.rmtree(directory.rename(directory.with_name(f".{secrets.token_hex(8)}.saving")), ignore_errors=True)


def _check_sizes(folder: Path, like: Arrays, stored: Mapping[str, Any]) -> None:
    """Refuse arrays that are not as the manifest says, or too large, before memory is taken for them."""
    for path, x in like.items():
        found, chunks = stored[path], stored[path].storage.chunk_shape
        if (tuple(found.shape), np.dtype(found.dtype)) != (x.shape, x.dtype):
            raise UsageError(f"{folder}: array {path} is {found.dtype}{list(found.shape)}, and the manifest differs.")
        if chunks and any(chunk > max(size, 1) for chunk, size in zip(chunks, x.shape, strict=True)):
            raise UsageError(f"{folder}: array {path} has chunks of {list(chunks)}, larger than itself.")
    need, free = sum(x.nbytes for x in like.values()), free_memory()
    if free is not None and need > free:
        raise UsageError(f"{folder} takes {need / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} GiB are free.")


_ONE_AT_A_TIME = threading.Lock()  # orbax numbers what it does once in a process, and threads take each other's numbers


@contextmanager
def _orbax(directory: Path) -> Iterator[tuple[Any, Path]]:
    """Orbax's checkpointer, and the folder of arrays in `directory` as it must be called there. Other threads wait.

    Without the tracebacks that orbax's and tensorstore's threads print and log; what they say is raised, too.
    """
    import orbax.checkpoint as ocp
    from orbax.checkpoint._src.futures import signaling_client
    from orbax.checkpoint._src.multihost import multihost

    folder = directory.absolute() / "arrays"
    with _ONE_AT_A_TIME, _silent(), ExitStack() as stack:
        if {*str(folder)} & ({*"[*?\\"} - {os.sep}):  # which they take for patterns: a link leads there
            link = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "checkpoint"
            link.symlink_to(folder.parent, target_is_directory=True)
            folder = link / "arrays"
        alone: dict[str, Any] = {}
        if group().count > 1:  # each writes by itself and waits for nobody; orbax takes NumPy's arrays of process 0
            alone["multiprocessing_options"] = ocp.options.MultiprocessingOptions(0, {0}, "alone")
            alone["async_options"] = ocp.options.AsyncOptions(barrier_sync_fn=lambda *_, **__: None)
            stack.callback(setattr, multihost, "process_index", multihost.process_index)
            multihost.process_index = lambda: 0
            # threads of one checkpoint signal to each other under numbers that all processes count alike: in the
            # store that they share, they would take each other's signals for their own
            own = signaling_client.ThreadSafeKeyValueSignalingClient()
            stack.callback(setattr, signaling_client, "get_signaling_client", signaling_client.get_signaling_client)
            signaling_client.get_signaling_client = lambda: own
        yield stack.enter_context(ocp.StandardCheckpointer(**alone)), folder


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing that this thread and those that begin meanwhile raise unseen is printed, nor what absl logs."""
    logger, others = logging.getLogger("absl"), {*threading.enumerate()} - {threading.current_thread()}
    level, hooks = logger.level, (sys.excepthook, sys.unraisablehook, threading.excepthook)

    def of_others(hook: Any) -> Any:
        return lambda *raised: hook(*raised) if threading.current_thread() in others else None

    logger.setLevel(logging.CRITICAL + 1)
    sys.excepthook, sys.unraisablehook, threading.excepthook = map(of_others, hooks)
    try:
        yield
    finally:
        logger.setLevel(level)
        sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
