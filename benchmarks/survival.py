"""Kill runs, stop them, fill their disk, and see whether what is resumed ends as if nothing had happened.

    python benchmarks/survival.py --kills 200 --stops 50 --full-disks 20

Each trial begins a run in a process of its own, ends it at a random moment, resumes it, and compares the final state
(the SHA-256 of every array of all seeds) and the rows of metrics.csv with those of a run that nothing happened to.
`--full-disks` mounts a small tmpfs, which only root may.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import matplotlib.backends.backend_agg  # noqa: F401 - imported here, these need not be in each fork
import orbax.checkpoint  # noqa: F401
import tensorstore  # noqa: F401

import purejaxppo.plotting  # noqa: F401
from purejaxppo.cli.command import run_process
from purejaxppo.cli.run import main

ALGORITHMS = ("reinforce", "a2c", "npg", "trpo", "ppo", "ppo-penalty")
RUN = (
    "--num-seeds 3 --num-envs 2 --num-steps 64 --num-minibatches 2 --num-epochs 2 --hidden-sizes 16 "
    "--normalize-observations --normalize-rewards --eval-interval 40 --eval-episodes 2 --final-episodes 2"
).split()
ERRORS = Path(tempfile.gettempdir()) / f"survival-{os.getpid()}.err"  # what the last process said
UPDATES = {"reinforce": 400, "a2c": 400, "npg": 200, "trpo": 200, "ppo": 300, "ppo-penalty": 300}


def flags(algo: str, out: Path, *more: str) -> list[str]:
    return ["--algo", algo, *RUN, "--total-steps", str(UPDATES[algo] * 128), "--out", str(out), *more]


def begin(
    arguments: list[str],
    command: Callable[[list[str]], int] = main,
    prepare: Callable[[], Any] = int,
    errors: Path = ERRORS,
    output: Path = Path(os.devnull),
) -> int:
    """Run a command in a fork of this process, which has everything imported and nothing of JAX in use.

    `prepare` is called in the fork before. What it says goes to files, which may be one.
    """
    child = os.fork()
    if child:
        return child
    for path, handle in ((output, 1), (errors, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), handle)
    code = 99
    try:
        prepare()
        run_process(command, arguments)
    except SystemExit as done:
        code = done.code
    finally:
        os._exit(code)


def wait(child: int, seconds: float) -> int | None:
    """The exit code within so many seconds; negative after a signal, None if it runs on."""
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.002)


def said() -> str:
    return ERRORS.read_text().strip()


def finish(arguments: list[str], command: Callable[[list[str]], int] = main) -> str:
    """Run to the end; what it said on stderr."""
    child = begin(arguments, command)
    code = wait(child, 300)
    if code != 0:
        raise RuntimeError(f"exit code {code} of {' '.join(arguments)}: {said()}")
    return said()


def fingerprint(out: Path) -> tuple[str, ...]:
    """All that a run leaves and that must not depend on what happened to it."""
    last = max((out / "checkpoints").iterdir(), key=lambda path: int(path.name))
    arrays = json.loads((last / "manifest.json").read_text())["content"]["arrays"]
    summary = json.loads((out / "summary.json").read_text())
    return last.name, json.dumps(arrays, sort_keys=True), (out / "metrics.csv").read_text(), str(summary["eval_return"])


class Bench:
    """Undisturbed runs to compare with, and the directory that all happens in."""

    def __init__(self, work: Path, algorithms: tuple[str, ...]) -> None:
        self.work, self.algorithms, self.expected, self.seconds = work, algorithms, {}, {}
        for algo in algorithms:
            for name in ("warm", "whole"):  # the first fills the compilation cache
                began = time.monotonic()
                finish(flags(algo, work / f"{algo}-{name}", "--checkpoint-interval", "20"))
                self.seconds[algo] = min(time.monotonic() - began, self.seconds.get(algo, math.inf))
            self.expected[algo] = fingerprint(work / f"{algo}-whole")
            assert fingerprint(work / f"{algo}-warm") == self.expected[algo]
        print({algo: f"{x:.1f} s" for algo, x in self.seconds.items()}, flush=True)

    def ended(self, child: int, out: Path, algo: str, interval: int, rng: random.Random) -> bool:
        """Wait for a random moment, 3 times of 4 after the first checkpoint. True if the run ends before."""
        if rng.random() < 0.25:
            return wait(child, rng.uniform(0, self.seconds[algo])) is not None
        while not any((out / "checkpoints").glob("[0-9]*")):
            if wait(child, 0.005) is not None:
                return True
        return wait(child, rng.uniform(0, 0.04 * UPDATES[algo] / interval)) is not None  # each takes longer than that

    def resumed(self, out: Path, algo: str) -> bool:
        """Resume what was interrupted, and compare. What had no config.json yet is begun anew."""
        if (out / "config.json").exists():
            finish(["--resume", str(out)])
        else:
            shutil.rmtree(out, ignore_errors=True)
            finish(flags(algo, out))
        same = fingerprint(out) == self.expected[algo]
        shutil.rmtree(out)
        return same


def kills(bench: Bench, count: int, rng: random.Random) -> dict:
    """kill -9 at random moments, now and then a second time while it is being resumed."""
    result: Counter[str] = Counter()
    for i in itertools.count():  # one that ends before its moment comes is another try
        if result["runs"] == count:
            return dict(result)
        algo, out = bench.algorithms[i % len(bench.algorithms)], bench.work / f"kill-{i}"
        interval = rng.choice([1, 7, 20])
        child, killed = begin(flags(algo, out, "--checkpoint-interval", str(interval))), 0
        while True:
            if bench.ended(child, out, algo, interval, rng):
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed += 1
            if killed == 2 or rng.random() < 0.8 or not (out / "config.json").exists():
                break
            child = begin(["--resume", str(out)])
        checkpoints = list((out / "checkpoints").glob("[0-9]*")) if out.exists() else []
        result["kills"] += killed
        result["runs"] += killed > 0
        result["with a checkpoint"] += killed > 0 and bool(checkpoints)
        result["identical"] += killed > 0 and bench.resumed(out, algo)
        if not killed:
            shutil.rmtree(out)
        if i % 20 == 19:
            print("kills", dict(result), flush=True)
    raise AssertionError


def stops(bench: Bench, count: int, rng: random.Random) -> dict:
    """SIGTERM or SIGINT at random moments."""
    result: Counter[str] = Counter()
    slowest = 0.0
    for i in itertools.count():
        if result["stopped"] == count:
            return dict(result) | {"slowest_seconds": round(slowest, 2)}
        algo, out = bench.algorithms[i % len(bench.algorithms)], bench.work / f"stop-{i}"
        signum = signal.SIGINT if i % 5 == 4 else signal.SIGTERM
        interval = rng.choice([1, 7, 20])
        child = begin(flags(algo, out, "--checkpoint-interval", str(interval)))
        if bench.ended(child, out, algo, interval, rng):
            result["ended before"] += 1
            continue
        began = time.monotonic()
        os.kill(child, signum)
        code = wait(child, 60)
        if code == 0:  # the run had all but ended, and did
            result["ended before"] += 1
            continue
        slowest = max(slowest, time.monotonic() - began)
        result["stopped"] += 1
        result["exit code 128 + n"] += code == 128 + signum
        if code != 128 + signum:
            print(f"exit code {code} after signal {signum}: {said()[-300:]}")
        result["saved"] += "saved at update" in said()
        result["nothing to save"] += "nothing" in said()
        result["identical"] += bench.resumed(out, algo)
    raise AssertionError


def full_disks(bench: Bench, count: int) -> dict:
    """A tmpfs with so little space that it is full sooner or later."""
    result: Counter[str] = Counter()
    disk = bench.work / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
    messages = set()
    try:
        for i in range(count):
            algo, out, ballast = bench.algorithms[i % len(bench.algorithms)], disk / "run", disk / "ballast"
            shutil.rmtree(out, ignore_errors=True)
            free = shutil.disk_usage(disk).free
            space = 800_000 + 50_000 * i  # 1 MB is kept free for what a checkpoint may take
            ballast.write_bytes(bytes(max(free - space, 0)))
            child = begin(flags(algo, out, "--checkpoint-interval", "20", "--keep-checkpoints", "100"))
            code = wait(child, 120)
            text = said()
            if text.count("\n"):
                print(f"more than a line: {text[:1500]}", flush=True)
            messages.add(text.replace(str(disk), "DISK")[:160])
            result["runs"] += 1
            result["non-zero exit, one line"] += bool(code) and text.startswith("error: ") and "\n" not in text
            result["with a checkpoint"] += any((out / "checkpoints").glob("[0-9]*"))
            ballast.unlink()
            result["identical"] += bench.resumed(out, algo)
    finally:
        subprocess.run(["umount", str(disk)], check=False)
    for message in sorted(messages)[:8]:
        print(message)
    return dict(result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--stops", type=int, default=0)
    parser.add_argument("--full-disks", type=int, default=0)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--updates", type=int, help=f"of each run, instead of {UPDATES}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the counts as JSON")
    chosen = parser.parse_args()
    rng = random.Random(chosen.seed)
    UPDATES |= dict.fromkeys(UPDATES, chosen.updates) if chosen.updates else {}
    work = Path(tempfile.mkdtemp(prefix="survival-"))
    jax.config.update("jax_compilation_cache_dir", str(work / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    counts = {}
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, work, ignore_errors=True)
        cleanup.callback(ERRORS.unlink, missing_ok=True)
        bench = Bench(work, tuple(chosen.algorithms))
        if chosen.kills:
            counts["kills"] = kills(bench, chosen.kills, rng)
        if chosen.stops:
            counts["stops"] = stops(bench, chosen.stops, rng)
        if chosen.full_disks:
            counts["full disks"] = full_disks(bench, chosen.full_disks)
    print(json.dumps(counts, indent=2))
    if chosen.out:
        chosen.out.write_text(json.dumps(counts, indent=2) + "\n")
    wrong = [name for name, c in counts.items() if c.get("identical") != c.get("runs", c.get("stopped"))]
    sys.exit(f"not identical: {wrong}" if wrong else 0)
