"""An accelerator's formulations, run on a CPU: the same numbers as the CPU's own; and the parts that they have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import Walk
from support import arrays, assert_same_bits, quick_jit

from purejaxppo import NPG, PPO, TRPO, Config, PPOPenalty, init, over_runs, rollout, update_step
from purejaxppo.normalize import RewardNormalizer
from purejaxppo.optimize import permutation
from purejaxppo.parallel.packing import Packing, packed_scan
from purejaxppo.parallel.vmapping import in_chunks, in_lots
from purejaxppo.platforms import compiling_for, is_small, on_cpu
from purejaxppo.recurrence import linear_recurrence

SMALL = {"kernels": "xla", "num_envs": 4, "num_steps": 16, "num_minibatches": 2, "num_epochs": 2, "hidden_sizes": (8,)}
KEYS = jax.random.split(jax.random.key(3), 2)


def updated(config, state, platform):
    """States and metrics of both seeds after one update, by the formulations of a platform."""

    def update(state):
        with compiling_for(platform):
            return jax.vmap(lambda state: update_step(config, state))(state)

    return quick_jit(update)(state)


def assert_alike(config, tolerance):
    """Whole numbers (counters, keys, what actions led to) are equal; others so up to rounding.

    That is relative to an array's largest entry in the state, and to 1 in metrics, as some are differences near 0.
    """
    state = quick_jit(jax.vmap(lambda key: init(config, key)))(KEYS)
    ours, theirs = (updated(config, state, platform) for platform in ("cpu", "cuda"))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for part, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for x, y in zip(arrays(a), arrays(b), strict=True):
            assert (x.shape, x.dtype) == (y.shape, y.dtype)
            if not np.issubdtype(x.dtype, np.floating):
                np.testing.assert_array_equal(x, y)
            elif x.size:
                scale = max(np.nanmax(np.abs(x), initial=0.0), 1.0 if part else 1e-3)
                np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.slow
def test_one_update_of_ppo_is_the_same(monkeypatch):
    """Rollout, advantages, shuffles, and policy and critic in one loop, of which the first stops early."""
    monkeypatch.setattr(rollout, "STEPS_AT_ONCE", 2)
    monkeypatch.setattr(permutation, "ROUNDS", 4)
    assert_alike(Config(algo=PPO(target_kl=1e-4), **SMALL), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"algo": PPO()}, 1e-6),
        ({"algo": PPOPenalty()}, 1e-6),
        ({"joint_update": True}, 1e-6),
        ({"recurrent": "gru", "recurrent_size": 8}, 1e-5),
        ({"algo": TRPO()}, 1e-4),  # conjugate gradient multiplies rounding
        ({"algo": NPG(), "env": "Pendulum-v1"}, 1e-4),
        ({"env": "Pendulum-v1", "normalize_observations": True, "normalize_rewards": True}, 1e-5),
        ({"env": "Breakout-MinAtar"}, 1e-6),
        ({"env": "Asterix-MinAtar"}, 1e-6),  # its resets are not small
        ({"frame_stack": 2}, 1e-6),  # its restarts depend on states
        ({"env": Walk()}, 1e-6),
    ],
    ids=str,
)
def test_one_update_is_the_same(settings, tolerance):
    assert_alike(Config(**SMALL | settings), tolerance)


def test_devices_decide_and_the_default_device_where_none_are_named():
    """`over_runs` traces for the devices that it is given."""
    seen = []
    assert on_cpu()
    with compiling_for("tpu"):
        assert not on_cpu()
        over_runs(lambda x: (seen.append(on_cpu()), x)[1], jax.devices("cpu")[:1])(jnp.zeros(1))
    assert seen == [True]
    assert on_cpu()


def test_packing_keeps_all_bits():
    tree = {
        "float": jnp.asarray([[[1.5, -0.0], [jnp.nan, 1e-40]], [[jnp.inf, 3.0], [0.1, 7.0]]], jnp.float32),
        "whole": jnp.arange(-2, 2, dtype=jnp.int32).reshape(2, 2),
        "flag": jnp.asarray([[True, False], [False, True]]),
        "half": jnp.ones((2, 2, 3), jnp.bfloat16),
        "key": jax.random.split(jax.random.key(0), (2, 2)),
    }
    packing = Packing(tree, 2)
    words, rest = packed = packing.pack(tree)
    assert [x.shape for x in words] == [(2, 2, 4)]
    assert len(rest) == 2
    assert_same_bits(packing.unpack(packed), tree)
    images = {"image": jnp.arange(256, dtype=jnp.uint8).reshape(2, 2, 64), "reward": jnp.ones((2, 2))}
    packing = Packing(images, 2)
    words, _ = packed = packing.pack(images)
    assert [(x.shape, x.dtype) for x in words] == [((2, 2, 1), jnp.uint32), ((2, 2, 64), jnp.uint8)]
    assert_same_bits(packing.unpack(packed), images)


def test_packed_scan_is_scan():
    def step(carry, x):
        return carry + x["a"].sum(), {"carry": carry, "odd": x["b"] % 2 == 1}

    xs = {"a": jnp.arange(12.0).reshape(4, 3), "b": jnp.arange(4)}
    assert_same_bits(packed_scan(step, jnp.zeros(()), xs, unroll=2), jax.lax.scan(step, jnp.zeros(()), xs))


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize(("length", "reverse"), [(1, False), (7, True), (64, False)])
def test_linear_recurrence(length, reverse, platform):
    """Against the recurrence in float64."""
    generator = np.random.default_rng(length)
    x = generator.normal(size=(length, 3)).astype(np.float32)
    decay = (0.95 * (generator.random((length, 3)) > 0.1)).astype(np.float32)
    expected, before = np.zeros((length, 3)), np.zeros(3)
    for t in reversed(range(length)) if reverse else range(length):
        before = expected[t] = x[t] + decay[t].astype(np.float64) * before
    with compiling_for(platform):
        found = linear_recurrence(jnp.asarray(x), jnp.asarray(decay), reverse)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_reward_normalizer_of_an_accelerator():
    """The same statistics, and the same return that the next rollout goes on from."""
    generator = np.random.default_rng(0)
    rewards, done = jnp.asarray(generator.normal(size=(9, 2)), jnp.float32), jnp.asarray(generator.random((9, 2)) < 0.3)
    found = {}
    for platform in ("cpu", "cuda"):
        with compiling_for(platform):
            normalizer = RewardNormalizer.init(2).update(rewards, done, 0.9)
            found[platform] = normalizer.update(rewards[::-1], ~done, 0.9)
    for a, b in zip(arrays(found["cpu"]), arrays(found["cuda"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("runs", [1, 2, 3, 6, 100])
def test_lots_give_what_all_runs_at_once_give(runs):
    def fn(tree, shared):
        return {"sum": jnp.sum(tree["x"]) + shared, "x": tree["x"] * 2}

    tree, shared = {"x": jnp.arange(18.0).reshape(6, 3)}, jnp.asarray(3.0)
    found = jax.vmap(in_lots(fn, runs), in_axes=(0, None))(tree, shared)
    assert_same_bits(found, jax.vmap(fn, in_axes=(0, None))(tree, shared))
    assert_same_bits(in_lots(fn, runs)({"x": jnp.arange(3.0)}, shared), fn({"x": jnp.arange(3.0)}, shared))


def test_images_are_evaluated_in_chunks():
    """On an accelerator; vectors are not, and nothing is on a CPU."""
    seen = []

    def fn(x):
        seen.append(x.shape[0])
        return x.reshape(*x.shape[:2], -1).sum(-1)

    images = jnp.arange(512.0 * 4 * 2 * 2).reshape(512, 4, 2, 2)
    with compiling_for("cuda"):
        found = in_chunks(fn, images, 2)
        in_chunks(fn, images[..., 0], 2)
    expected = in_chunks(fn, images, 2)
    assert seen == [256, 512, 512]
    np.testing.assert_array_equal(found, expected)


def test_small_is_what_has_few_operations_and_no_loop():
    assert is_small(lambda x: jnp.sin(x) + 1, 1.0)
    assert not is_small(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x + 1, x), 1.0)
    assert not is_small(lambda x: jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((), jnp.float32), x), 1.0)
    assert not is_small(lambda x: sum(jnp.sin(x + i) for i in range(600)), 1.0)
