"""How all files of a run directory are written, whole or not at all, and read, without trust."""

import fcntl
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purejaxppo.errors import UsageError

_LARGEST_JSON = 2**26  # bytes


def new_directory(out: Path) -> Path:
    """Create the run directory; what is there already is never written over.

    Raises:
        UsageError: it exists and holds something, or cannot be created.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UsageError(
                f"out = {str(out)!r} already holds files, and a run needs a new one; choose another --out, or "
                "--resume it."
            )
        (out / "checkpoints").mkdir()
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"out = {str(out)!r} cannot be written ({why}); choose another --out.") from error
    return out


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold a run directory, while entered or until the process ends.

    Raises:
        UsageError: another process holds it.
    """
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UsageError(f"{out} is being written by another process; wait for it, or stop it.") from error
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(handle)


def refuse_links(directory: Path) -> None:
    """What a run writes into must be its own: links could lead out of it, and pipes never answer.

    Raises:
        UsageError: one of its files is a link, or neither file nor directory.
    """
    ours = ("config.json", "metrics.csv", "summary.json", "learning_curve.png", "checkpoints", "tensorboard", "wandb")
    for path in (
        directory,
        *(directory / name for name in ours),
        *directory.glob(".*.saving"),
        *(directory / "tensorboard").glob("*"),
    ):
        if path.is_symlink() or (path.exists() and not path.is_dir() and not path.is_file()):
            raise UsageError(f"{path} is a link or no file, which none of ours is; put the file itself there.")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Strict JSON, complete or not there; infinities and NaN, which JSON lacks, as the strings that `float` reads."""
    draft = path.with_name(f".{path.name}.saving")
    try:
        draft.unlink(missing_ok=True)
        with draft.open("x", encoding="utf-8") as file:  # follows no link
            file.write(json_text(to_json(content)))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def json_text(content: Any) -> str:
    """As `write_json` writes it."""
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        UsageError: it is missing, a link, no file, larger than 64 MiB, or not JSON.
    """
    try:
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST_JSON:
            raise UsageError(f"{path} is a link, no file or over 64 MiB, which none of ours is; restore the file.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror or error}); is this a run directory?") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{path} is not JSON ({error!s:.80}); restore the file.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not a JSON object; restore the file.")
    return content


def to_json(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return to_json(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
