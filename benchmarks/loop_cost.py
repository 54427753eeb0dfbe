"""What the host's run loop costs: training through it, with its log and checkpoints, against the bare compiled `train`.

    python benchmarks/loop_cost.py

Both train the same seeds for the same number of updates, alternating, at the default intervals; compilation, which a
run pays once, is left out on both sides. Printed are the ratios of the medians.
"""

import argparse
import io
import json
import shutil
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from purejaxppo.experiment.experiment import start_record
from purejaxppo.experiment.loop import Loop
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.program import compile_program
from purejaxppo.experiment.progress import ProgressLine
from purejaxppo.experiment.run_batch import RunBatch
from purejaxppo.parallel.devices import use_cpu_cores
from purejaxppo.parallel.runs import over_runs
from purejaxppo.presets import preset
from purejaxppo.train import make_train

# about ten seconds on two cores, with one checkpoint at the end; and A2C for more than the 30 that lie between two
# checkpoints by default
RUNS = {"ppo": 300_000, "trpo": 60_000, "a2c": 2_400_000, "a2c-short": 600_000}


def compare(algo: str, total_steps: int, num_seeds: int, rounds: int) -> dict[str, object]:
    config, seeds, devices = preset(algo, "CartPole-v1", total_steps=total_steps), list(range(num_seeds)), jax.devices()
    work = Path(tempfile.mkdtemp(prefix="loop-cost-"))
    runs = RunBatch([start_record(config, seeds, work / "run", devices, HostOptions())], devices)
    program = compile_program(runs)
    bare = over_runs(make_train(config), devices).lower(runs.keys).compile()

    def loop() -> float:
        """Seconds but for the final evaluation."""
        shutil.rmtree(runs.directory, ignore_errors=True)
        runs.directory.mkdir()
        one = Loop(runs, ProgressLine(Console(file=io.StringIO())))
        one.run(program=program)
        return one.seconds["run"] - one.seconds["evaluation"]

    def bare_train() -> float:
        began = time.perf_counter()
        jax.block_until_ready(bare(runs.keys))
        return time.perf_counter() - began

    seconds: dict[str, list[float]] = {"bare": [], "loop": []}
    for _ in range(rounds + 1):  # the first warms up
        seconds["bare"].append(bare_train())
        seconds["loop"].append(loop())
    shutil.rmtree(work)
    medians = {name: float(np.median(x[1:])) for name, x in seconds.items()}
    return medians | {
        "loop / bare": medians["loop"] / medians["bare"],
        "updates": config.num_updates,
        "seeds": num_seeds,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="of the runs")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, beside what it holds of other runs")
    chosen = parser.parse_args()
    use_cpu_cores()
    found = json.loads(chosen.out.read_text()) if chosen.out and chosen.out.exists() else {}
    for name in chosen.only:
        found[name] = compare(name.partition("-")[0], RUNS[name], 16, chosen.rounds)
        print(name, {what: round(x, 4) for what, x in found[name].items()}, flush=True)
    if chosen.out:
        chosen.out.write_text(json.dumps(found, indent=2) + "\n")
