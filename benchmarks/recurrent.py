"""What is memory good for? GRU, LSTM and feed-forward policies on tasks that hide something, by PPO and TRPO.

    python benchmarks/recurrent.py                 # all
    python benchmarks/recurrent.py --only trpo     # those whose name contains a word; the other results are kept

Each policy is judged by the mean of 100 greedy episodes after training, as in learning.py.
"""

import argparse
import json
import sys

from learning import RESULTS, Claim, measure

from purejaxppo.experiment.devices import use_cpu_cores

TASKS = {  # task ↦ environment, steps, and what memory is to reach
    "MemoryChain": ("MemoryChain-bsuite,memory_length=20", 200_000, 0.95),
    "CartPole without velocities": ("masked_cartpole:MaskedCartPole", 500_000, 450),
}
SETTINGS = {
    "num_envs": 16,
    "num_steps": 128,
    "num_minibatches": 4,
    "hidden_sizes": (64,),
    "recurrent_size": 64,
}
BY_ALGORITHM = {
    "ppo": {"learning_rate": 1e-3, "num_epochs": 4, "value_clip_eps": float("inf")},
    "trpo": {"learning_rate": 1e-3, "num_epochs": 10},
}
CLAIMS = [
    Claim(
        f"{algo} {kind} {task}",
        algo,
        env,
        steps,
        at_least if kind != "none" else None,
        "",
        settings=tuple({**SETTINGS, **BY_ALGORITHM[algo], "recurrent": kind}.items()),
    )
    for task, (env, steps, at_least) in TASKS.items()
    for algo in BY_ALGORITHM
    for kind in ("none", "gru", "lstm")
]
