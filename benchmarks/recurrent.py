"""What is memory good for? GRU, LSTM and feed-forward policies on tasks that hide something, by PPO and TRPO.

    python benchmarks/recurrent.py                 # all
    python benchmarks/recurrent.py --only trpo     # those whose name contains a word; the other results are kept

Each policy is judged by the mean of 100 greedy episodes after training, as in learning.py.
"""

import sys
from typing import Any

from learning import Claim, run_claims

TASKS = {  # task ↦ environment, steps, what memory is to reach, and the cells that are tried
    "MemoryChain": ("MemoryChain-bsuite,memory_length=10", 150_000, 0.95, ("none", "gru", "lstm")),
    "CartPole without velocities": ("masked_cartpole:MaskedCartPole", 400_000, 400, ("none", "gru")),
}
SETTINGS = {"num_envs": 16, "num_steps": 128, "num_minibatches": 4, "hidden_sizes": (64,), "recurrent_size": 64}
BY_ALGORITHM = {
    "ppo": {"learning_rate": 1e-3, "num_epochs": 4, "value_clip_eps": float("inf")},
    "trpo": {"learning_rate": 1e-3, "num_epochs": 6},
}
SEEDS = 5
NAMES = {"none": "feed-forward", "gru": "GRU", "lstm": "LSTM"}
CLAIMS = [
    Claim(
        f"{algo} {kind} {task}",
        algo,
        env,
        steps,
        at_least if kind != "none" else None,
        "–",
        SEEDS,
        settings=tuple({**SETTINGS, **BY_ALGORITHM[algo], "recurrent": kind}.items()),
    )
    for task, (env, steps, at_least, kinds) in TASKS.items()
    for algo in BY_ALGORITHM
    for kind in kinds
]


def table(results: dict[str, Any]) -> str:
    """A row for each policy, in Markdown."""
    lines = [
        "| task | method | policy | steps | seeds | mean ± std | IQM [95%] | worst seed | best seed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        algo, kind, task = name.split(" ", 2)
        lines.append(
            f"| {task} | {algo} | {NAMES[kind]} | {r['env_steps']:,} | {len(r['per_seed'])} | {r['mean']:.2f} ± "
            f"{r['std']:.2f} | {r['iqm']:.2f} [{r['ci_low']:.2f}, {r['ci_high']:.2f}] | {min(r['per_seed']):.2f} | "
            f"{max(r['per_seed']):.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_claims(CLAIMS, "recurrent", "Recurrent policies", __doc__, table))
