"""Studies: what the sampler and halving save, what a study costs beside plain runs, and whether kills change one.

    python benchmarks/tuning.py --only kills --count 20
    python benchmarks/tuning.py --only throughput
    python benchmarks/tuning.py --only budget       # hours: TPE with halving against random search
    python benchmarks/tuning.py --only pbt          # hours, after budget: populations against constant settings
    python benchmarks/tuning.py --only sampler      # a minute, nothing is trained: how well TPE draws

Each row is written to `benchmarks/results/tuning.json` as soon as it is there, and not measured again.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.progress import ProgressLine, plain_console
from purejaxppo.rundir import checkpoint
from purejaxppo.rundir.files import SCORES

RESULTS = Path(__file__).parent / "results" / "tuning.json"
STUDY = (
    "--algo ppo --env CartPole-v1 --total-steps 4096 --num-envs 2 --num-steps 32 --hidden-sizes 16 --eval-episodes 2 "
    "--trials 12 --seeds-per-trial 2 --rungs 3 --budget 1e6 --num-seeds 2 --final-episodes 2 --quiet"
).split()
ENVIRONMENTS = ("Acrobot-v1", "Pendulum-v1", "MountainCarContinuous-v0")
BUDGET = 8_000_000  # environment steps of a search; a trial has an eightieth, 100,000
PARTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of a budget, after which the best settings so far are judged
HELD_OUT = 8  # seeds
MEMBERS = {"Acrobot-v1": 16, "Pendulum-v1": 16, "MountainCarContinuous-v0": 12}  # what evaluations leave of the budget


def rows() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def measured(name: str, measure: Callable[[], Any]) -> Any:
    """A row, measured if it is not there yet."""
    known = rows()
    if name not in known:
        value = measure()
        known = rows() | {name: value}  # others may have been written meanwhile
        draft = RESULTS.with_suffix(".draft")
        draft.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(x)}" for k, x in known.items()) + "\n}\n")
        draft.replace(RESULTS)
    print(name, known[name], flush=True)
    return known[name]


def contents(out: Path) -> Any:
    """All that a study is: lots, table, trials in its file, and the arrays of its best run."""
    texts = [(out / name).read_text() for name in ("scores.json", "trials.csv", "best.toml", "results.csv")]
    trials = optuna.load_study(study_name=None, storage=f"sqlite:///{out / 'study.db'}").trials
    told = [(x.number, x.state, x.values, x.params, x.intermediate_values, x.user_attrs) for x in trials]
    arrays = checkpoint.read(checkpoint.steps_saved(out / "best" / "checkpoints")[-1]).arrays
    return texts, told, {path: x.tobytes() for path, x in arrays.items()}


def begin(out: Path, method: str) -> "subprocess.Popen[bytes]":
    """A study in a process of its own: begun, or gone on with."""
    own = ["--method", "pbt"] if method == "pbt" else ["--places", "6"]
    words = ["-m", "purejaxppo", "tune", *STUDY, *own, "--out", str(out), "--resume-or-start"]
    return subprocess.Popen([sys.executable, *words])


def lots(out: Path) -> int:
    """How many lots a study has trained."""
    return len(json.loads((out / SCORES).read_text())["lots"]) if (out / SCORES).exists() else 0


def kills(count: int) -> None:
    """Studies and populations, each killed at random moments and resumed, until it comes to its end."""
    folder = Path(tempfile.mkdtemp(prefix="tuning-"))
    whole = {}
    for method in ("search", "pbt"):
        out = folder / f"whole-{method}"
        if code := begin(out, method).wait():
            sys.exit(f"the undisturbed study ended with {code}")
        whole[method] = contents(out)

    def killed(i: int) -> dict[str, Any]:
        rng, method = random.Random(i), "pbt" if i % 4 == 3 else "search"
        out, moments = folder / str(i), []
        for _ in range(rng.randint(1, 3)):
            study, at = begin(out, method), rng.randrange(len(json.loads(whole[method][0][0])["lots"]))
            while study.poll() is None and lots(out) < at:
                time.sleep(0.02)
            time.sleep(rng.uniform(0.0, 2.0))
            study.kill()  # SIGKILL
            if study.wait() == -signal.SIGKILL:
                moments.append(lots(out))
        code = begin(out, method).wait()
        same = code == 0 and contents(out) == whole[method]
        shutil.rmtree(out, ignore_errors=True)
        return {"method": method, "killed after lots": moments, "exit code": code, "identical": same}

    for i in range(count):
        measured(f"kill {i}", partial(killed, i))
    shutil.rmtree(folder)


def throughput() -> None:
    """64 trials × 4 seeds as one study, against 256 plain runs in one program; environment steps per second."""
    from purejaxppo import preset, run_experiment
    from purejaxppo.cli.command import start_jax
    from purejaxppo.tuning import trainer, tune
    from purejaxppo.tuning.study import plan_study

    start_jax()
    config = preset("ppo", "CartPole-v1", total_steps=65_536, eval_episodes=4, eval_max_steps=500)
    spent, asked, compile_program = [0.0], [0], trainer.compile_program

    def timed(runs: Any) -> Any:
        began = time.monotonic()
        program = compile_program(runs)
        spent[0] += time.monotonic() - began
        asked[0] += 1
        return program

    def study() -> dict[str, Any]:
        spent[0], asked[0] = 0.0, 0
        trainer.compile_program = timed
        options = tune.StudyOptions(seeds_per_trial=4, pruner="none", sampler="random", budget=10**9)
        with tempfile.TemporaryDirectory() as out:
            quiet = ProgressLine(plain_console(), quiet=True)
            planned, devices = plan_study(config, None, options, [0], Path(out), None, HostOptions())
            began = time.monotonic()
            search = tune.run_search(planned, devices, quiet)
        seconds = time.monotonic() - began - spent[0]
        steps = len(search.trials) * 4 * config.env_steps
        return {"steps per second": round(steps / seconds), "programs": asked[0], "lots of": planned.lot_size}

    def plain() -> dict[str, Any]:
        found = run_experiment(config, 256, options={"final_episodes": 4, "checkpoint_interval": 10**6})
        return {"steps per second": round(256 * config.env_steps / found.summary["run_seconds"])}

    for i in range(3):
        measured(f"throughput {i}: 256 plain runs", plain)
        measured(f"throughput {i}: 64 trials of 4 seeds", study)


def with_final_runs(base: Any, times: int = 1) -> int:
    """The budget of a study whose search may take `times` `BUDGET` steps."""
    return int(times * BUDGET + 2 * HELD_OUT * base.env_steps)


def judged(config: Any) -> Any:
    """The returns of settings on seeds that no study had."""
    from purejaxppo import run_experiment

    return run_experiment(config, HELD_OUT).summary["eval_return"]


def incumbents(out: Path) -> list[tuple[int, dict[str, Any]]]:
    """The steps that a study had spent after each lot, and the best settings then."""
    from purejaxppo.tuning.journal import Journal
    from purejaxppo.tuning.study import read_study

    planned, _ = read_study(out, ProgressLine(plain_console(), quiet=True))
    journal, found = Journal(out), []
    journal.read()
    search = planned.search()
    for i, entry in enumerate(journal.entries):
        journal.tell(search, search.next_lot(), entry, i)
        found.append((search.env_steps, search.best.settings if search.best else {}))
    return found


def course(base: Any, sampler: str, pruner: str, seed: int, least: float, times: int = 1) -> Any:
    """A study, and after which part of `BUDGET` its best settings reached the score `least` on seeds of their own."""
    from purejaxppo import tune
    from purejaxppo.presets import with_settings

    out, how = Path(tempfile.mkdtemp(prefix="tuning-")) / "study", {"sampler": sampler, "pruner": pruner}
    whole, parts = with_final_runs(base, times), (*PARTS, *range(2, times + 1))
    result = tune(base, None, whole, out=out, seeds=HELD_OUT, first_seed=1000 * (seed + 1), trials=1000, **how)
    found, scores = incumbents(out), []
    known: dict[str, float | None] = {"": None}  # the best settings may stay the same for long
    for part in parts:
        best = [own for steps, own in found if steps <= part * BUDGET and own][-1:]
        settings = str(best[0]) if best else ""
        if settings not in known:
            known[settings] = judged(with_settings(base, best[0]))["iqm"]
        scores.append(known[settings])
    shutil.rmtree(out.parent)
    enough = [part for part, score in zip(parts, scores, strict=True) if score is not None and score >= least]
    return {"reached at": min(enough, default=None), "course": scores, "final": result.summary["eval_return"]["iqm"]}


def budget(studies: int) -> None:
    """What a search must spend until its best settings reach the preset's score on seeds of their own."""
    from purejaxppo import preset
    from purejaxppo.cli.command import start_jax

    start_jax()
    for env in ENVIRONMENTS:
        base = preset("ppo", env, total_steps=BUDGET // 80)
        usual = measured(f"{env}: preset", partial(judged, base))
        for seed in range(studies):
            for sampler, pruner in (("tpe", "halving"), ("random", "none")):
                study = partial(course, base, sampler, pruner, seed, usual["iqm"])
                found = measured(f"{env}: {sampler}, {pruner}, study {seed}", study)
                if sampler == "random" and found["reached at"] is None:  # is it more than twice what TPE needs?
                    measured(f"{env}: random, none, twice the budget, study {seed}", partial(study, times=2))


def pbt(studies: int) -> None:
    """A population with the budget of a search, judged on seeds of its own."""
    from purejaxppo import preset, tune
    from purejaxppo.cli.command import start_jax

    def population(base: Any, members: int, seed: int) -> Any:
        how: Any = {"method": "pbt", "trials": members, "seeds_per_trial": 4, "rungs": 10}
        whole = with_final_runs(base)
        result = tune(base, None, whole, seeds=HELD_OUT, first_seed=1000 * (seed + 1), **how)
        final, stages = result.summary["eval_return"]["iqm"], len(result.config.stages)
        return {"final": final, "stages": stages, "steps": result.env_steps}

    start_jax()
    for env in ENVIRONMENTS:
        for seed in range(studies):
            own = partial(population, preset("ppo", env, total_steps=BUDGET // 80), MEMBERS[env], seed)
            measured(f"{env}: pbt, {MEMBERS[env]} members, population {seed}", own)
    finals = {
        f"{env}, {kind}": [x["final"] for name, x in rows().items() if name.startswith(f"{env}: {kind}")]
        for env in ENVIRONMENTS
        for kind in ("tpe, halving, study", f"pbt, {MEMBERS[env]} members")
    }
    print({name: float(np.median(x)) for name, x in finals.items() if x})


def sampler(studies: int) -> None:
    """How well settings are drawn where the score is known: a quadratic function of them, plus the number of rungs.

    The mean over studies of the score of a study's second 32 trials, the best being 0, and of the best trial.
    """
    from purejaxppo import preset
    from purejaxppo.tuning.search import Search
    from purejaxppo.tuning.space import Dimension, default_space, parse_space
    from purejaxppo.tuning.study_options import StudyOptions

    config = preset("ppo", "CartPole-v1", total_steps=BUDGET // 80)
    space = parse_space(config, default_space(config))
    weights = np.geomspace(1, 0.02, len(space))

    def place(dimension: Dimension, value: Any) -> float:
        """Where a value lies within its range, from 0 to 1."""
        if dimension.choices:
            return (dimension.choices.index(value) + 0.5) / len(dimension.choices)
        ends = np.asarray([dimension.drawn(value), *dimension.bounds])
        x, low, high = ends if dimension.scale == "linear" else np.log(ends)
        return float((x - low) / (high - low))

    def study(kind: str, places: int, seed: int) -> tuple[float, float]:
        best = np.random.default_rng(seed).uniform(0.2, 0.8, len(space))
        options = StudyOptions(budget=10**12, trials=64, places=places, sampler=kind)
        search = Search(config, space, options, options.ladder(config, space, 0), 4, seed)

        def score(settings: dict[str, Any]) -> float:
            where = [place(dimension, settings[name]) for name, dimension in space.items()]
            return -10 * float(np.sum(weights * (where - best) ** 2))

        while lot := search.next_lot():
            scores = np.asarray([score(trial.settings) + lot.rung for trial in lot.trials])
            search.tell(lot, scores, np.zeros(len(lot.trials), np.int64))
        assert search.best
        return float(np.mean([score(trial.settings) for trial in search.trials[32:]])), score(search.best.settings)

    for places in (4, 16):
        for kind in ("tpe", "random"):
            found = measured(
                f"quadratic: {kind}, {places} places, {studies} studies",
                lambda kind=kind, places=places: [study(kind, places, seed) for seed in range(studies)],
            )
            later, best = np.mean(found, axis=0)
            print(f"{kind}, {places} places: second half {later:.2f}, best {best:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("kills", "throughput", "budget", "pbt", "sampler"), required=True)
    parser.add_argument("--count", type=int, default=20, help="kills")
    parser.add_argument("--studies", type=int, default=5, help="of each kind and environment")
    options = parser.parse_args()
    if options.only == "kills":
        kills(options.count)
    elif options.only == "throughput":
        throughput()
    else:
        {"budget": budget, "pbt": pbt, "sampler": sampler}[options.only](options.studies)
