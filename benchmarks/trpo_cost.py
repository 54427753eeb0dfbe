"""What a step costs with TRPO, against PPO: equal batches, each at published settings, alternating.

    python benchmarks/trpo_cost.py

PPO has CleanRL's settings. TRPO has sb3-contrib's (15 conjugate-gradient iterations on the whole batch, 10 epochs of
the critic) and those of OpenAI Baselines (10 iterations on one sample in 5, 5 epochs).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from growth import prepared, timed

from purejaxppo.parallel.devices import use_cpu_cores
from purejaxppo.presets import preset

BATCH = {"num_envs": 4, "num_steps": 256}
BASELINES = {"cg_iterations": 10, "fisher_subsample": 5, "num_epochs": 5, "num_minibatches": 16}
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo, CleanRL": {"algo": "ppo"},
    "trpo, sb3-contrib": {"algo": "trpo", "num_epochs": 10, "num_minibatches": 8},
    "trpo, Baselines": {"algo": "trpo"} | BASELINES,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-seeds", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "trpo_cost.json")
    chosen = parser.parse_args()
    use_cpu_cores()
    programs = {
        name: prepared(preset(env="CartPole-v1", **BATCH, **fields), chosen.num_seeds)
        for name, fields in SETTINGS.items()
    }
    steps = chosen.num_seeds * BATCH["num_envs"] * BATCH["num_steps"]
    seconds = {name: np.divide(x, steps) for name, x in timed(programs, chosen.rounds, 0.4).items()}
    first = next(iter(seconds.values()))
    found = {
        name: {"steps_per_second": float(1 / np.median(x)), "cost_over_ppo": float(np.median(x / first))}
        for name, x in seconds.items()
    }
    for name, row in found.items():
        print(f"{name}: {row['steps_per_second']:,.0f} steps/s, {row['cost_over_ppo']:.2f} × PPO's cost of a step")
    chosen.out.write_text(json.dumps({"seeds": chosen.num_seeds, **BATCH, "settings": found}, indent=1) + "\n")
