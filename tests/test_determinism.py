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
from support import assert_same_bits, level_1_jit

from purejaxppo import PPO, TRPO, Config, init, make_train, update_step
from purejaxppo.train import train_updates

SEEDS, UPDATES = 4, 4
KEYS = jax.random.split(jax.random.key(0), SEEDS)
ALGORITHMS = pytest.mark.parametrize("name", [pytest.param("ppo", marks=pytest.mark.slow), "trpo"])
ROOT = pathlib.Path(__file__).parent

PROGRAM = """
import hashlib, sys
import conftest, numpy
from support import arrays
from test_determinism import KEYS, train, vmapped
name, *order = sys.argv[1:]
results = arrays(vmapped(train, name)(KEYS[numpy.asarray(order, int)]))
for i in range(len(order)):
    print(hashlib.sha256(b"".join(x[i].tobytes() for x in results)).hexdigest())
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
def vmapped(function, name):
    """A function of a config and a key or state, compiled for all seeds."""
    return level_1_jit(jax.vmap(functools.partial(function, config_of(name))))


def train(config, key):
    """All of training in one program."""
    return make_train(config)(key)


def half(config, state):
    """Half of it."""
    return train_updates(config, state, UPDATES // 2)


@functools.cache
def whole(name):
    """Final states and metrics of all seeds, made in one call."""
    return vmapped(train, name)(KEYS)


@ALGORITHMS
@pytest.mark.thorough
def test_fresh_processes_and_other_neighbours_give_equal_bits(name):
    """SHA-256 of each seed's final state and metrics, from two processes that share nothing, in another order."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT.parent)])}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    found = []
    for order in ("0123", "2031"):
        command = [sys.executable, "-c", PROGRAM, name, *order]
        done = subprocess.run(command, env=environment, timeout=120, check=True, capture_output=True, text=True)
        found.append(dict(zip(order, done.stdout.split(), strict=True)))
    assert found[0] == found[1]
    assert {len(bits) for bits in found[0].values()} == {64}
    assert len({*found[0].values()}) == SEEDS  # no two are alike


@pytest.mark.slow
@ALGORITHMS
def test_division_into_calls_gives_equal_bits(name):
    """4 updates in one program with `init`; as `init`, 2 and 2; one jitted update at a time: all seeds, all bits."""
    final, final_metrics = whole(name)
    for function, combine in ((half, np.concatenate), (update_step, np.stack)):
        state, parts = vmapped(init, name)(KEYS), []
        while int(state.update[0]) < UPDATES:
            state, metrics = vmapped(function, name)(state)
            parts.append(metrics)
        assert_same_bits(state, final)
        metrics = {key: combine([part[key] for part in parts], axis=1) for key in final_metrics}
        assert_same_bits(metrics, final_metrics)
