"""The algorithms learn, from scratch and for many seeds."""

import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from support import level_1_jit

from purejaxppo import PPO, TRPO, Config, make_train
from purejaxppo.evaluation import evaluate

SEEDS = 2
TUNED = {"learning_rate": 2e-3, "gamma": 0.98, "value_clip_eps": math.inf}  # 32 of 32 other seeds reached 500, too
CONFIGS = {
    "ppo": Config(env="CartPole-v1", algo=PPO(), total_steps=100_000, **TUNED),
    "trpo": Config(env="CartPole-v1", algo=TRPO(), total_steps=100_000),
}


# PPO learns in test_spaces.py, too
@pytest.mark.parametrize("name", ["trpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_cartpole_is_learnt(name):
    """After 1e5 steps, the mean return over 2 seeds and 20 episodes each is at least 450 of 500."""
    config = CONFIGS[name]
    train = make_train(config)

    def final_return(key):
        state, _ = train(key)
        return evaluate(config, state, state.key, 20).means()["eval_return"]

    mesh = jax.make_mesh((2,), ("run",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.shard_map(jax.vmap(final_return), mesh=mesh, in_specs=P("run"), out_specs=P("run"), check_vma=False)
    returns = np.asarray(level_1_jit(spread)(jax.random.split(jax.random.key(0), SEEDS)))
    assert returns.shape == (SEEDS,)
    assert np.mean(returns) >= 450, returns
