"""Several processes that train one run: killed, stopped, laid out in other ways, and what it costs. One machine, CPUs.

    TF_CPP_MIN_LOG_LEVEL=3 python benchmarks/hosts.py --kills 50 --stops 20 --more 10 --layouts --cost --ends

Each trial begins a run in two processes of one device each, ends one of them at a random moment, resumes the run, and
compares final state and log with those of one process with two devices that nothing happened to. The moment is drawn
from all that the run takes in every third trial, and after the first checkpoint in the others. `--kills` are resumed
on two processes, every fifth on one process with two devices; `--more` are kills of one process with two devices, which
are resumed on two. Every trial is added to results/hosts.json when it is
done, so that a benchmark that is stopped goes on where it was.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import survival

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.experiment.batch_log import SHOWN
from purejaxppo.parallel.hosts import group
from purejaxppo.parallel.joining import join
from purejaxppo.parallel.places import Place

RESULTS = Path(__file__).parent / "results" / "hosts.json"
RUN = (
    "--num-envs 2 --num-steps 16 --num-minibatches 1 --num-epochs 1 --hidden-sizes 8 --final-episodes 2 --quiet".split()
)
TRIAL = [*RUN, *"--algo a2c --num-seeds 4 --total-steps 256000 --checkpoint-interval 500 --log-interval 250".split()]
TIMEOUT = 6  # seconds of silence after which a process is lost
WAIT = 30  # seconds for all to come: one may be ended before it has


def begin(arguments: list[str], devices: int, errors: Path, cores: set[int] | None = None) -> int:
    """`purejaxppo run` in a fork of this process."""

    def prepare() -> None:
        if cores:
            os.sched_setaffinity(0, cores)
        os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}

    return survival.begin(arguments, prepare=prepare, errors=errors)


def begin_two(arguments: list[str], work: Path, pinned: bool = False) -> list[int]:
    """With `pinned` each has a core of its own, as `srun` gives it to a task."""
    cores = sorted(os.sched_getaffinity(0))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        where = f"coordinator=127.0.0.1:{listener.getsockname()[1]},processes=2,timeout={TIMEOUT},wait={WAIT}"
    return [
        begin(
            [*arguments, "--distributed", f"{where},process={i}"],
            1,
            work / f"errors{i}",
            {cores[i]} if pinned else None,
        )
        for i in (0, 1)
    ]


def ended(child: int) -> bool:
    """Whether it has, with its exit code left for `wait`."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait(children: list[int], seconds: float = 300.0) -> tuple[list[int | None], list[float]]:
    """The exit code of each, None if it hangs and is killed, and after how many seconds it came."""
    began, codes, after = time.monotonic(), dict[int, int | None](), dict[int, float]()
    while len(codes) < len(children) and time.monotonic() - began < seconds:
        for child in (child for child in children if child not in codes):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child], after[child] = os.waitstatus_to_exitcode(status), time.monotonic() - began
        time.sleep(0.005)
    for child in (child for child in children if child not in codes):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        codes[child], after[child] = None, seconds
    return [codes[child] for child in children], [after[child] for child in children]


def digest(out: Path) -> str:
    """Of the final state of all seeds, and of the log; read in a fork, as reading uses JAX."""
    receiver, sender = os.pipe()
    if not (child := os.fork()):
        try:
            os.write(sender, _digest(out).encode())
        finally:
            os._exit(0)
    os.close(sender)
    with open(receiver) as file:
        found = file.read()
    os.waitpid(child, 0)
    return found


def _digest(out: Path) -> str:
    from purejaxppo.rundir.checkpoint import read, steps_saved
    from purejaxppo.rundir.logs import read_log

    snapshot, found = read(steps_saved(out / "checkpoints")[-1]), hashlib.sha256()
    for path in sorted(snapshot.arrays):
        found.update(path.encode() + snapshot.arrays[path].tobytes())
    for name, x in read_log(out, snapshot.about["seeds"]).tidy().items():
        found.update(name.encode() + x.tobytes())
    return found.hexdigest()


def reference(arguments: list[str], work: Path) -> tuple[str, float, float]:
    """One process with two devices: what it leaves, and the seconds it took, in all and to train."""
    out, began = work / "reference", time.monotonic()
    shutil.rmtree(out, ignore_errors=True)
    codes, _ = wait([begin([*arguments, "--out", str(out)], 2, work / "errors")])
    assert codes == [0], (work / "errors").read_text()
    summary = json.loads((out / "summary.json").read_text())
    return digest(out), time.monotonic() - began, summary["training_seconds"]


def trial(kind: str, number: int, undisturbed: tuple[str, float, float], work: Path) -> dict[str, Any]:
    """End one of two processes, or the only one, at a random moment, resume, and compare."""
    signum, begun_on = signal.SIGTERM if kind == "stops" else signal.SIGKILL, 1 if kind == "more" else 2
    rng, out = random.Random(1000 * signum + number + 500 * (kind == "more")), work / "run"
    shutil.rmtree(out, ignore_errors=True)
    (expected, whole, training), victim, saved = undisturbed, rng.randrange(begun_on), number % 3 != 0
    at = rng.uniform(0.0, 0.9) * (training if saved else 1.3 * whole)  # two processes take longer to start
    arguments = [*TRIAL, "--out", str(out)]
    children = begin_two(arguments, work) if begun_on == 2 else [begin(arguments, 2, work / "errors0")]
    while saved and not any(ended(child) for child in children) and not [*out.glob("checkpoints/[0-9]*")]:
        time.sleep(0.01)
    time.sleep(at)
    try:
        os.kill(children[victim], signum)
    except ProcessLookupError:
        at = -1.0
    codes, after = wait(children, 60.0)
    lines = [(work / f"errors{i}").read_text().strip() for i in range(begun_on)]
    others = 1 if (kind, number % 2) == ("stops", 0) or (kind, number % 5) == ("kills", 4) else 2
    if not (out / "config.json").exists():  # before anything was written: it begins anew
        shutil.rmtree(out, ignore_errors=True)
        again = [*TRIAL, "--out", str(out)]
    else:
        again = ["--resume", str(out), "--quiet"]
    resumed = begin_two(again, work) if others == 2 else [begin(again, 2, work / "errors0")]
    ends, _ = wait(resumed)
    same = ends == [0] * len(resumed) and digest(out) == expected
    return {
        "victim": victim,
        "after_a_checkpoint": saved,
        "at": round(at, 2),
        "codes": codes,
        "after": [round(x, 2) for x in after],
        "lines": lines,
        "resumed_on": others,
        "resumed": ends,
        "resumed_lines": [(work / f"errors{i}").read_text().strip() for i in range(len(resumed))],
        "same": same,
    }


def layout(algo: str, work: Path) -> dict[str, Any]:
    """16 seeds of one algorithm in two processes and in one; vmapped, and in turn."""
    found = {}
    for mode in ("vmap", "map"):
        flags = [*RUN, "--algo", algo, "--num-seeds", "16", "--total-steps", "640", "--seed-mode", mode]
        expected, *_ = reference(flags, work)
        out = work / "run"
        shutil.rmtree(out, ignore_errors=True)
        codes, _ = wait(begin_two([*flags, "--out", str(out)], work))
        found[mode] = codes == [0, 0] and digest(out) == expected
    return found


def cost(work: Path) -> dict[str, Any]:
    """Training seconds of the same run in one process with two devices, and in two with a core each, in turn."""
    flags = "--algo ppo --num-seeds 16 --num-envs 4 --num-steps 128 --total-steps 400000 --quiet".split()
    found: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(5):
        for name, seconds in found.items():
            out = work / name
            shutil.rmtree(out, ignore_errors=True)
            arguments = [*flags, "--out", str(out)]
            one = name == "one"
            children = [begin(arguments, 2, work / "errors")] if one else begin_two(arguments, work, pinned=True)
            codes, _ = wait(children, 600)
            assert set(codes) == {0}
            seconds.append(json.loads((out / "summary.json").read_text())["training_seconds"])
    return {**found, "throughput_ratio": median(found["one"]) / median(found["two"])}


def ends_of_chunks(processes: int, work: Path, turns: int = 100) -> dict[str, Any]:
    """Seconds that the end of a chunk takes, with 256 runs in each process: nothing else is done.

    What `Loop._train` tells: which runs have failed, the returns of a row, and seconds and signals for a decision.
    Process 0 and the store in it are what remains where each process has cores of its own: `cpu` is what they take.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{listener.getsockname()[1]}"
    children, found = [], work / "ends"
    for i in range(processes):
        if child := os.fork():
            children.append(child)
            continue
        try:
            os.environ["JAX_PLATFORMS"] = "cpu"
            os.dup2(os.open(work / f"errors{i}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            join(Place(coordinator, processes, i, wait=WAIT), {}, False)
            here, seconds, cpu = group(), [], time.process_time()
            failed = {name: np.zeros(256, np.int32) for name in ("update", "cause")}
            row = {name: np.random.default_rng(i).normal(size=256).astype(np.float32) for name in SHOWN}
            for _ in range(turns):
                began = time.perf_counter()
                here.gathered(failed)
                here.gathered(row)
                here.decided((0.5, 0), max)
                seconds.append(time.perf_counter() - began)
            if here.leads:
                found.write_text(json.dumps([(time.process_time() - cpu) / turns, *sorted(seconds)]))
            here.leave("", 0)
            os._exit(0)
        finally:
            os._exit(99)
    codes, _ = wait(children)
    assert set(codes) == {0}, (work / "errors0").read_text()
    used, *seconds = json.loads(found.read_text())
    quartiles = [seconds[turns // 4], seconds[3 * turns // 4]]
    return {"cpu": used, "median": median(seconds), "quartiles": quartiles}


def run_all(options: argparse.Namespace) -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)

        def keep(kind: str, key: str, value: Any) -> None:
            results.setdefault(kind, {})[key] = value
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            print(kind, key, value, flush=True)

        for algo in (algo for algo in ALGORITHMS if options.layouts and algo not in results.get("layouts", {})):
            keep("layouts", algo, layout(algo, work))
        wanted = {"stops": options.stops, "kills": options.kills, "more": options.more}
        due = [
            (kind, number)
            for number in range(max(wanted.values()))
            for kind, count in wanted.items()
            if number < count and str(number) not in results.get(kind, {})
        ]
        if due:
            undisturbed = reference(TRIAL, work)
        for kind, number in due:
            keep(kind, str(number), trial(kind, number, undisturbed, work))
        if options.cost and "training_seconds" not in results.get("cost", {}):
            keep("cost", "training_seconds", cost(work))
        for processes in (2, 4, 8, 16, 32):
            if options.ends and str(processes) not in results.get("ends", {}):
                keep("ends", str(processes), ends_of_chunks(processes, work))
    for kind in wanted:
        trials = [*results.get(kind, {}).values()]
        hangs = sum(None in x["codes"] for x in trials)
        latest, amid = max((max(x["after"]) for x in trials), default=0.0), sum(any(x["codes"]) for x in trials)
        same = f"{sum(x['same'] for x in trials)} of {len(trials)} the same"
        print(f"{kind}: {same}, {amid} before the run had ended, {hangs} hung, last out {latest} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--stops", type=int, default=0)
    parser.add_argument("--more", type=int, default=0)
    parser.add_argument("--layouts", action="store_true")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--ends", action="store_true", help="what the end of a chunk costs 2 to 32 processes")
    jax.config.update("jax_platforms", "cpu")
    run_all(parser.parse_args())
