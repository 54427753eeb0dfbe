"""One virtual environment per peer of a benchmark, from the requirements at the head of the peer's script (PEP 723)."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"(?m)^# /// script\n((?:^#.*\n)+?)^# ///$")


class PeerError(Exception):
    """A peer cannot be installed or run; one line says why."""


def default_root() -> Path:
    """Where the environments are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "purejaxppo" / "peers"


def requirements(script: Path, cuda: bool) -> list[str]:
    """What the script needs; empty if it names nothing. With `cuda`, JAX comes with CUDA."""
    found = BLOCK.search(script.read_text())
    if not found:
        return []
    needed: list[str] = tomllib.loads(re.sub(r"(?m)^# ?", "", found[1]))["dependencies"]
    return [re.sub(r"^jax(?==)", "jax[cuda12]", line) if cuda else line for line in needed]


def interpreter(script: Path, root: Path, cuda: bool, compilers: Sequence[str] = ()) -> Path:
    """The Python to run the script with: this one, or that of its own environment, made if need be.

    `compilers` are requirements beside the script's own, of an environment that is for compiling alone.

    Raises:
        PeerError: its requirements cannot be installed.
    """
    needed = requirements(script, cuda)
    if not needed:
        return Path(sys.executable)
    needed += compilers
    venv = root / (f"{script.stem}_compilers" if compilers else script.stem)
    python, stamp = venv / "bin" / "python", venv / "requirements.json"
    wanted = json.dumps([sys.version, *needed])
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {script.stem} in {venv}", flush=True)
    shutil.rmtree(venv, ignore_errors=True)
    for command in ([sys.executable, "-m", "venv", str(venv)], [str(python), "-m", "pip", "install", "-q", *needed]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PeerError(f"not installed: {last_line(done.stderr)}")
    stamp.write_text(wanted)
    return python


def told(command: Sequence[str], env: Mapping[str, str], limit: float | None = None) -> dict[str, Any]:
    """The line of JSON that a process prints last. Raises: PeerError: it ended without one, or not within `limit`."""
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        raise PeerError(f"no result within {limit:g} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise PeerError(f"exit code {done.returncode}: {last_line(done.stderr)}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def last_line(text: str) -> str:
    """The last line of an error message, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    return lines[-1][:160]
