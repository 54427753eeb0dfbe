# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "sbx-rl==0.28.0",
#     "stable-baselines3==2.9.2",
#     "torch==2.13.0",
#     "jax==0.10.2",
#     "flax==0.12.8",
#     "optax==0.2.8",
#     "tfp-nightly==0.26.0.dev20261027",
#     "gymnasium==1.4.0",
#     "numpy==2.4.6",
# ]
# ///
"""SBX's PPO: the update jitted, the environments in Python. One seed."""

import time

import common
import flax.linen as nn
import jax
from sbx import PPO
from stable_baselines3.common.env_util import make_vec_env


def main() -> None:
    job = common.job()
    model = PPO("MlpPolicy", make_vec_env(job.env, n_envs=job.envs, seed=0), **common.sb3_ppo_settings(job, nn.tanh))
    one_update = job.num_steps * job.envs
    began = time.perf_counter()
    model.learn(one_update)
    first = time.perf_counter() - began
    _, cost = common.timed(lambda: model.learn(job.steps))
    cost |= {"compile_seconds": first - cost["run_seconds"] / job.updates, "device": jax.devices()[0].device_kind}
    episodes = [info["r"] for info in model.ep_info_buffer or []]
    note = "no clipping of values; compile: the first update less the mean of the others"
    common.report(job, cost, common.mean(episodes), "sbx-rl stable-baselines3 jax flax gymnasium", note)


if __name__ == "__main__":
    main()
