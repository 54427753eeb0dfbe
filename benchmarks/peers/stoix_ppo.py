# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "jax==0.5.3",
#     "flax==0.10.6",
#     "optax==0.2.8",
#     "distrax==0.1.5",
#     "tensorflow-probability==0.25.0",
#     "rlax==0.1.7",
#     "flashbax==0.1.3",
#     "stoa-env==0.1.2",
#     "gymnax==0.0.9",
#     "gymnasium==1.4.0",
#     "hydra-core==1.3.8",
#     "colorama==0.4.6",
#     "six",
# ]
# ///
"""Stoix's ff_ppo (Anakin), from a checkout: its learner, without its logging and evaluation. One seed, CartPole."""

import os
import sys
from unittest.mock import MagicMock

import common
import jax
import numpy as np

NOTE = "without its loggers and checkpoints, whose many dependencies are stubbed; its one learner per program"


def main() -> None:
    job = common.job()
    assert job.checkout, "--checkout is needed"
    for name in ("stoix.utils.logger", "stoix.utils.checkpointing"):
        sys.modules[name] = MagicMock()
    os.chdir(job.checkout)  # its configuration names paths from there
    sys.path.insert(0, str(job.checkout))
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf
    from stoix.systems.ppo.anakin import ff_ppo

    settings = {
        "arch.total_num_envs": job.envs,
        "arch.total_timesteps": job.steps,
        "arch.num_evaluation": 1,
        "system.actor_lr": job.learning_rate,
        "system.critic_lr": job.learning_rate,
        "system.rollout_length": job.num_steps,
        "system.epochs": job.num_epochs,
        "system.num_minibatches": job.num_minibatches,
        "system.gamma": common.GAMMA,
        "system.gae_lambda": common.GAE_LAMBDA,
        "system.clip_eps": common.CLIP_EPS,
        "system.ent_coef": common.ENTROPY_COEF,
        "system.vf_coef": common.VALUE_COEF,
        "system.max_grad_norm": common.MAX_GRAD_NORM,
        "system.decay_learning_rates": True,
        "network.actor_network.pre_torso.layer_sizes": list(common.HIDDEN_SIZES),
        "network.actor_network.pre_torso.activation": job.activation,
        "network.critic_network.pre_torso.layer_sizes": list(common.HIDDEN_SIZES),
        "network.critic_network.pre_torso.activation": job.activation,
    }
    with initialize_config_dir(str(job.checkout / "stoix/configs/default/anakin"), version_base="1.2"):
        config = compose("default_ff_ppo", [f"{name}={value}" for name, value in settings.items()])
    OmegaConf.set_struct(config, False)
    config.num_devices = jax.local_device_count()
    config = ff_ppo.check_total_timesteps(config)
    env, _ = ff_ppo.environments.make(config=config)
    learn, _, state = ff_ppo.learner_setup(env, tuple(jax.random.split(jax.random.PRNGKey(0), 3)), config)
    output, cost = common.timed_compiled(learn, state)
    episodes = {name: np.asarray(x) for name, x in output.episode_metrics.items()}  # [devices, updates, ...]
    last = slice(-max(1, job.updates // 10), None)
    ended = episodes["is_terminal_step"][:, last].astype(bool)
    final_return = common.mean(episodes["episode_return"][:, last][ended])
    common.report(job, cost, final_return, "jax flax optax gymnax stoa-env", NOTE)


if __name__ == "__main__":
    main()
