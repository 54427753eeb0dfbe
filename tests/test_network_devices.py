"""A run's policy and critic improved on devices of their own: they learn what one device learns, but for rounding."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec
from support import arrays, assert_same_bits, quick_jit
from test_scaling import finishes

from purejaxppo import A2C, NPG, PPO, REINFORCE, TRPO, Config, PPOPenalty, UsageError
from purejaxppo.cli.run import main
from purejaxppo.parallel.mesh import NET_AXIS, on_net_axis
from purejaxppo.parallel.runs import differing_replica, over_runs
from purejaxppo.train import make_train

ALL = [REINFORCE(), A2C(), PPO(target_kl=0.01), PPOPenalty(), NPG(), TRPO()]
KEYS = jax.random.split(jax.random.key(0), 2)


def config_of(algo, **settings):
    usual = {"num_envs": 4, "num_steps": 16, "num_minibatches": 2, "num_epochs": 2, "hidden_sizes": (16,)}
    return Config(env="CartPole-v1", algo=algo, **usual | {"total_steps": 64} | settings)


def assert_close(actual, expected):
    """Of one update: sums in another order, and what Adam and CG make of that."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(arrays(actual), arrays(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_what_is_handed_over_is_not_changed():
    """Counts beyond 2²⁴, signs of zero, NaN's payload: as each device made them."""
    numbers = np.asarray([0x80000000, 0x7FC12345, 1, 0x3F800000], np.uint32).view(np.float32)
    first = {"moments": numbers, "count": np.int32(2**24 + 1), "ended": np.asarray([True, False])}
    first |= {"small": numbers.astype(jnp.bfloat16), "pixels": np.uint8([0, 255]), "offsets": np.int8([-128, 127])}
    second = (np.int32([-1, 2**31 - 1]), numbers[::-1].reshape(2, 2))
    mesh = Mesh(np.asarray(jax.devices()), (NET_AXIS,), axis_types=(AxisType.Auto,))

    def both():
        made = on_net_axis(lambda: jax.tree.map(jnp.asarray, first), lambda: jax.tree.map(jnp.asarray, second))
        return jax.tree.map(lambda x: x[None], made)

    spread = jax.shard_map(both, mesh=mesh, in_specs=(), out_specs=PartitionSpec(NET_AXIS), check_vma=False)
    found = quick_jit(spread)()
    for device in range(2):
        assert_same_bits(jax.tree.map(lambda x, device=device: np.asarray(x)[device], found), (first, second))
    assert on_net_axis(lambda: 1, lambda: 2) == (1, 2)  # outside of such a mesh


@pytest.mark.parametrize(
    ("algo", "runs"),
    [pytest.param(x, n, marks=() if (type(x), n) == (PPO, 1) else pytest.mark.slow) for x in ALL for n in (1, 2)],
    ids=lambda x: str(x) if isinstance(x, int) else type(x).__name__,
)
@pytest.mark.thorough
def test_an_update_is_that_of_one_device(algo, runs):
    """State and metrics of a run alone, and of two vmapped; the devices speak to each other once."""
    train = make_train(config_of(algo, normalize_observations=True, normalize_rewards=True))
    apart = over_runs(train, jax.devices(), net_shards=2).lower(KEYS[:runs]).compile()
    assert re.findall(r" (all-[a-z]+|collective-[a-z]+)[.\d]*\(", apart.as_text()) == ["all-gather"]
    assert_close(apart(KEYS[:runs]), over_runs(train, jax.devices()[:1])(KEYS[:runs]))


@pytest.mark.slow
def test_recurrent_networks_too():
    train = make_train(config_of(PPO(), recurrent="gru", recurrent_size=8))
    apart, one = over_runs(train, jax.devices(), net_shards=2), over_runs(train, jax.devices()[:1])
    assert_close(apart(KEYS[:1]), one(KEYS[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("algo", [PPO(), TRPO()])
def test_both_devices_hold_the_same_bits_after_50_updates(algo):
    found = over_runs(make_train(config_of(algo, total_steps=50 * 64)), jax.devices(), net_shards=2)(KEYS[:1])
    assert int(found[0].update[0]) == 50
    assert differing_replica(found) is None


BOTH_AXES = """
from purejaxppo.parallel.runs import differing_replica
config = config_of(ALL[sys.argv[1]], num_epochs=2, total_steps=32)
train = make_train(config)
four = over_runs(train, jax.devices(), env_shards=2, net_shards=2)(KEYS[:1])
two = over_runs(train, jax.devices()[:2], env_shards=2)(KEYS[:1])
for a, b in zip(arrays(four), arrays(two), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
print(differing_replica(four))
"""


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["ppo", "trpo"])
def test_beside_an_env_axis(algo):
    """Four devices, two for the policy, two for the critic, and each has half of the environments."""
    assert finishes(BOTH_AXES, 4, algo).split() == ["None"]


@pytest.mark.slow
def test_the_command_trains_and_goes_on_in_the_same_bits(tmp_path, capsys):
    """Eight updates; and four, and four more on the mesh that the run's record names, looked at by --debug."""
    flags = "--algo a2c --num-seeds 1 --num-envs 4 --num-steps 8 --final-episodes 2 --hidden-sizes 8 --quiet".split()
    apart, debug = ["--mesh", "net=2"], ["--debug"]
    for name, steps, more in (("whole", "256", apart), ("parts", "128", apart + debug)):
        made = ["--total-steps", steps, "--log-interval", "1", "--out", str(tmp_path / name)]
        assert main([*flags, *more, *made]) == 0
    assert main(["--resume", str(tmp_path / "parts"), "--total-steps", "256", "--quiet", *debug]) == 0
    whole, parts = ((tmp_path / name / "metrics.csv").read_text() for name in ("whole", "parts"))
    assert whole == parts
    assert capsys.readouterr().err == ""
    assert main(["--resume", str(tmp_path / "parts"), "--total-steps", "288", "--quiet", "--mesh", "run=1"]) == 0
    assert "mesh = 'run=1' instead of 'net=2': the last digits" in capsys.readouterr().err


def test_what_cannot_be_apart_is_refused_from_python_too():
    train = make_train(config_of(PPO(), shared_torso=True))
    with pytest.raises(UsageError, match="mesh = 'net=2': net must be 1 with shared_torso"):
        over_runs(train, net_shards=2).lower(KEYS)
    with pytest.raises(UsageError, match="mesh = 'env=2': env = 2 must divide num_envs = 3"):
        over_runs(make_train(config_of(PPO(), num_envs=3)), env_shards=2).lower(KEYS)
    for devices, count in ((jax.devices()[:1], 2), (jax.devices(), 3)):
        with pytest.raises(UsageError, match=f"devices = {len(devices)} must be a multiple of env_shards"):
            over_runs(train, devices, net_shards=count)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--mesh net=3", "mesh = 'net=3': net must be 1 or 2"),
        ("--mesh env=2,net=2", "mesh = 'env=2,net=2' takes 4 devices, and there are 2"),
        ("--mesh net=2 --shared-torso", "mesh = 'net=2': net must be 1 with shared_torso"),
    ],
)
def test_meshes_that_cannot_be_are_refused_in_a_line(flags, message, tmp_path, capsys):
    assert main([*flags.split(), "--num-seeds", "1", "--out", str(tmp_path / "run")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
