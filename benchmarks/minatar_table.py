"""MinAtar at ten million steps: PPO, as purejaxrl has it, and TRPO, of which nobody has published scores there.

python benchmarks/minatar_table.py                    # all that has no row yet: some 3 hours on 2 cores
python benchmarks/minatar_table.py --only Freeway     # a word of a batch's name
python benchmarks/minatar_table.py --report           # the table of the rows that are there
"""

import sys

import numpy as np
from long_runs import RESULTS, Batch, Row, scores, train

from purejaxppo.statistics import iqm_over_seeds

TO_REACH = {"Freeway": 58, "Breakout": 28, "Asterix": 15, "SpaceInvaders": 131}
PUBLISHED = {
    "Freeway": "58.8 (gymnax-blines)",
    "Breakout": "40 (purejaxrl's plot), 28 (others)",
    "Asterix": "17.8 (gymnax-blines), 15 (others)",
    "SpaceInvaders": "131.6 (gymnax-blines)",
}
FLAGS = {
    "ppo": "--algo ppo --total-steps 1e7 --no-convolutions",  # otherwise the preset's settings
    "trpo": "--algo trpo --total-steps 1e7 --num-envs 64 --num-steps 128 --num-epochs 5 --activation relu "
    "--no-convolutions",
}


def report(rows: list[Row]) -> None:
    """A row for each game and method."""
    lines = [
        "# MinAtar, ten million steps",
        "",
        "Made by `python benchmarks/minatar_table.py`: final policy, mean of 100 greedy episodes of each seed; and",
        "the last 100 training episodes, as others score. Published scores are PPO's.",
        "",
        "| game | method | seeds | final policy, IQM [95%] | worst seed | last 100, IQM | asked | published |",
        "|---|---|---|---|---|---|---|---|",
    ]
    final, last = scores(rows, "final"), scores(rows, "last_100")
    for game, asked in TO_REACH.items():
        for method in FLAGS:
            if (game, method) in final:
                middle, low, high = iqm_over_seeds(np.array(final[game, method]))
                training = iqm_over_seeds(np.array(last[game, method])).point
                target = f"{asked}" if method == "ppo" else "–"
                lines.append(
                    f"| {game} | {method} | {len(final[game, method])} | {middle:.1f} [{low:.1f}, {high:.1f}] | "
                    f"{min(final[game, method]):.1f} | {training:.1f} | {target} | {PUBLISHED[game]} |"
                )
    (RESULTS / "minatar_table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    batches = [
        Batch(game, f"{game}-MinAtar", flags, {"": method}) for method, flags in FLAGS.items() for game in TO_REACH
    ]
    sys.exit(train(batches, "minatar_table", __doc__, report, seeds=5))
