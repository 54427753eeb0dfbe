# /// script
# requires-python = ">=3.11"
# dependencies = ["stable-baselines3==2.9.2", "torch==2.13.0", "gymnasium==1.4.0", "numpy==2.4.6"]
# ///
"""Stable-Baselines3's PPO on the CPU, environments in one process. One seed."""

import common
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env


def main() -> None:
    job = common.job()
    torch.set_num_threads(1)  # at these sizes more only wait for each other
    model = PPO(
        "MlpPolicy",
        make_vec_env(job.env, n_envs=job.envs, seed=0),
        clip_range_vf=common.CLIP_EPS,
        device="cpu",
        **common.sb3_ppo_settings(job, torch.nn.Tanh),
    )
    _, cost = common.timed(lambda: model.learn(job.steps))
    episodes = [info["r"] for info in model.ep_info_buffer or []]
    cost |= {"compile_seconds": None, "device": "cpu"}
    common.report(job, cost, common.mean(episodes), "stable-baselines3 torch gymnasium", "one torch thread")


if __name__ == "__main__":
    main()
