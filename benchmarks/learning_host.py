"""Does it learn in Gymnasium's own environments? As `learning.py`, with the host stepping the environments.

    python benchmarks/learning_host.py                        # all, one to two hours on 2 cores
    python benchmarks/learning_host.py --only LunarLander     # those whose name contains a word

Needs `pip install -e ".[gymnasium]"`. Settings are those of the presets, as published.
"""

import sys

from learning import Claim, run_claims

LANDER, HOPPER = "gymnasium/LunarLander-v3", "gymnasium/Hopper-v5"
CLAIMS = [
    Claim("ppo LunarLander", "ppo", LANDER, 1_000_000, 100, "242.1 at 1e6, v2, one run (rl-baselines3-zoo)", seeds=5),
    Claim("trpo LunarLander", "trpo", LANDER, 200_000, 130, "133 at 2e5, v2, one run (rl-baselines3-zoo)", seeds=5),
    Claim("trpo Hopper", "trpo", HOPPER, 1_000_000, None, "3372 (sb3-contrib), 2046 (tianshou, greatest)", seeds=3),
    Claim("ppo Hopper", "ppo", HOPPER, 1_000_000, None, "2383 (CleanRL), 2609 (tianshou, greatest)", seeds=3),
    Claim(
        "trpo BipedalWalker",
        "trpo",
        "gymnasium/BipedalWalker-v3",
        1_000_000,
        None,
        "182.3 at 1e6, one run (rl-baselines3-zoo)",
        seeds=5,
    ),
]


if __name__ == "__main__":
    sys.exit(run_claims(CLAIMS, "learning_host", "Learning on the host", __doc__))
