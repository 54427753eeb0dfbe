"""How fast is training, against what a user would pick instead? Ours and every peer in turn, in alternating rounds.

    python benchmarks/throughput.py                                  # all peers that need no checkout
    python benchmarks/throughput.py --purejaxrl DIR --stoix DIR      # two more, from checkouts of their repositories
    python benchmarks/throughput.py --tasks CartPole --peers ours rejax --rounds 5
    python benchmarks/throughput.py --quick                          # does everything run? one round, few steps

Each peer lives in a virtual environment of its own (made at first use, --venvs), each measurement in a process of its
own: import, compile, train, one line of JSON. A first measurement of ten updates tells how many steps take about
--seconds; these are then the same in all rounds. JSON, table and plot are written anew after each task of each round.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from throughput_figures import write
from venvs import PeerError, default_root, interpreter, told

HERE = Path(__file__).parent


class Task(NamedTuple):
    env: str
    algo: str
    seeds: int
    envs: int
    gpu: bool = False  # only where there is one

    @property
    def name(self) -> str:
        return f"{self.env}/{self.algo}/{self.seeds}x{self.envs}"


class Peer(NamedTuple):
    script: str
    algo: str
    envs: tuple[str, ...]
    many_seeds: bool = False  # trains them as one program
    checkout: str = ""  # the flag that names it, if it is not on the package index
    one_core: bool = False  # ours, for what one seed gains by the others; on a GPU there are none

    def takes(self, task: Task) -> bool:
        """TRPO's peer is held with its one seed against many of ours; the other single-seed peers against one."""
        able = self.algo in (task.algo, "any") and task.env in self.envs
        one_for_many = task.algo == "trpo" and not self.one_core
        return able and (self.many_seeds or task.seeds == 1 or one_for_many)


CARTPOLE, PENDULUM, BREAKOUT = "CartPole-v1", "Pendulum-v1", "Breakout-MinAtar"
TASKS = [
    *(Task(env, "ppo", *size) for env in (CARTPOLE, PENDULUM) for size in ((1, 4), (1, 64), (16, 4), (64, 4))),
    Task(BREAKOUT, "ppo", 1, 64),
    Task(CARTPOLE, "trpo", 1, 1),
    Task(CARTPOLE, "trpo", 16, 1),
    *(Task(env, "ppo", *size, gpu=True) for env in (CARTPOLE, PENDULUM) for size in ((2048, 4), (1, 4096))),
    Task(BREAKOUT, "ppo", 300, 64, gpu=True),
]
PEERS = {
    "ours": Peer("ours.py", "any", (CARTPOLE, PENDULUM, BREAKOUT), many_seeds=True),
    "ours-one-core": Peer("ours.py", "any", (CARTPOLE, PENDULUM, BREAKOUT), one_core=True),
    "purejaxrl": Peer("purejaxrl_ppo.py", "ppo", (CARTPOLE, BREAKOUT), many_seeds=True, checkout="purejaxrl"),
    "rejax": Peer("rejax_ppo.py", "ppo", (CARTPOLE, PENDULUM, BREAKOUT), many_seeds=True),
    "stoix": Peer("stoix_ppo.py", "ppo", (CARTPOLE,), checkout="stoix"),
    "brax": Peer("brax_ppo.py", "ppo", (CARTPOLE, PENDULUM)),
    "sbx": Peer("sbx_ppo.py", "ppo", (CARTPOLE, PENDULUM)),
    "sb3": Peer("sb3_ppo.py", "ppo", (CARTPOLE, PENDULUM)),
    "sb3-contrib": Peer("sb3_contrib_trpo.py", "trpo", (CARTPOLE,)),
}


class Bench:
    """The measurements of one call, and what came of them."""

    def __init__(self, args: argparse.Namespace, cuda: bool) -> None:
        self.args, self.cuda = args, cuda
        self.caches = Path(tempfile.mkdtemp(prefix="throughput-"))
        self.steps: dict[tuple[str, str], int] = {}  # (task, peer) to measure, and the steps per seed
        self.failures: dict[tuple[str, str], str] = {}
        self.rows: list[dict[str, Any]] = []

    def run(self, task: Task, name: str, steps: int, cache: Path | None = None) -> dict[str, Any]:
        """One process, one measurement.

        Raises:
            PeerError: it ended without a result, or not in time.
        """
        peer = PEERS[name]
        script = HERE / "peers" / peer.script
        python = interpreter(script, self.args.venvs, self.cuda)
        seeds = task.seeds if peer.many_seeds else 1
        command = [str(python), str(script), "--env", task.env, "--algo", task.algo]
        command += ["--seeds", str(seeds), "--envs", str(task.envs), "--steps", str(steps)]
        if peer.one_core:
            command += ["--one-core"]
        if peer.checkout:
            command += ["--checkout", str(getattr(self.args, peer.checkout).resolve())]
        if cache:
            command += ["--cache", str(cache)]
        own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" or peer.script == "ours.py"}
        return told(command, own, self.args.timeout)

    def calibrate(self, task: Task, name: str) -> None:
        """See whether it runs, and choose the steps. Of ours, also fill the persistent compilation cache."""
        flag = PEERS[name].checkout
        if flag and not getattr(self.args, flag):
            self.failures[task.name, name] = f"needs a checkout: --{flag} DIR"
            return
        try:
            first = self.run(task, name, 0)
            steps = round(first["steps_per_second"] * self.args.seconds / first["seeds"], -3)
            self.steps[task.name, name] = first["steps_per_seed"] if self.args.quick else int(steps)
            if name == "ours":
                self.run(task, name, self.steps[task.name, name], self.caches / task.name)
            print(f"{task.name} {name}: {self.steps[task.name, name]:,} steps per seed", flush=True)
        except PeerError as error:
            self.failures[task.name, name] = str(error)
            print(f"{task.name} {name}: {error}", flush=True)

    def measure(self, task: Task, name: str, round_number: int) -> None:
        load = os.getloadavg()[0]
        try:
            row = self.run(task, name, self.steps[task.name, name])
            if name == "ours":
                cached = self.run(task, name, self.steps[task.name, name], self.caches / task.name)
                row["cached_compile_seconds"] = cached["compile_seconds"]
        except PeerError as error:
            self.failures[task.name, name] = f"round {round_number}: {error}"
            print(f"{task.name} {name}: {error}", flush=True)
            return
        self.rows.append({"round": round_number, "task": task.name, "peer": name, "load_before": load} | row)
        print(f"round {round_number} {task.name} {name}: {row['steps_per_second']:,.0f} steps/s", flush=True)

    def save(self) -> None:
        failures = [{"task": task, "peer": name, "reason": why} for (task, name), why in self.failures.items()]
        write(self.args.out, {"machine": machine(), "quick": self.args.quick, "rows": self.rows, "failures": failures})


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": found[1] if found else platform.machine(), "cores": cores, "gpu": gpu()}


def gpu() -> str | None:
    """The NVIDIA GPU's name, if there is one."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    return names[0].strip() if names else None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=[""], help=f"words in the names of tasks: {TASKS[0].name}, …")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="about how long one measurement trains")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds after which a measurement is given up")
    parser.add_argument("--purejaxrl", type=Path, help="a checkout of luchris429/purejaxrl")
    parser.add_argument("--stoix", type=Path, help="a checkout of EdanToledo/Stoix")
    parser.add_argument("--venvs", type=Path, default=default_root(), help="where the peers' environments are kept")
    parser.add_argument("--out", type=Path, help="without .json, .md, .png; of some tasks or peers: a temporary one")
    parser.add_argument("--quick", action="store_true", help="one round of ten updates: does everything run?")
    args = parser.parse_args()
    args.rounds = 1 if args.quick else args.rounds
    whole = not args.quick and args.tasks == [""] and args.peers == list(PEERS)  # else the published table would go
    args.out = args.out or (HERE / "results" if whole else Path(tempfile.mkdtemp())) / "throughput"
    return args


def main() -> int:
    args = arguments()
    bench = Bench(args, cuda=gpu() is not None)
    tasks = [t for t in TASKS if (bench.cuda or not t.gpu) and any(word in t.name for word in args.tasks)]
    peers = {name: PEERS[name] for name in args.peers if not (bench.cuda and PEERS[name].one_core)}
    began = time.perf_counter()
    try:
        for task in tasks:
            for name, peer in peers.items():
                if peer.takes(task):
                    bench.calibrate(task, name)
        for number in range(1, args.rounds + 1):
            for task in tasks:
                for name in peers:
                    if (task.name, name) in bench.steps:
                        bench.measure(task, name, number)
                bench.save()
            print(f"round {number} of {args.rounds} ended after {time.perf_counter() - began:.0f} s", flush=True)
    finally:
        shutil.rmtree(bench.caches)
    return 0 if bench.rows else 1


if __name__ == "__main__":
    sys.exit(main())
