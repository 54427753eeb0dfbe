"""Does it learn in brax's environments? As `learning.py`, on brax's default backends.

    python benchmarks/learning_brax.py                    # all, about 20 minutes on 2 cores
    python benchmarks/learning_brax.py --only reacher     # those whose name contains a word

Needs `pip install -e ".[brax]"`. An episode lasts 1,000 steps at most: the pendulum pays 1 for each, the reacher takes
the distance from its target, and the effort, off each.
"""

import sys

from learning import Claim, run_claims

PENDULUM, REACHER = "brax/inverted_pendulum", "brax/reacher"
CLAIMS = [
    Claim("trpo inverted pendulum", "trpo", PENDULUM, 200_000, 950, "1000 is the most there is"),
    Claim("ppo inverted pendulum", "ppo", PENDULUM, 200_000, 950, "963 at 1e6 in Gymnasium's (CleanRL)"),
    Claim("trpo reacher", "trpo", REACHER, 1_000_000, None, "–", seeds=6),
    Claim("ppo reacher", "ppo", REACHER, 1_000_000, None, "–", seeds=6),
]


if __name__ == "__main__":
    sys.exit(run_claims(CLAIMS, "learning_brax", "Learning in brax", __doc__))
