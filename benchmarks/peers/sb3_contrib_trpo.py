# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "sb3-contrib==2.9.2",
#     "stable-baselines3==2.9.2",
#     "torch==2.13.0",
#     "gymnasium==1.4.0",
#     "numpy==2.4.6",
# ]
# ///
"""sb3-contrib's TRPO on the CPU at its defaults. One seed."""

import common
import torch
from sb3_contrib import TRPO
from stable_baselines3.common.env_util import make_vec_env


def main() -> None:
    job = common.job()
    torch.set_num_threads(1)  # at these sizes more only wait for each other
    model = TRPO(
        "MlpPolicy",
        make_vec_env(job.env, n_envs=job.envs, seed=0),
        n_critic_updates=job.num_epochs,
        learning_rate=job.learning_rate,
        target_kl=common.MAX_KL,
        cg_max_steps=common.CG_ITERATIONS,
        cg_damping=common.DAMPING,
        device="cpu",
        **common.sb3_settings(job, torch.nn.Tanh),
    )
    _, cost = common.timed(lambda: model.learn(job.steps))
    episodes = [info["r"] for info in model.ep_info_buffer or []]
    cost |= {"compile_seconds": None, "device": "cpu"}
    common.report(job, cost, common.mean(episodes), "sb3-contrib stable-baselines3 torch gymnasium", "one torch thread")


if __name__ == "__main__":
    main()
