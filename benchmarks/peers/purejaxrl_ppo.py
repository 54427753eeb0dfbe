# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "jax==0.10.2",
#     "flax==0.12.8",
#     "optax==0.2.8",
#     "distrax==0.1.9",
#     "tfp-nightly==0.26.0.dev20261027",
#     "gymnax==0.0.9",
#     "six",
# ]
# ///
"""purejaxrl's ppo.py, from a checkout, vmapped over seeds as its README shows. Discrete actions only."""

import sys
from unittest.mock import MagicMock

import chip
import common
import jax
import numpy as np
from flax.linen import initializers

NOTE = "orthogonal initialisation under sequential_vmap (batched QR deadlocks on few cores); brax and navix stubbed"


def main() -> None:
    job = common.job()
    assert job.checkout, "--checkout is needed"
    for name in ("brax", "brax.envs", "brax.envs.wrappers", "brax.envs.wrappers.training", "navix"):
        sys.modules[name] = MagicMock()  # its wrappers import them; ppo.py needs neither
    orthogonal = initializers.orthogonal

    def one_by_one(*args: object, **kwargs: object) -> object:
        init = orthogonal(*args, **kwargs)
        return lambda key, shape, dtype=None: jax.custom_batching.sequential_vmap(
            lambda key: init(key, shape, dtype or jax.numpy.float32)
        )(key)

    initializers.orthogonal = one_by_one
    sys.path.insert(0, str(job.checkout / "purejaxrl"))
    from ppo import make_train

    config = {
        "LR": job.learning_rate,
        "NUM_ENVS": job.envs,
        "NUM_STEPS": job.num_steps,
        "TOTAL_TIMESTEPS": job.steps,
        "UPDATE_EPOCHS": job.num_epochs,
        "NUM_MINIBATCHES": job.num_minibatches,
        "GAMMA": common.GAMMA,
        "GAE_LAMBDA": common.GAE_LAMBDA,
        "CLIP_EPS": common.CLIP_EPS,
        "ENT_COEF": common.ENTROPY_COEF,
        "VF_COEF": common.VALUE_COEF,
        "MAX_GRAD_NORM": common.MAX_GRAD_NORM,
        "ACTIVATION": job.activation,
        "ENV_NAME": job.env,
        "ANNEAL_LR": True,
        "DEBUG": False,
    }
    keys = jax.random.split(jax.random.PRNGKey(0), job.seeds)
    train = jax.jit(jax.vmap(make_train(config)))
    if job.chip:
        return chip.keep(train, keys, chip.devices(job.chip), job.hlo)
    out, cost = common.timed_compiled(train, keys)
    last = slice(-max(1, job.updates // 10), None)
    returns, ended = (
        np.asarray(out["metrics"][name][:, last]) for name in ("returned_episode_returns", "returned_episode")
    )
    common.report(job, cost, common.mean(returns[ended]), "jax flax optax gymnax", NOTE)


if __name__ == "__main__":
    main()
