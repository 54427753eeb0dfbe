"""The manifest of a checkpoint: what its files and arrays must hash to."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from purejaxppo.errors import UsageError
from purejaxppo.rundir.files import json_text, malformed, read_json, read_text, refusing, write_json
from purejaxppo.rundir.record import refuse_newer

FORMAT = 2  # one more with each change that older versions cannot read; 2: several processes' parts


def write_manifest(directory: Path, content: Mapping[str, Any]) -> None:
    """Of a checkpoint whose arrays are written."""
    content = {**content, "files": {name: file_digest(path) for name, path in files_of(directory).items()}}
    version = FORMAT if "parts" in content else 1
    write_json(directory / "manifest.json", {"format": version, "sha256": digest(content), "content": content})


def read_manifest(directory: Path) -> dict[str, Any]:
    """What it says, if every byte of it and of the files that it lists is as it was written. Raises: UsageError."""
    manifest = directory / "manifest.json"
    outer = read_json(manifest)
    version = outer.get("format")
    content: Any = outer.get("content")
    if type(version) is int and version > FORMAT:
        raise UsageError(f"{manifest} has format {version} and this version reads up to {FORMAT}; upgrade purejaxppo.")
    with refusing(manifest):
        whole = outer.keys() == {"format", "sha256", "content"} and type(version) is int and version > 0
        if not whole or outer["sha256"] != digest(content) or json_text(outer) != read_text(manifest):
            raise UsageError(f"{manifest} is damaged: its SHA-256 is not what it says.")
        refuse_newer(manifest, content.get("purejaxppo"))
        if (version != 1) != ("parts" in content):
            raise malformed(manifest, f"format {version} does not belong to it")
        listed, files = content["files"], files_of(directory)
        for name in sorted(listed.keys() | files.keys()):
            if name not in files:
                raise UsageError(f"{directory / name} is missing.")
            if name not in listed:
                raise UsageError(f"{directory / name} is not in {manifest.name}; delete it, if you know what it is.")
            if file_digest(files[name]) != listed[name]:
                raise UsageError(f"{directory / name} is damaged: its SHA-256 is not the manifest's.")
    return content


def files_of(directory: Path) -> dict[str, Path]:
    """The files of orbax, by name. Raises: UsageError: one is a link, or no file at all: those are not opened."""
    folder = directory / "arrays"
    found = sorted(folder.rglob("*"))
    for path in (directory, folder, *found):
        if path.is_symlink() or (path.exists() and not path.is_dir() and not path.is_file()):
            raise malformed(path, "it is a link or no file")
    return {x.relative_to(directory).as_posix(): x for x in found if x.is_file()}


def file_digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def describe(x: np.ndarray) -> dict[str, Any]:
    about = {"dtype": str(x.dtype), "shape": list(x.shape)}
    return about | {"sha256": hashlib.sha256(f"{about}".encode() + np.ascontiguousarray(x).tobytes()).hexdigest()}


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
