# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "sb3-contrib==2.9.2",
#     "stable-baselines3==2.9.2",
#     "torch==2.13.0",
#     "gymnasium[box2d]==1.4.0",
#     "numpy==2.4.6",
# ]
# ///
"""What sb3-contrib's TRPO learns in LunarLander with rl-baselines3-zoo's settings: a row of JSON for each seed.

python benchmarks/peers/sb3_contrib_lander.py 0 1 2 >> benchmarks/results/lander.jsonl
"""

import json
import sys

import numpy as np
import torch
from sb3_contrib import TRPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

ENV = "LunarLander-v3"
SETTINGS = {"n_steps": 512, "gamma": 0.99, "gae_lambda": 0.98, "cg_damping": 0.01, "n_critic_updates": 15}


def main() -> None:
    torch.set_num_threads(1)  # at these sizes more only wait for each other
    for seed in map(int, sys.argv[1:]):
        model = TRPO("MlpPolicy", make_vec_env(ENV, n_envs=2, seed=seed), seed=seed, device="cpu", **SETTINGS)
        model.learn(200_000)
        last = float(np.mean([episode["r"] for episode in model.ep_info_buffer or []]))
        apart = make_vec_env(ENV, n_envs=1, seed=10_000 + seed)
        final = float(evaluate_policy(model, apart, 50, deterministic=True)[0])
        row = {"by": "sb3-contrib", "seed": seed, "env_steps": 200_000, "last_100": last, "final": final}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
