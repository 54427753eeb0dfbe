"""The manifest of a checkpoint: what its files and arrays must hash to."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from purejaxppo.errors import UsageError
from purejaxppo.rundir.files import json_text, read_json
from purejaxppo.rundir.record import refuse_newer

FORMAT = 1  # one more with each change that older versions cannot read


def read_manifest(manifest: Path) -> dict[str, Any]:
    """What a manifest holds, if every byte of it is as it was written."""
    outer = read_json(manifest)
    version, content = outer.get("format"), outer.get("content")
    if type(version) is int and version > FORMAT:
        raise UsageError(f"{manifest} has format {version} and this version reads up to {FORMAT}; upgrade purejaxppo.")
    whole = outer.keys() == {"format", "sha256", "content"} and type(version) is int and version > 0
    if not whole or outer["sha256"] != digest(content) or json_text(outer) != manifest.read_text(encoding="utf-8"):
        raise UsageError(f"{manifest} is damaged: its SHA-256 is not what it says.")
    if not isinstance(content, dict):
        raise UsageError(f"{manifest} is not what a run leaves; restore it.")
    refuse_newer(manifest, content.get("purejaxppo"))
    return content


def files_of(directory: Path) -> dict[str, Path]:
    """The files of orbax, by name.

    Raises:
        UsageError: one is a link, or no file at all: those are not opened.
    """
    folder = directory / "arrays"
    found = sorted(folder.rglob("*"))
    for path in (directory, folder, *found):
        if path.is_symlink() or (path.exists() and not path.is_dir() and not path.is_file()):
            raise UsageError(f"{path} is a link or no file, which none of ours is; restore it.")
    return {x.relative_to(directory).as_posix(): x for x in found if x.is_file()}


def file_digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def describe(x: np.ndarray) -> dict[str, Any]:
    about = {"dtype": str(x.dtype), "shape": list(x.shape)}
    return about | {"sha256": hashlib.sha256(f"{about}".encode() + np.ascontiguousarray(x).tobytes()).hexdigest()}


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
