"""TRPO, NPG and PPO in Gymnasium's MuJoCo tasks, with the presets' settings, beside what other libraries publish.

    python benchmarks/mujoco_table.py                     # all that has no row yet: some 8 hours on 2 cores
    python benchmarks/mujoco_table.py --only Swimmer      # a word of a batch's name
    python benchmarks/mujoco_table.py --report            # the table of the rows that are there

Needs `pip install -e ".[gymnasium]"`. One million steps; the score is that of the final policy, the mean of 100 greedy
episodes. Tianshou publishes the greatest score over training, which is higher. Others' tasks are v3 or v4, where the
Hopper and Walker2d of v5 reward the same, and the Ant of v5 counts contact forces.
"""

import sys

import numpy as np
from long_runs import RESULTS, Batch, Row, scores, train

from purejaxppo.statistics import iqm_over_seeds

PUBLISHED = {
    ("HalfCheetah", "trpo"): "1803 ± 46 (sb3-contrib), 4471 ± 805 (Tianshou, greatest), 3313 (OmniSafe)",
    ("Hopper", "trpo"): "3372 ± 215 (sb3-contrib), 2046 ± 1038 (Tianshou, greatest), 2698 (OmniSafe)",
    ("Walker2d", "trpo"): "4502 ± 234 (sb3-contrib), 3827 ± 783 (Tianshou, greatest), 4100 (OmniSafe)",
    ("Swimmer", "trpo"): "359 ± 2 (sb3-contrib), 41 ± 20 (Tianshou, greatest), 105 (OmniSafe)",
    ("Ant", "trpo"): "3554 ± 591 (sb3-contrib), 2867 ± 708 (Tianshou, greatest), 4362 (OmniSafe)",
    ("HalfCheetah", "npg"): "3485 ± 717 (Tianshou, greatest), 4097 (OmniSafe)",
    ("Hopper", "npg"): "1915 ± 551 (Tianshou, greatest), 2591 (OmniSafe)",
    ("Walker2d", "npg"): "2503 ± 963 (Tianshou, greatest), 4055 (OmniSafe)",
    ("Swimmer", "npg"): "32 ± 8 (Tianshou, greatest), 116 (OmniSafe)",
    ("Ant", "npg"): "2358 ± 518 (Tianshou, greatest), 3794 ± 584 (OmniSafe)",
    ("HalfCheetah", "ppo"): "1443 ± 46 (CleanRL), 5784 ± 1244 (Tianshou, greatest)",
    ("Hopper", "ppo"): "2383 ± 272 (CleanRL), 2609 ± 701 (Tianshou, greatest)",
    ("Walker2d", "ppo"): "2288 ± 572 (CleanRL), 3589 ± 757 (Tianshou, greatest)",
    ("Swimmer", "ppo"): "67 ± 99 (Tianshou, greatest)",
    ("Ant", "ppo"): "3258 ± 1079 (Tianshou, greatest)",
}
TASKS = ("HalfCheetah", "Swimmer", "Hopper", "Walker2d", "Ant")
METHODS = ("trpo", "ppo", "npg")


def report(rows: list[Row]) -> None:
    """A row for each task and method."""
    lines = [
        "# MuJoCo v5, one million steps",
        "",
        "Made by `python benchmarks/mujoco_table.py`: final policy, mean of 100 greedy episodes of each seed.",
        "",
        "| task | method | seeds | mean ± std | IQM [95%] | last 100 training episodes | published |",
        "|---|---|---|---|---|---|---|",
    ]
    final, last = scores(rows, "final"), scores(rows, "last_100")
    for task in TASKS:
        for method in METHODS:
            if (task, method) in final:
                values, training = np.array(final[task, method]), np.array(last[task, method])
                middle, low, high = iqm_over_seeds(values)
                lines.append(
                    f"| {task} | {method} | {values.size} | {values.mean():,.0f} ± {values.std():,.0f} | "
                    f"{middle:,.0f} [{low:,.0f}, {high:,.0f}] | {training.mean():,.0f} ± {training.std():,.0f} | "
                    f"{PUBLISHED[task, method]} |"
                )
    (RESULTS / "mujoco_table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    batches = [
        Batch(task, f"gymnasium/{task}-v5", f"--algo {method} --total-steps 1000000", {"": method})
        for method in METHODS
        for task in TASKS
    ]
    sys.exit(train(batches, "mujoco_table", __doc__, report, seeds=5))
