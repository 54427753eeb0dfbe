"""What is promised of interruptions, each promise tried many times at random moments.

    python benchmarks/survival_promises.py --restarts 100 --stops 200 --sweeps 20

- restarts: `run --resume-or-start` is killed (SIGKILL) once or several times, also before config.json exists, and begun
  again by the same command until it ends. The final states and metrics.csv are those of an undisturbed run.
- stops: SIGTERM in a given phase of a run in a compiled environment, of one in a host environment, or of a sweep. Out
  within 10 seconds with exit code 143 and one line (or 0, if all was done in that moment). What is resumed ends, in
  compiled environments bit for bit as if nothing had happened. A host's steps sometimes take 0.5 s from then on.
- sweeps: of one of several settings, the host environment raises. All others are trained.

Restarts are now and then processes of their own, all else forks of this one. Trials have a seed each, and are written
one by one to `--out`: the same command continues.
"""

import argparse
import contextlib
import functools
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium  # noqa: F401 - imported here, it need not be in each fork
import jax
from survival import ERRORS, begin, fingerprint, finish, said, wait

from purejaxppo.cli import run, sweep
from purejaxppo.experiment import loop
from purejaxppo.experiment.loop import Loop
from purejaxppo.sweeps import execution

ALGORITHMS = ("a2c", "trpo")  # survival.py has all
PHASES = ("start", "compile", "training", "interval evaluation", "saving", "final evaluation")
# A program that calls the host is compiled at each start, as JAX does not cache it.
ORDER = ("compiled", "sweep", "compiled", "host", "compiled", "sweep")
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # most of a start is compilation
LIMIT = 10.0  # seconds from SIGTERM to the end
HERE = Path(__file__).parent
COMMANDS = {"run": run.main, "sweep": sweep.main}
SMALL = "--num-seeds 2 --num-envs 2 --num-steps 32 --total-steps 640 --hidden-sizes 8 --final-episodes 2 "
FLAGS = SMALL + "--eval-interval 4 --eval-episodes 2 --checkpoint-interval 3"
MORE = {"compiled": "", "host": "", "sweep": "--grid gamma=0.9,0.99"}


class Scenario:
    """A command whose undisturbed outcome is known."""

    def __init__(self, work: Path, kind: str, algo: str) -> None:
        self.kind, self.algo, self.slow = kind, algo, work / "slow"
        self.name = "sweep" if kind == "sweep" else "run"
        env = f"gymnasium/survival_environments:Slow-v0,slow={self.slow},workers=1" if kind == "host" else "CartPole-v1"
        self.flags = ["--algo", algo, "--env", env, *FLAGS.split(), *MORE[kind].split()]
        self.code = ["--env", env] if kind == "host" else []  # a user's own module is named again: no file may run it
        self.main = COMMANDS[self.name]
        finish([*self.flags, "--out", str(work / f"{kind}-{algo}-warm")], self.main)  # fills the compilation cache
        out = work / f"{kind}-{algo}-whole"
        began, watched = time.monotonic(), Watched(self, ["--out", str(out)])
        watched.until(lambda: False)
        if watched.code(60.0) != 0:
            raise RuntimeError(said())
        self.seconds, self.entries = time.monotonic() - began, watched.entries
        self.expected = self.outcome(out)

    def outcome(self, out: Path) -> Any:
        """All that must not depend on what happened."""
        if self.kind == "sweep":
            return {path.parent.name: fingerprint(path.parent) for path in sorted(out.glob("*/summary.json"))}
        if self.kind == "compiled":
            return fingerprint(out)
        cells = (line.split(",")[:3] for line in (out / "metrics.csv").read_text().splitlines())
        return json.loads((out / "summary.json").read_text())["env_steps"], [*cells]  # episodes are others

    def process(self, more: list[str]) -> "subprocess.Popen[bytes]":
        """The command as a process of its own, from its very beginning."""
        command = [sys.executable, "-m", "purejaxppo", self.name, *self.flags, *more]
        with ERRORS.open("wb") as errors:
            return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, cwd=HERE)

    def resumed(self, out: Path) -> bool:
        """Whether what was interrupted ends as if it had not been."""
        if (out / ("sweep.json" if self.kind == "sweep" else "config.json")).exists():
            finish(["--resume", str(out), *self.code], self.main)
        else:
            finish([*self.flags, "--out", str(out)], self.main)
        return self.outcome(out) == self.expected


class Watched:
    """A fork that tells through a pipe which phase it enters and leaves."""

    def __init__(self, scenario: Scenario, more: list[str]) -> None:
        self._pipe, pipe = os.pipe()
        self.began = time.monotonic()
        self.child = begin([*scenario.flags, *more], scenario.main, partial(_tell_phases, pipe))
        os.close(pipe)
        self.entries: dict[str, list[tuple[float, float]]] = {"start": [(self.began, 0.0)]}  # began, seconds
        self.phase, self._text = "start", b""

    def until(self, condition: Callable[[], bool]) -> bool:
        """Listen until the condition holds. False: the process has ended before."""
        while not condition():
            select.select([self._pipe], [], [])
            if not (text := os.read(self._pipe, 65536)):
                return False
            *lines, self._text = (self._text + text).split(b"\n")
            for line in lines:
                what, moment = line.decode().split("@")
                self._note(what[0], what[1:], float(moment))
        return True

    def _note(self, sign: str, phase: str, moment: float) -> None:
        if self.phase == "start":
            self.entries["start"] = [(self.began, moment - self.began)]
        of_it = self.entries.setdefault(phase, [])
        if sign == "+":
            of_it.append((moment, 0.0))
        else:
            of_it[-1] = (of_it[-1][0], moment - of_it[-1][0])
        self.phase = phase if sign == "+" else "between"

    def code(self, seconds: float) -> int | None:
        """The exit code, if it comes within so many seconds."""
        os.close(self._pipe)
        return wait(self.child, seconds)


def _tell_phases(pipe: int) -> None:
    def told(phase: str, function: Callable[..., Any], when: Callable[..., bool] = lambda *_: True) -> Any:
        def telling(*arguments: Any) -> Any:
            if not when(*arguments):
                return function(*arguments)
            os.write(pipe, f"+{phase}@{time.monotonic()}\n".encode())
            try:
                return function(*arguments)
            finally:
                with contextlib.suppress(BrokenPipeError):  # nobody listens any more
                    os.write(pipe, f"-{phase}@{time.monotonic()}\n".encode())

        return telling

    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for module in (loop, execution):
        module.compile_program = told("compile", module.compile_program)
    Loop._advance = told("training", Loop._advance)
    Loop._evaluate = told("interval evaluation", Loop._evaluate, lambda _, now: now)
    Loop._save = told("saving", Loop._save)
    Loop._final_evaluation = told("final evaluation", Loop._final_evaluation)


def restart(scenario_of: Callable[[str, str], Scenario], work: Path, i: int, rng: random.Random) -> dict[str, Any]:
    """Kill `--resume-or-start` at random moments; half of the first are before config.json can be there."""
    scenario, out, real = scenario_of("compiled", ALGORITHMS[i // 2 % 2]), work / "trial", i % 4 == 3
    more, kills = ["--out", str(out), "--resume-or-start"], []
    seconds = scenario.seconds + (3.0 if real else 0.0)  # of imports
    while len(kills) < 5 and (not kills or rng.random() < 0.6):
        early = not kills and i % 2 == 0
        moment = rng.uniform(0.0, 0.3 * seconds if early else seconds)
        process = scenario.process(more) if real else None
        child = process.pid if process else begin([*scenario.flags, *more], scenario.main)
        if wait(child, moment) is not None:
            if said():
                raise RuntimeError(said())
            if kills:
                break
            shutil.rmtree(out)
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        had = "config.json" if (out / "config.json").exists() else "directory" if out.exists() else "nothing"
        had = "checkpoint" if any(out.glob("checkpoints/[0-9]*")) else had
        kills.append({"seconds": round(moment, 3), "left": had})
    finish([*scenario.flags, *more], scenario.main)
    same = scenario.outcome(out) == scenario.expected
    return {"algo": scenario.algo, "own process": real, "kills": kills, "held": same}


def stop(scenario_of: Callable[[str, str], Scenario], work: Path, i: int, rng: random.Random) -> dict[str, Any]:
    """SIGTERM at a random moment of a phase."""
    kind, earlier = ORDER[i % 6], i // 6 * ORDER.count(ORDER[i % 6]) + ORDER[: i % 6].count(ORDER[i % 6])
    phase, scenario, out = PHASES[earlier % len(PHASES)], scenario_of(kind, "a2c"), work / "trial"
    slow = kind == "host" and phase not in ("start", "compile", "saving") and earlier // 6 % 2 == 0
    for attempt in range(4):
        shutil.rmtree(out, ignore_errors=True)
        watched = Watched(scenario, ["--out", str(out)])
        n = rng.randrange(len(scenario.entries[phase]))
        if watched.until(lambda n=n, w=watched: len(w.entries.get(phase, ())) > n):
            if slow:
                scenario.slow.touch()
            begun, lasts = watched.entries[phase][n][0], scenario.entries[phase][n][1]
            time.sleep(max(begun + rng.uniform(0.0, 2.0 if slow else lasts) - time.monotonic(), 0.0))
            os.kill(watched.child, signal.SIGTERM)
        began = time.monotonic()
        code = watched.code(60.0)
        seconds, text = time.monotonic() - began, said()
        scenario.slow.unlink(missing_ok=True)
        if code == 0 and attempt < 3:  # it had all but ended
            continue
        if code is None:
            os.kill(watched.child, signal.SIGKILL)
        done = {"kind": kind, "algo": scenario.algo, "phase": phase, "slow steps": slow, "exit code": code}
        done |= {"seconds": round(seconds, 2), "said": text.replace(str(out), "OUT")[-200:]}
        if code == 0:  # nor did another attempt come in time
            return done | {"held": seconds < LIMIT and scenario.outcome(out) == scenario.expected}
        resumed = scenario.resumed(out)
        one_line = text.startswith("stopped: ") and "\n" not in text
        held = code == 128 + signal.SIGTERM and seconds < LIMIT and one_line and resumed
        return done | {"resumed": resumed, "held": held}
    raise AssertionError


def failing(_: Any, work: Path, i: int, rng: random.Random) -> dict[str, Any]:
    """A sweep of 3 to 5 settings, one of which learns by huge steps; all are trained as one program at first."""
    count, out = rng.randint(2, 4), work / "trial"
    rates = [f"{10 ** rng.uniform(-5, -3):.3g}" for _ in range(count)]
    rates.insert(bad := rng.randrange(count + 1), "1e4")
    flags = f"--algo a2c {SMALL} --env gymnasium/survival_environments:Monotony-v0,workers=1"
    child = begin([*flags.split(), "--grid", f"learning_rate={','.join(rates)}", "--out", str(out)], sweep.main)
    code = wait(child, 300.0)
    names = [f"learning_rate={float(rate)}" for rate in rates]
    trained = sorted(path.parent.name for path in out.glob("*/summary.json"))
    rows = len((out / "results.csv").read_text().splitlines()) - 1 if (out / "results.csv").exists() else 0
    others = sorted(path.name for path in out.glob("learning_rate=*") if path.name != names[bad])
    held = code == 1 and len(trained) == count and rows == count + 1 and "1 of" in said() and "stuck" in said()
    return {"settings": count + 1, "fails": bad, "trained": len(trained), "exit code": code, "rows": rows} | {
        "said": said().splitlines()[-1][:200].replace(str(out), "OUT"),
        "held": held and trained == others,
    }


KINDS = {"restarts": restart, "stops": stop, "sweeps": failing}


def summarise(trials: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """How many of each kind held, and the slowest stop by kind of run and phase."""
    found: dict[str, Any] = {name: {"trials": len(x), "held": sum(t["held"] for t in x)} for name, x in trials.items()}
    if kills := [kill for trial in trials.get("restarts", []) for kill in trial["kills"]]:
        found["restarts"] |= {"kills": len(kills), "left at a kill": dict(Counter(kill["left"] for kill in kills))}
    if stops := trials.get("stops"):
        found["stops"]["slowest seconds"] = max(trial["seconds"] for trial in stops)
        found["stops"]["by phase"] = dict(Counter(f"{t['kind']}: {t['phase']}" for t in stops))
        found["stops"]["exit codes"] = dict(Counter(str(t["exit code"]) for t in stops))
        found["stops"]["with slow steps"] = sum(t["slow steps"] for t in stops)
    return found


def write(path: Path, wanted: dict[str, int], trials: dict[str, list[dict[str, Any]]]) -> None:
    command = " ".join(["python benchmarks/survival_promises.py", *(f"--{x} {n}" for x, n in wanted.items())])
    about = {"command": command, "date": f"{datetime.now(UTC):%Y-%m-%d}", "cores": os.cpu_count()}
    text = json.dumps(about | {"summary": summarise(trials)}, indent=2)
    lines = [
        f'    "{name}": [\n      ' + ",\n      ".join(map(json.dumps, x)) + "\n    ]" for name, x in trials.items()
    ]
    path.write_text(text[:-2] + ',\n  "trials": {\n' + ",\n".join(lines) + "\n  }\n}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "survival_promises.json")
    for name in KINDS:
        parser.add_argument(f"--{name}", type=int, default=0)
    chosen = parser.parse_args()
    trials = json.loads(chosen.out.read_text())["trials"] if chosen.out.exists() else {}
    work = Path(tempfile.mkdtemp(prefix="survival-"))
    cache = {"jax_compilation_cache_dir": str(work / "cache"), "jax_persistent_cache_min_compile_time_secs": 0.0}
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
    for name, value in (cache | {"jax_persistent_cache_min_entry_size_bytes": 0}).items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    try:
        wanted = {name: getattr(chosen, name) for name in KINDS}
        scenario_of = functools.cache(partial(Scenario, work))  # made as they are needed
        trials = {name: trials.get(name, []) for name in KINDS}
        while any(len(trials[name]) < wanted[name] for name in KINDS):
            name = min((name for name in KINDS if wanted[name]), key=lambda name: len(trials[name]) / wanted[name])
            i = len(trials[name])
            done = KINDS[name](scenario_of, work, i, random.Random(f"{name} {i}"))
            trials[name].append({"trial": i} | done)
            write(chosen.out, wanted, trials)
            print(name, trials[name][-1], flush=True)
            shutil.rmtree(work / "trial", ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        ERRORS.unlink(missing_ok=True)
    return 0 if all(trial["held"] for x in trials.values() for trial in x) else 1


if __name__ == "__main__":
    sys.exit(main())
