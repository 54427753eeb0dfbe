"""Whole training states on disk: written through orbax, hashed, read back before they count, and checked when restored.

    checkpoints/<env_steps>/arrays/         orbax's files
    checkpoints/<env_steps>/manifest.json   what they hold, with the SHA-256 of every array and of every file

The arrays are a tree of two: `state`, the `TrainState` of all seeds, and `totals` [seeds, metrics], the sums since the
last row of metrics.csv. `about` in the manifest has `update` and `env_steps` (made so far), `seeds`, `settings`,
`scores` (the last return of each seed), `score` (their IQM, by which the best checkpoint is kept), `seconds` (spent so
far) and `logs` (length and SHA-256 of metrics.csv at that time, of each run directory that the seeds belong to).

A checkpoint is written under another name and renamed when it is whole: one with a number for a name is complete.
"""

import dataclasses
import logging
import math
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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo._version import __version__
from purejaxppo.config import Config
from purejaxppo.errors import UsageError, reason
from purejaxppo.parallel.devices import free_memory
from purejaxppo.presets import settings_of
from purejaxppo.rundir.files import read_json, refusing, sync, to_json
from purejaxppo.rundir.manifest import describe, read_manifest, write_manifest

Arrays = dict[str, np.ndarray]  # by path in the tree: "state.policy.params.Dense_0.kernel"


class Snapshot(NamedTuple):
    """A checkpoint, read and found whole."""

    arrays: Arrays
    keys: dict[str, str]  # which of them are PRNG keys, and of which implementation
    about: dict[str, Any]  # what `save` was told
    directory: Path

    def check(self, config: Config, seeds: list[int], like: Any) -> None:
        """Hold it against the run that it stands in, and `like`, the shapes of that run's states.

        Raises:
            UsageError: it is another run's, of another algorithm, environment, setting or seeds.
        """
        with refusing(self.directory / "manifest.json"):
            self._check_progress(config.steps_per_update, len(seeds))
            fields = (*dataclasses.fields(config), *dataclasses.fields(config.algo))
            usual = {field.name: to_json(field.default) for field in fields}  # for what an older version did not have
            theirs = usual | self.about["settings"] | {"seeds": self.about["seeds"]}
        ours = to_json(settings_of(config) | {"seeds": seeds})
        falls = config.anneal_learning_rate or config.anneal
        mine_to_change = set() if falls else {"total_steps"}  # which a resumed run may raise
        if not isinstance(config.env, str):
            mine_to_change |= {"env"}  # given again as an instance, which has no name
        # modules of the user's own are given again, too: `like` holds their parameters' shapes
        mine_to_change |= {name for name in ("policy_network", "critic_network") if getattr(config, name) is not None}
        for name in sorted((ours.keys() | theirs.keys()) - mine_to_change):
            if ours.get(name) != theirs.get(name):
                raise UsageError(
                    f"{self.directory} was written with {name} = {theirs.get(name)!r:.80}, and config.json says "
                    f"{ours.get(name)!r:.80}; put back the one that belongs to it."
                )
        self.state(like)

    def state(self, like: Any) -> Any:
        """The saved state as a tree like `like`: a tree of arrays, or its `jax.eval_shape`.

        Raises:
            UsageError: an array is missing, or of another shape or dtype; nothing is cast.
        """
        leaves = [self._leaf(path, wanted) for path, wanted in leaves_by_path({"state": like}).items()]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _leaf(self, path: str, wanted: Any) -> Any:
        found, data = self.arrays.get(path), jax.eval_shape(_as_data, wanted)
        if found is None or (found.shape, found.dtype) != (data.shape, data.dtype):
            what = "missing" if found is None else f"{found.dtype}{list(found.shape)}"
            raise UsageError(
                f"{self.directory}: {path} is {what} and must be {data.dtype}{list(data.shape)}; the checkpoint "
                "is of another network size, environment or algorithm."
            )
        if not _is_key(wanted):
            return found
        with refusing(self.directory / "manifest.json"):
            key = jax.random.wrap_key_data(jnp.asarray(found), impl=self.keys[path])
        if key.dtype != wanted.dtype:
            raise UsageError(f"{self.directory}: {path} is a key of {self.keys[path]}, and must not be.")
        return key

    def _check_progress(self, batch: int, num_seeds: int) -> None:
        """Raises: ValueError, TypeError, KeyError: what it says of itself cannot be."""
        update, steps, totals = self.about["update"], self.about["env_steps"], self.arrays["totals"]
        if type(update) is not int or update < 1 or steps != update * batch or self.directory.name != str(steps):
            raise ValueError(f"{update!r:.40} updates of {batch} steps do not make {steps!r:.40}, or not its name")
        if totals.ndim != 2 or len(totals) != num_seeds or totals.dtype != np.float32:
            raise ValueError(f"totals is {totals.dtype}{list(totals.shape)}")
        if np.asarray(self.about["scores"], np.float64).shape != (num_seeds,):
            raise ValueError("scores are not one per seed")
        seconds = self.about["seconds"]
        if not {"compile", "run"} <= seconds.keys() or not all(0 <= x < math.inf for x in seconds.values()):
            raise ValueError("seconds are none")


def save(directory: Path, tree: Any, about: Mapping[str, Any]) -> None:
    """Write a tree of arrays, with `about` (JSON) in the manifest. When this returns, it was read back.

    Raises:
        OSError: it could not be written. Nothing of it is left, and other checkpoints are as they were.
    """
    arrays = flatten(tree)
    draft = directory.with_name(f".{secrets.token_hex(8)}.saving")
    content = {
        "purejaxppo": __version__,
        "about": to_json(about),
        "keys": {path: str(jax.random.key_impl(x)) for path, x in leaves_by_path(tree).items() if _is_key(x)},
        "arrays": {path: describe(x) for path, x in arrays.items()},
    }
    try:
        draft.parent.mkdir(exist_ok=True)  # but not the run directory, if that was moved away
        draft.mkdir()
        need, free = sum(x.nbytes for x in arrays.values()) + 2**20, shutil.disk_usage(draft).free
        if need > free:  # found out by orbax, it would leave threads that complain
            raise OSError(f"it may take {need:,} bytes, and {free:,} are free")
        with _orbax(draft) as (checkpointer, folder):
            checkpointer.save(folder, {path: x for path, x in arrays.items() if x.size})
        (draft / "arrays" / "commit_success.txt").unlink(missing_ok=True)  # tells where on this machine it was written
        write_manifest(draft, content)
        read(draft, own=True)
        if directory.is_symlink():
            directory.unlink()
        shutil.rmtree(directory, ignore_errors=True)
        for path in (*draft.rglob("*"), draft):
            sync(path)
        draft.rename(directory)
        sync(directory.parent)
    except Exception as error:  # orbax wraps what the system says in errors of many kinds
        shutil.rmtree(draft, ignore_errors=True)
        raise OSError(f"checkpoint {directory} cannot be written ({reason(error)})") from error


def read(directory: Path, own: bool = False) -> Snapshot:
    """Read a checkpoint, checking every file and array against its manifest.

    `own`: this process has just written it, so that its sizes need no look before memory is taken for them.

    Raises:
        UsageError: it is damaged, or of a newer version; the message names the file.
    """
    content, folder = read_manifest(directory), directory / "arrays"
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
            shutil.rmtree(directory)


def flatten(tree: Any) -> Arrays:
    """Every leaf by its path, on the host; PRNG keys as the integers that they are."""
    return {path: np.asarray(_as_data(x)) for path, x in leaves_by_path(tree).items()}


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


@contextmanager
def _orbax(directory: Path) -> Iterator[tuple[Any, Path]]:
    """Orbax's checkpointer, and the folder of arrays in `directory` as it must be called there.

    Without the tracebacks that orbax's and tensorstore's threads print and log; what they say is raised, too.
    """
    import orbax.checkpoint as ocp

    logger, hooks = logging.getLogger("absl"), (sys.excepthook, sys.unraisablehook, threading.excepthook)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    silent: Any = lambda *_: None  # noqa: E731
    sys.excepthook = sys.unraisablehook = threading.excepthook = silent
    folder = directory.absolute() / "arrays"
    try:
        with ExitStack() as stack:
            if {*str(folder)} & ({*"[*?\\"} - {os.sep}):  # which they take for patterns: a link leads there
                link = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "checkpoint"
                link.symlink_to(folder.parent, target_is_directory=True)
                folder = link / "arrays"
            yield stack.enter_context(ocp.StandardCheckpointer()), folder
    finally:
        logger.setLevel(level)
        sys.excepthook, sys.unraisablehook, threading.excepthook = hooks


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Every leaf by its path, as `flatten` names them, but as they are."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in found}
    if len(leaves) < len(found):  # a key holds the separator
        return {jax.tree_util.keystr(path): x for path, x in found}
    return leaves


def _as_data(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
