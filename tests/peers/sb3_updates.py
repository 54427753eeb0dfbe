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
"""Updates by Stable-Baselines3's own `train()` in float64, on batches and from weights that a file holds.

`python sb3_updates.py JOB.npz RESULT.npz`; tests/test_parity.py writes the one and reads the other.
"""

import json
import sys
from unittest import mock

import numpy as np
import torch
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import FlattenExtractor


class DoubleExtractor(FlattenExtractor):
    """SB3 hands every observation over as float32; these are exactly representable there."""

    def forward(self, observations):
        return super().forward(observations).double()


def main(job_file: str, result_file: str) -> None:
    job = np.load(job_file)
    about = json.loads(str(job["about"]))
    size, width = len(job["0/obs"]), list(about["hidden_sizes"])
    model = {"ppo": PPO, "a2c": A2C, "trpo": TRPO}[about["algo"]](
        "MlpPolicy",
        about["env"],
        n_steps=size,
        device="cpu",
        policy_kwargs={
            "net_arch": {"pi": width, "vf": width},
            "features_extractor_class": DoubleExtractor,
            "optimizer_kwargs": {"eps": about["adam_eps"]},
        },
        **about["settings"],
    )
    model.set_logger(configure(None, []))
    model.policy.double()
    model.policy.load_state_dict({name: torch.from_numpy(job[f"weights/{name}"]) for name in about["weights"]})
    weights = {}
    for update in range(about["updates"]):
        fill(model, {name: job[f"{update}/{name}"] for name in ("obs", "action", "advantage", "value_target")})
        # TRPO's policy asks for an order of the whole batch first, which does not matter; its conjugate gradient begins
        # at small random numbers where ours begins at 0
        first = [np.arange(size)] if about["algo"] != "ppo" else []
        with (
            mock.patch("numpy.random.permutation", side_effect=[*first, *job[f"{update}/orders"]]),
            mock.patch("torch.randn_like", torch.zeros_like),
        ):
            model.train()
        weights |= {f"{update}/{name}": x.numpy().copy() for name, x in model.policy.state_dict().items()}
    np.savez(result_file, **weights)


def fill(model, batch) -> None:
    """Put a batch in the rollout buffer, with what the policy and the critic make of it now."""
    buffer = model.rollout_buffer
    buffer.reset()
    obs, action = torch.from_numpy(batch["obs"]), torch.from_numpy(batch["action"])
    with torch.no_grad():
        values, log_probs, _ = model.policy.evaluate_actions(obs, action)
    buffer.observations = batch["obs"][:, None]
    buffer.actions = batch["action"].reshape(len(obs), 1, -1)
    buffer.values, buffer.log_probs = values.numpy().reshape(-1, 1), log_probs.numpy()[:, None]
    buffer.advantages, buffer.returns = batch["advantage"][:, None], batch["value_target"][:, None]
    buffer.full = True


if __name__ == "__main__":
    main(*sys.argv[1:])
