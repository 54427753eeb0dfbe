"""Workers of one sweep that join and die at random: what comes of it, and how often each batch was begun.

    python benchmarks/sweep_workers.py --trials 10

Each trial: four workers start with the same command. While the sweep lasts, one of those that live is killed (SIGKILL)
or stopped (SIGTERM) now and then, and a new one joins. A trial passes if results.csv has the bytes of a sweep by one
worker, and no batch was begun more often than workers were killed or stopped in it, plus once. Trials have a seed each,
and are written one by one to `--out`: the same command continues.
"""

import argparse
import json
import os
import random
import re
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

# workers are many processes of few cores, and most of a start is compilation
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

import jax
from survival import begin, wait

from purejaxppo.__main__ import front
from purejaxppo.cli import sweep  # noqa: F401 - imported here, it need not be in each fork

HERE = Path(__file__).parent
WORKERS = 4
FLAGS = (
    "--algo ppo --env CartPole-v1 --num-seeds 2 --total-steps 10240 --num-envs 2 --num-steps 32 --num-epochs 1 "
    "--num-minibatches 1 --hidden-sizes 8 --final-episodes 2 --checkpoint-interval 40 --devices 1 --at-once 2 "
    "--grid gamma=0.9,0.95,0.98,0.99 --grid clip_eps=0.1,0.2,0.3 --grid hidden_sizes=8,4"
).split()
LIMIT = 900.0  # seconds of a trial


class Worker:
    """A process, and what it says. It is a fork of this one, which has everything imported and no JAX in use."""

    def __init__(self, out: Path, log: Path) -> None:
        self.log, self.ended_by, self.code = log, 0, None
        log.touch()
        self.pid = begin(["sweep", *FLAGS, "--join", str(out)], front, errors=log, output=log)

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether it has ended, or does so within some time."""
        if self.code is None:
            self.code = wait(self.pid, seconds)
        return self.code is not None

    @property
    def begun(self) -> list[int]:
        """Batches that it has begun, the last of which it may be training."""
        return [int(number) for number in re.findall(r"^batch (\d+) of", self.log.read_text(), re.MULTILINE)]

    def end(self, signum: int) -> None:
        """Kill or stop it."""
        self.ended_by = signum
        os.kill(self.pid, signum)


def trial(number: int, work: Path, expected: bytes) -> dict[str, Any]:
    """One sweep by workers of whom some die."""
    rng, out, began = random.Random(number), work / f"trial-{number}", time.monotonic()
    workers = [Worker(out, work / f"{number}-{i}.log") for i in range(WORKERS)]
    ends = began + LIMIT
    while time.monotonic() < ends and not (out / "results.csv").exists():
        time.sleep(rng.uniform(2.0, 12.0))
        living = [worker for worker in workers if not worker.ended()]
        if living and rng.random() < 0.6:
            rng.choice(living).end(rng.choice([signal.SIGKILL, signal.SIGTERM]))
        if len(living) <= WORKERS and rng.random() < 0.7:
            workers.append(Worker(out, work / f"{number}-{len(workers)}.log"))
    hung = sum(not worker.ended(120.0) for worker in workers)
    if not (out / "results.csv").exists():  # all have died: one more comes
        workers.append(Worker(out, work / f"{number}-{len(workers)}.log"))
        hung += not workers[-1].ended(LIMIT)
    times = Counter(batch for worker in workers for batch in worker.begun)
    died = Counter(worker.begun[-1] for worker in workers if worker.ended_by and worker.begun)
    codes = Counter(str(worker.code) for worker in workers if not worker.ended_by)
    return {
        "trial": number,
        "workers": len(workers),
        "killed": sum(worker.ended_by == signal.SIGKILL for worker in workers),
        "stopped": sum(worker.ended_by == signal.SIGTERM for worker in workers),
        "stop_codes": dict(Counter(str(x.code) for x in workers if x.ended_by == signal.SIGTERM)),
        "exit_codes_of_others": dict(codes),
        "did_not_end": hung,
        "batches": len(times),
        "begun_twice_or_more": sum(count > 1 for count in times.values()),
        "begun_without_need": sum(count > 1 + died[batch] for batch, count in times.items()),
        "same_results": (out / "results.csv").read_bytes() == expected,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "sweep_workers.json")
    options = parser.parse_args()
    done = json.loads(options.out.read_text())["trials"] if options.out.exists() else []
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        jax.config.update("jax_compilation_cache_dir", str(work / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        alone = Worker(work / "alone", work / "alone.log")
        if not alone.ended(LIMIT) or alone.code:
            raise RuntimeError(alone.log.read_text())
        expected = (work / "alone" / "results.csv").read_bytes()
        for number in range(len(done), options.trials):
            done.append(trial(number, work, expected))
            print(json.dumps(done[-1]), flush=True)
            same, needless = (sum(x[name] for x in done) for name in ("same_results", "begun_without_need"))
            about = {"command": "python benchmarks/sweep_workers.py", "flags": " ".join(FLAGS)}
            total = {"trials": len(done), "same_results": same, "batches_begun_without_need": needless}
            options.out.write_text(json.dumps({"about": about, "total": total, "trials": done}, indent=1) + "\n")


if __name__ == "__main__":
    main()
