"""The run directory: made, described in config.json, and read back without trust."""

import fcntl
import importlib.metadata
import json
import math
import os
import platform
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from purejaxppo import __version__
from purejaxppo.config import Config
from purejaxppo.presets import preset, settings_of
from purejaxppo.types import UsageError

_LARGEST_JSON = 2**26  # bytes
_PRNGS = ("threefry2x32", "rbg", "unsafe_rbg")


class RunRecord(NamedTuple):
    """What config.json says."""

    directory: Path
    config: Config
    seeds: list[int]
    options: dict[str, Any]  # of the run loop, see options.py
    prng: str  # implementation of the keys
    devices: int
    versions: dict[str, str]
    threads: int | None = None  # of the CPU; None on an accelerator, or where nobody wrote it down


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


def write_record(record: RunRecord, name: str = "config.json", more: Mapping[str, Any] | None = None) -> None:
    """Write config.json, or what else begins with the same."""
    write_json(
        record.directory / name,
        {
            "settings": settings_of(record.config),
            "seeds": record.seeds,
            "options": record.options,
            "devices": record.devices,
            "threads": record.threads,
            "prng_implementation": record.prng,
            "versions": record.versions,
            **(more or {}),
        },
    )


def read_record(directory: Path, env: Any = None, name: str = "config.json") -> RunRecord:
    """Read config.json, believing nothing in it.

    An environment of the user's own is code that the file merely names: `env` must give it again, as `module:Class` or
    as an instance.

    Raises:
        UsageError: there is none, it is damaged, or what it asks for cannot work here.
    """
    path = directory / name
    content = read_json(path)

    def part(name: str, kind: type) -> Any:
        if not isinstance(content.get(name), kind):
            raise UsageError(f"{path}: {name} = {content.get(name)!r:.80} must be a {kind.__name__}; restore the file.")
        return content[name]

    versions = part("versions", dict)
    refuse_newer(path, versions.get("purejaxppo"))
    settings, seeds, prng = dict(part("settings", dict)), part("seeds", list), part("prng_implementation", str)
    valid = all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds) and 0 < len(seeds) <= 2**20
    if not valid or len({*seeds}) < len(seeds) or prng not in _PRNGS:
        raise UsageError(
            f"{path}: seeds must be different whole numbers in [0, 2³²) and the PRNG one of {', '.join(_PRNGS)}; "
            "restore the file."
        )
    refuse_huge(path, settings | part("options", dict))
    refuse_links(directory)
    algo, named = settings.pop("algo", None), settings.pop("env", None)
    if not isinstance(algo, str) or not isinstance(named, str):
        raise UsageError(f"{path}: algo = {algo!r:.80} and env = {named!r:.80} must be names; restore the file.")
    if env is None and (":" in named or "(" in named):
        raise UsageError(
            f"{path}: env = {named!r:.80} is code of its own, which a file is not trusted to run; give it again as env."
        )
    if isinstance(env, str) and env != named:
        raise UsageError(f"env = {env!r} is not the one that this run was trained on, {named!r:.80}; pass that one.")
    try:
        settings = {name: float(x) if x in ("inf", "-inf") else x for name, x in settings.items()}
        config = preset(algo, named if env is None else env, **settings)
        config.check()
        if config.num_updates >= 2**31:
            raise UsageError(f"total_steps = {config.total_steps} takes more updates than can be counted, 2³¹.")
    except UsageError as error:
        raise UsageError(f"{path}: {error!s:.400}") from error
    except (AttributeError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: the settings do not fit together ({error!s:.200}); restore the file.") from error
    devices, threads = part("devices", int), None if content.get("threads") is None else part("threads", int)
    return RunRecord(directory, config, seeds, part("options", dict), prng, devices, versions, threads)


def refuse_huge(path: Path, values: Mapping[str, Any]) -> None:
    """Raises: UsageError: a number that JAX cannot count to, or a longer list or text than any of ours."""
    for name, value in values.items():
        items = value if isinstance(value, list) else [value]
        limit = 2**53 if name == "total_steps" else 2**31
        if len(items) > 64 or any(isinstance(x, int) and abs(x) >= limit for x in items):
            raise UsageError(f"{path}: {name:.40} = {value!r:.80} is larger than can be; restore the file.")
        if isinstance(value, str) and len(value) > 1000:
            raise UsageError(f"{path}: {name:.40} = {value[:40]!r}… is longer than can be; restore the file.")


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


def refuse_newer(path: Path, version: Any) -> None:
    """Raises: UsageError: `path` was written by a newer purejaxppo, or does not say by which."""
    if not isinstance(version, str) or not re.fullmatch(r"\d{1,6}(\.\d{1,6}){1,2}\S{0,20}", version):
        raise UsageError(f"{path}: purejaxppo = {version!r:.80} is no version; restore the file.")

    def numbers(text: str) -> list[int]:
        return [int(x) for x in re.findall(r"\d+", text)[:3]]

    if numbers(version) > numbers(__version__):
        raise UsageError(f"{path} was written by purejaxppo {version}, newer than this {__version__}; upgrade.")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Strict JSON, complete or not there; infinities and NaN, which JSON lacks, as the strings that `float` reads."""
    draft = path.with_name(f".{path.name}.saving")
    try:
        draft.unlink(missing_ok=True)
        with draft.open("x", encoding="utf-8") as file:  # follows no link
            file.write(json_text(plain(content)))
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


def plain(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def versions() -> dict[str, str]:
    """What a run's numbers depend on beside its settings."""
    packages = ("jax", "jaxlib", "flax", "optax", "gymnax", "numpy")
    found = {package: importlib.metadata.version(package) for package in packages}
    return {"purejaxppo": __version__, "python": platform.python_version(), **found}
