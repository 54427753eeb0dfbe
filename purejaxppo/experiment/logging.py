"""The files of a run directory: config.json, metrics.csv, summary.json."""

import csv
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purejaxppo import __version__
from purejaxppo.types import UsageError


def new_directory(out: Path) -> Path:
    """Create the run directory; what is there already is never written over.

    Raises:
        UsageError: it exists and holds something, or cannot be created.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UsageError(
                f"out = {str(out)!r} already holds files, and a run needs a new one; choose another --out."
            )
        (out / "config.json").touch()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"out = {str(out)!r} cannot be written ({reason}); choose another --out.") from error
    return out


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Strict JSON; infinities and NaN, which JSON lacks, as the strings that Python's `float` reads."""
    path.write_text(json.dumps(_plain(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def versions() -> dict[str, str]:
    """What a run's numbers depend on beside its settings."""
    packages = ("jax", "jaxlib", "flax", "optax", "gymnax", "numpy")
    found = {package: importlib.metadata.version(package) for package in packages}
    return {"purejaxppo": __version__, "python": platform.python_version(), **found}


class MetricsFile:
    """metrics.csv: tidy, one row per seed and log interval, flushed as it grows, so that it can be read meanwhile."""

    def __init__(self, path: Path, seeds: list[int]) -> None:
        self._file = path.open("w", newline="")
        self._writer = csv.writer(self._file)
        self._seeds = seeds
        self._columns: list[str] = []

    def write(self, update: int, env_steps: int, metrics: Mapping[str, np.ndarray]) -> None:
        """One row per seed of metrics [seeds]. The first call fixes the columns; NaN becomes an empty cell."""
        if not self._columns:
            self._columns = sorted(metrics)
            self._writer.writerow(["seed", "update", "env_steps", *self._columns])
        for i, seed in enumerate(self._seeds):
            cells = [float(metrics[name][i]) for name in self._columns]
            self._writer.writerow([seed, update, env_steps, *("" if math.isnan(x) else f"{x:.7g}" for x in cells)])
        self._file.flush()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
