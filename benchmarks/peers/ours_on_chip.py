# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "jax==0.10.2",
#     "jax-cuda12-plugin==0.10.2",
#     "jax-cuda12-pjrt==0.10.2",
#     "libtpu==0.0.42.1",
#     "nvidia-cuda-nvcc-cu12==12.9.86",
#     "triton==3.4.0",
#     "flax==0.12.8",
#     "optax==0.2.8",
#     "gymnax==1.0.1",
#     "orbax-checkpoint==0.11.36",
#     "rich",
#     "six",
#     "tyro",
# ]
# ///
"""Our own training program, compiled for a chip that is not there; see `gpu_program.py`."""

import argparse
import json
from pathlib import Path

import chip
import jax

from purejaxppo.parallel.runs import over_runs
from purejaxppo.presets import preset
from purejaxppo.train import make_train


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--chip", required=True)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--hlo", type=Path, required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--algo", required=True)
    parser.add_argument("--seeds", type=int, required=True)
    parser.add_argument("--envs", type=int, required=True)
    parser.add_argument("--num-steps", type=int, required=True)
    parser.add_argument("--updates", type=int, required=True)
    parser.add_argument("--settings", type=json.loads, default={}, help="more of a Config, as JSON")
    job = parser.parse_args()
    total = job.updates * job.envs * job.num_steps
    config = preset(job.algo, job.env, num_envs=job.envs, num_steps=job.num_steps, total_steps=total, **job.settings)
    on = chip.devices(job.chip, job.devices)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), job.seeds))
    chip.keep(over_runs(make_train(config), on), keys, on, job.hlo)


if __name__ == "__main__":
    main()
