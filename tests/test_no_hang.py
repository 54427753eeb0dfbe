"""Many runs at once, with the default networks and their initialisation, come to an end: each run in a fresh process.

Orthogonal initialisation through a batched QR used to be what hung, on few cores and now and then: hence many runs.
"""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from purejaxppo import Config, init

ROOT = pathlib.Path(__file__).parent
PROGRAM = """
import sys
import conftest, jax, numpy as np
from jax.sharding import PartitionSpec as P
from purejaxppo import Config, init, make_train
from support import level_1_jit
assert jax.device_count() == 2
config = Config(env="CartPole-v1", num_envs=4, num_steps=16, total_steps=2 * 64, num_epochs=1, num_minibatches=1)
train, start = jax.vmap(make_train(config)), jax.vmap(lambda key: init(config, key))
if sys.argv[1] == "shard_map":
    mesh = jax.make_mesh((2,), ("run",), axis_types=(jax.sharding.AxisType.Auto,))
    options = {"mesh": mesh, "in_specs": P("run"), "out_specs": P("run"), "check_vma": False}
    train, start = jax.shard_map(train, **options), jax.shard_map(start, **options)
train, start = level_1_jit(train), level_1_jit(start)
for seed in sys.argv[2:]:
    keys = jax.random.split(jax.random.key(int(seed)), 64)
    jax.block_until_ready(start(keys))
    state, metrics = jax.block_until_ready(train(keys))
    print(len(np.unique(metrics["value_loss"])), all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state.policy)))
"""
KINDS = pytest.mark.parametrize("kind", ["vmap", "shard_map"])


def finishes(kind, *seeds):
    """Begin and train 64 runs for two updates, per seed, in another process, which is killed after two minutes."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT.parent)])}
    command = [sys.executable, "-c", PROGRAM, kind, *map(str, seeds)]
    done = subprocess.run(command, env=environment, timeout=120, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["128", "True"] * len(seeds)  # 64 runs × 2 updates, all different


def test_initialisation_calls_no_lapack():
    """What hung was LAPACK on a batch: there is none of it in the program, batched or not."""
    text = jax.jit(jax.vmap(lambda key: init(Config(), key))).lower(jax.random.split(jax.random.key(0), 64)).as_text()
    assert "stablehlo" in text
    assert "lapack" not in text


@pytest.mark.slow
@KINDS
def test_64_runs_finish(kind):
    """`init` alone, and all of training: on one device, or spread over two. Twice."""
    finishes(kind, 0, 1)


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize("seed", range(20))
def test_64_runs_finish_in_every_process(kind, seed):
    """The same, in 20 processes each."""
    finishes(kind, seed)
