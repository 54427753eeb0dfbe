# /// script
# requires-python = ">=3.11"
# dependencies = ["stable-baselines3==2.9.2", "torch==2.13.0", "gymnasium[box2d,mujoco]==1.3.0", "numpy==2.4.6"]
# ///
"""Stable-Baselines3's PPO on the CPU, in the environments of `throughput_host.py`, one process per environment or one
for all (`--vec`). One seed."""

import sys

import common
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv


def main() -> None:
    kind = sys.argv.pop()  # the last argument
    job = common.job()
    torch.set_num_threads(1)  # at these sizes more only wait for each other
    vec = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}[kind]
    envs = make_vec_env(job.env, n_envs=job.envs, seed=0, vec_env_cls=vec)
    model = PPO(
        "MlpPolicy", envs, clip_range_vf=common.CLIP_EPS, device="cpu", **common.sb3_ppo_settings(job, torch.nn.Tanh)
    )
    _, cost = common.timed(lambda: model.learn(job.steps))
    episodes = [info["r"] for info in model.ep_info_buffer or []]
    envs.close()
    cost |= {"compile_seconds": None, "device": "cpu"}
    common.report(job, cost, common.mean(episodes), "stable-baselines3 torch gymnasium", f"one torch thread, {kind}")


if __name__ == "__main__":
    main()
