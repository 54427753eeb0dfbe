"""How all files of a run directory are written, whole or not at all, and read, without trust."""

import csv
import errno
import io
import json
import math
import os
import secrets
import stat
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purejaxppo.errors import UsageError, reason
from purejaxppo.fields import without_address

SWEEP = "sweep.json"  # beside the run directories of a sweep
UNFINISHED = ".unfinished"  # likewise: a directory for each batch of settings under way
LOG_PARTS = "metrics.*.csv"  # the log of several processes, see `logs.py`
TUNE = "tune.json"  # beside what a study leaves
SCORES = "scores.json"  # of a study's trials, in its directory
LARGEST_FILE = {".json": 2**26, ".csv": 2**29, ".toml": 2**20}  # bytes that are read
LARGEST_NUMBER = 1e100  # no float32 comes near it; what is beyond counts as missing, so that sums stay finite


def refuse_links(directory: Path) -> None:
    """What a run writes into must be its own: links could lead out of it, and pipes never answer.

    Raises:
        UsageError: one of its files is a link, or neither file nor directory.
    """
    ours = ["config.json", "metrics.csv", "summary.json", "learning_curve.png", "checkpoints", "tensorboard"]
    ours += ["wandb", "wandb/id", SWEEP, "results.csv", "results.png", UNFINISHED]
    ours += [TUNE, SCORES, "study.db", "states", "best", "best.toml", "trials.csv"]
    several = *(directory / "tensorboard").glob("*"), *directory.glob(LOG_PARTS)
    for path in (*(directory / name for name in ours), *several):
        if path.is_symlink() or (path.exists() and not path.is_dir() and not path.is_file()):
            raise UsageError(f"{path} is a link or no file, which none of ours is; put the file itself there.")


def check_out(path: Path, suffixes: Collection[str] = (), flag: str = "out") -> None:
    """Raises: UsageError: no file with one of these suffixes can stand there; a directory, link or device does, say."""
    if suffixes and path.suffix not in suffixes:
        raise UsageError(f"{flag} = {str(path)!r} must end in {' or '.join(suffixes)}; rename it.")
    if path.is_symlink():
        raise UsageError(f"{flag} = {str(path)!r} is a link; name the file itself.")
    if not path.parent.is_dir() or (path.exists() and not path.is_file()):
        raise UsageError(f"{flag} = {str(path)!r} must be a file in a directory that exists; choose another --{flag}.")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file to write to, which takes the place of `path` if the block succeeds and is deleted if it fails.

    It lies beside `path` and has its suffix. Its name is random and the file is new, so that no link is followed.
    """
    draft = path.with_name(f".{secrets.token_hex(8)}.saving{path.suffix}")
    draft.touch(exist_ok=False)
    try:
        yield draft
        sync(draft)
        os.replace(draft, path)
        sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """What was written to a file, or which files a directory has, survives a power cut from here on."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows, of a directory
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # a file system that cannot
            raise
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Whole, or not at all."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="")


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows of cells as a CSV file has them."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Strict JSON; infinities and NaN, which it lacks, as the strings that `float` reads."""
    write_text(path, json_text(to_json(content)))


def json_text(content: Any) -> str:
    """As `write_json` writes it."""
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises: UsageError: it holds none, or see `read_text`."""
    with refusing(path):
        content = json.loads(read_text(path) or "null")
    if not isinstance(content, dict):
        raise malformed(path, "it is empty, or no JSON object")
    return content


def read_toml(path: Path) -> dict[str, Any]:
    """A file of the user's own. Raises: UsageError: it cannot be read, or is not TOML."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE[".toml"] + 1)
        if len(data) > LARGEST_FILE[".toml"]:
            raise ValueError(f"it is larger than {LARGEST_FILE['.toml']:,} bytes")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read ({error.strerror or error}); pass another file.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML ({error!s:.80}); see --help for what it holds.") from error


def read_text(path: Path) -> str:
    """Raises: UsageError: it is missing, a link, no file, larger than any of ours, or not UTF-8."""
    with refusing(path):
        about, limit = path.lstat(), LARGEST_FILE[path.suffix]
        if not stat.S_ISREG(about.st_mode):
            raise malformed(path, "it is a link or no file")
        if about.st_size > limit:
            raise malformed(path, f"it has {about.st_size:,} bytes, and at most {limit:,} are read")
        return path.read_bytes().decode()


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """What reading `path` raises, whatever it holds, as a UsageError that names it."""
    try:
        yield
    except UsageError:
        raise
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"{error.filename or path} cannot be read ({why}); is this a run directory?") from error
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise malformed(path, f"{reason(error):.200}") from error
    except csv.Error as error:
        raise malformed(path, str(error)) from error


def malformed(path: Path, why: str, fix: str = "restore it") -> UsageError:
    """The error to raise where a file holds what no run writes."""
    return UsageError(f"{path} is not what a run leaves: {why}; {fix}.")


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
    if isinstance(value, str | int | float | bool | None):
        return value
    text = without_address(value)
    return text if text.startswith("<") or "(" in text else f"<{text}>"  # no name


def from_json(value: Any) -> Any:
    """What was made JSON by `to_json`: infinities, which JSON lacks, and tuples, which it has as lists."""
    if isinstance(value, dict):
        return {key: from_json(x) for key, x in value.items()}
    if isinstance(value, list):
        return tuple(from_json(x) for x in value)
    return float(value) if value in ("inf", "-inf") else value


def to_float(value: Any) -> float:
    """A number of a JSON file or a cell; NaN if missing or not finite. Raises: TypeError, ValueError: it is none."""
    if value is None or value == "":
        return math.nan
    if isinstance(value, bool):
        raise TypeError(f"{value} is not a number")
    found = float(value) if not isinstance(value, int) or abs(value) < LARGEST_NUMBER else math.nan
    return found if abs(found) < LARGEST_NUMBER else math.nan


def shown(value: Any, limit: int = 60) -> str:
    """A JSON value as one line of printable text, cut after `limit` characters."""
    if isinstance(value, list):
        text = ", ".join(shown(item, limit) for item in value[:limit])
    elif isinstance(value, dict | bool | None):
        text = json.dumps(value)
    elif isinstance(value, float):
        text = short if float(short := f"{value:.6g}") == value else repr(value)
    else:
        text = str(value) if not isinstance(value, int) or abs(value) < 10 ** min(limit, 60) else "a huge integer"
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"
