"""Whole training states on disk: written through orbax, hashed, read back before they count, and checked when restored.

    checkpoints/<env_steps>/arrays/         orbax's files
    checkpoints/<env_steps>/manifest.json   what they hold, with the SHA-256 of every array and of every file

A checkpoint is written under another name and renamed when it is whole: one with a number for a name is complete.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo import __version__
from purejaxppo.config import Config
from purejaxppo.experiment.directory import plain, read_json, refuse_newer, write_json
from purejaxppo.presets import settings_of
from purejaxppo.types import UsageError, reason

FORMAT = 1  # of the manifest; one more with each change that older versions cannot read
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
        ours, theirs = (
            plain(settings_of(config) | {"seeds": seeds}),
            self.about["settings"] | {"seeds": self.about["seeds"]},
        )
        for name in sorted((ours.keys() | theirs.keys()) - {"total_steps"}):  # which a resumed run may raise
            if ours.get(name) != theirs.get(name):
                raise UsageError(
                    f"{self.directory} was written with {name} = {theirs.get(name)!r:.80}, and config.json says "
                    f"{ours.get(name)!r:.80}; put back the one that belongs to it."
                )
        unflatten(self, like, "state.")


def save(directory: Path, tree: Any, about: Mapping[str, Any]) -> None:
    """Write a tree of arrays, with `about` (JSON) in the manifest. When this returns, it is on disk and was read back.

    Raises:
        OSError: it could not be written. Nothing of it is left, and other checkpoints are as they were.
    """
    import orbax.checkpoint as ocp

    arrays = flatten(tree)
    draft = directory.with_name(f".{directory.name}.saving").absolute()
    shutil.rmtree(draft, ignore_errors=True)
    content = {
        "purejaxppo": __version__,
        "about": plain(about),
        "keys": {path: str(jax.random.key_impl(x)) for path, x in _leaves(tree).items() if _is_key(x)},
        "arrays": {path: _describe(x) for path, x in arrays.items()},
    }
    try:
        draft.mkdir(parents=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(draft / "arrays", {path: x for path, x in arrays.items() if x.size})
        content["files"] = {name: _file_digest(path) for name, path in _files(draft).items()}
        write_json(draft / "manifest.json", {"format": FORMAT, "sha256": _digest(content), "content": content})
        read(draft)
        shutil.rmtree(directory, ignore_errors=True)
        draft.rename(directory)
    except Exception as error:  # orbax wraps what the system says in errors of many kinds
        shutil.rmtree(draft, ignore_errors=True)
        raise OSError(f"checkpoint {directory} cannot be written ({reason(error)})") from error


def read(directory: Path) -> Snapshot:
    """Read a checkpoint, checking every file and array against its manifest.

    Raises:
        UsageError: it is damaged, or of a newer version; the message names the file.
    """
    import orbax.checkpoint as ocp

    manifest = directory / "manifest.json"
    outer = read_json(manifest)
    content = outer.get("content")
    if isinstance(outer.get("format"), int) and outer["format"] > FORMAT:
        raise UsageError(
            f"{manifest} has format {outer['format']} and this version reads up to {FORMAT}; upgrade purejaxppo."
        )
    if not isinstance(content, dict) or outer.get("sha256") != _digest(content):
        raise UsageError(f"{manifest} is damaged: its SHA-256 is not what it says.")
    refuse_newer(manifest, content["purejaxppo"])
    files = _files(directory)
    for name, digest in content["files"].items():
        if name not in files:
            raise UsageError(f"{directory / name} is missing.")
        if _file_digest(files[name]) != digest:
            raise UsageError(f"{directory / name} is damaged: its SHA-256 is not the manifest's.")
    empty = {path: np.zeros(x["shape"], x["dtype"]) for path, x in content["arrays"].items() if 0 in x["shape"]}
    like = {
        path: np.broadcast_to(np.zeros((), x["dtype"]), x["shape"])
        for path, x in content["arrays"].items()
        if path not in empty
    }
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            arrays: Arrays = checkpointer.restore((directory / "arrays").absolute(), like)
    except Exception as error:  # tensorstore's errors are of many kinds
        raise UsageError(f"{directory / 'arrays'} cannot be read ({reason(error)}).") from error
    for path, x in arrays.items():
        if _describe(x) != content["arrays"][path]:
            raise UsageError(f"{directory / 'arrays'}: array {path} is not what was saved: its SHA-256 differs.")
    return Snapshot(arrays | empty, content["keys"], content["about"], directory)


def unflatten(snapshot: Snapshot, like: Any, prefix: str = "") -> Any:
    """The arrays under `prefix` as a tree like `like`: a tree of arrays, or its `jax.eval_shape`.

    Raises:
        UsageError: an array is missing, or of another shape or dtype; nothing is cast.
    """

    def leaf(path: str, wanted: Any) -> Any:
        found, data = snapshot.arrays.get(path), jax.eval_shape(_as_data, wanted)
        if found is None or (found.shape, found.dtype) != (data.shape, data.dtype):
            what = "missing" if found is None else f"{found.dtype}{list(found.shape)}"
            raise UsageError(
                f"{snapshot.directory}: {path} is {what} and must be {data.dtype}{list(data.shape)}; the checkpoint "
                "is of another network size, environment or algorithm."
            )
        if not _is_key(wanted):
            return found
        key = jax.random.wrap_key_data(jnp.asarray(found), impl=snapshot.keys[path])
        if key.dtype != wanted.dtype:
            raise UsageError(f"{snapshot.directory}: {path} is a key of {snapshot.keys[path]}, and must not be.")
        return key

    leaves = [leaf(prefix + path, wanted) for path, wanted in _leaves(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def restore(directory: Path, like: Any) -> Any:
    """The training state of all seeds that a run saved; `like` is one, or its `jax.eval_shape`."""
    return unflatten(read(directory), like, "state.")


def steps_saved(checkpoints: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = checkpoints.iterdir() if checkpoints.is_dir() else ()
    return sorted((x for x in found if re.fullmatch(r"\d{1,18}", x.name) and x.is_dir()), key=lambda x: int(x.name))


def newest_whole(candidates: list[Path], accept: Callable[[Snapshot], None], say: Callable[[str], None]) -> Snapshot:
    """The last of `candidates` that is whole and that `accept` does not refuse; `say` is told of those that are not.

    Raises:
        UsageError: none is whole.
    """
    refused = ""
    for candidate in reversed(candidates):
        try:
            snapshot = read(candidate)
            accept(snapshot)
        except UsageError as error:
            refused = f"{error} "
            say(f"checkpoint {candidate.name} cannot be used: {error}")
            continue
        if refused:
            say(f"going on from checkpoint {candidate.name} instead")
        return snapshot
    raise UsageError(f"{refused}No usable checkpoint is left in {candidates[0].parent}; train again in a new --out.")


def prune(checkpoints: Path, keep: int) -> None:
    """Delete all but the last `keep` and the best by `score`; and what was left behind half written."""
    saved = steps_saved(checkpoints)

    def score(directory: Path) -> float:
        try:
            return float(read_json(directory / "manifest.json")["content"]["about"]["score"])
        except (UsageError, KeyError, TypeError, ValueError):
            return float("nan")

    best = max((x for x in saved if score(x) == score(x)), key=lambda x: (score(x), int(x.name)), default=None)
    for directory in saved[:-keep]:
        if directory != best:
            shutil.rmtree(directory)


def flatten(tree: Any) -> Arrays:
    """Every leaf by its path, on the host; PRNG keys as the integers that they are."""
    return {path: np.asarray(_as_data(x)) for path, x in _leaves(tree).items()}


def _leaves(tree: Any) -> dict[str, Any]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in found}


def _as_data(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _describe(x: np.ndarray) -> dict[str, Any]:
    about = {"dtype": str(x.dtype), "shape": list(x.shape)}
    return about | {"sha256": hashlib.sha256(f"{about}".encode() + np.ascontiguousarray(x).tobytes()).hexdigest()}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _files(directory: Path) -> dict[str, Path]:
    """The files of orbax, by name; links are not followed, and are none of them."""
    found = (x for x in sorted((directory / "arrays").rglob("*")) if x.is_file() and not x.is_symlink())
    return {x.relative_to(directory).as_posix(): x for x in found}


def _file_digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
