"""Does it learn in Gymnasium's own environments? As `learning.py`, with the host stepping the environments.

    python benchmarks/learning_host.py                        # all, about half an hour on 2 cores
    python benchmarks/learning_host.py --only LunarLander     # those whose name contains a word

Needs `pip install -e ".[gymnasium]"`. Settings are those of the presets, as published.
"""

import json
import sys
from typing import Any

from learning import RESULTS, Claim, run_claims, table

LANDER, HOPPER = "gymnasium/LunarLander-v3", "gymnasium/Hopper-v5"
CLAIMS = [
    Claim("ppo LunarLander", "ppo", LANDER, 1_000_000, 100, "–", seeds=5),
    Claim("trpo LunarLander", "trpo", LANDER, 200_000, 130, "133 at 2e5, one run (rl-baselines3-zoo)", seeds=5),
    Claim("trpo Hopper", "trpo", HOPPER, 1_000_000, None, "3372 (sb3-contrib), 2046 (tianshou)", seeds=3),
    Claim("ppo Hopper", "ppo", HOPPER, 1_000_000, None, "2383 (CleanRL), 2609 (tianshou)", seeds=3),
    Claim("trpo BipedalWalker", "trpo", "gymnasium/BipedalWalker-v3", 1_000_000, None, "–", seeds=5),
]


def write(results: dict[str, dict[str, Any]]) -> None:
    """learning_host.json and learning_host.md under results/."""
    (RESULTS / "learning_host.json").write_text(json.dumps(results, indent=1) + "\n")
    made = "Made by `python benchmarks/learning_host.py`; mean of 100 greedy episodes per final policy."
    (RESULTS / "learning_host.md").write_text(f"# Learning on the host\n\n{made}\n\n{table(results)}")


if __name__ == "__main__":
    sys.exit(run_claims(CLAIMS, RESULTS / "learning_host.json", write, __doc__))
