"""The same key gives the same bits: in another process, another division into calls, another place in the batch."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from environments import Walk
from support import arrays, assert_same_bits, quick_jit

from purejaxppo import PPO, TRPO, Config, init, update_step
from purejaxppo.train import train_updates

SEEDS, UPDATES = 4, 4
ALGORITHMS = pytest.mark.parametrize("name", ["ppo", "trpo"])
ROOT = pathlib.Path(__file__).parent

PROGRAM = """
import hashlib
import conftest, jax
from support import arrays
from test_determinism import config_of
from purejaxppo import make_train
for name in ("ppo", "trpo"):
    state, metrics = jax.jit(make_train(config_of(name)))(jax.random.key(7))
    print(name, hashlib.sha256(b"".join(x.tobytes() for x in arrays((state, metrics)))).hexdigest())
"""


def config_of(name):
    """A small run of which every part has something to do."""
    return Config(
        env=Walk(),
        algo=PPO() if name == "ppo" else TRPO(),
        num_envs=2,
        num_steps=16,
        total_steps=UPDATES * 32,
        num_epochs=2,
        num_minibatches=2 if name == "ppo" else 1,
        hidden_sizes=(8,),
        normalize_observations=True,
        normalize_rewards=True,
    )


@functools.cache
def starts(name):
    """Initial states of some seeds."""
    keys = jax.random.split(jax.random.key(0), SEEDS)
    return quick_jit(jax.vmap(functools.partial(init, config_of(name))))(keys)


@functools.cache
def program(name, updates):
    """So many updates of all seeds as one scan."""
    return jax.jit(jax.vmap(lambda state: train_updates(config_of(name), state, updates)))


@functools.cache
def whole(name):
    """All updates in one call."""
    return program(name, UPDATES)(starts(name))


def test_fresh_processes_give_equal_bits():
    """SHA-256 of the final states and metrics, from two processes that share nothing."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT.parent)])}
    command = [sys.executable, "-c", PROGRAM]
    outputs = [
        subprocess.run(command, env=environment, timeout=120, check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    ]
    assert outputs[0] == outputs[1]
    hashes = dict(line.split() for line in outputs[0].splitlines())
    assert len(hashes["ppo"]) == len(hashes["trpo"]) == 64
    assert hashes["ppo"] != hashes["trpo"]


@ALGORITHMS
def test_division_into_calls_gives_equal_bits(name):
    """4 updates in one scan, as 2 + 2, and one jitted update at a time: states and metrics of all seeds."""
    state, chunks = starts(name), []
    for updates in (2, 2):
        state, metrics = program(name, updates)(state)
        chunks.append(metrics)
    final, final_metrics = whole(name)
    assert_same_bits(state, final)
    assert_same_bits(jax.tree.map(lambda *x: np.concatenate(x, axis=1), *chunks), final_metrics)

    state, steps = starts(name), []
    update = jax.jit(jax.vmap(functools.partial(update_step, config_of(name))))
    for _ in range(UPDATES):
        state, metrics = update(state)
        steps.append(metrics)
    assert_same_bits(state, final)
    assert_same_bits(jax.tree.map(lambda *x: np.stack(x, axis=1), *steps), final_metrics)


@ALGORITHMS
def test_seeds_do_not_know_their_neighbours(name):
    """Permuting the seeds permutes the results, bit for bit; and no two are alike."""
    order = np.asarray([2, 0, 3, 1])
    permuted = program(name, UPDATES)(jax.tree.map(lambda x: x[order], starts(name)))
    assert_same_bits(permuted, jax.tree.map(lambda x: x[order], whole(name)))
    returns = arrays(whole(name)[1]["episode_return"])[0]
    assert np.unique(returns, axis=0).shape == (SEEDS, UPDATES)
