"""Runs on 1, 2, 4 and 8 devices: each in a process of its own, which is killed if it takes too long.

One host's cores are as many devices as one asks for, so that what holds of eight needs no eight.
"""

import json
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from purejaxppo import Config, UsageError, over_runs
from purejaxppo.experiment import loop, program
from purejaxppo.experiment.options import HostOptions
from purejaxppo.parallel import devices as devices_module
from purejaxppo.parallel.runs import differing_replica

ROOT = pathlib.Path(__file__).parent
BEGIN = """
import json, re, sys, pathlib
import jax
jax.config.update("jax_num_cpu_devices", {devices})
jax.config.update("jax_platforms", "cpu")
import numpy as np
from support import QUICK, arrays, assert_same_bits
from purejaxppo.parallel import runs
from purejaxppo import A2C, NPG, PPO, REINFORCE, TRPO, Config, PPOPenalty, make_train, init, update_step
from purejaxppo.parallel.runs import over_runs
ALL = dict(reinforce=REINFORCE(), a2c=A2C(), ppo=PPO(), penalty=PPOPenalty(), npg=NPG(), trpo=TRPO())
def config_of(algo, **settings):
    usual = dict(num_envs=4, num_steps=8, num_minibatches=1, num_epochs=1, hidden_sizes=(8,), total_steps=64)
    return Config(env="CartPole-v1", algo=algo, **usual | settings)
KEYS = jax.random.split(jax.random.key(0), 8)
"""


def finishes(program, devices, *arguments, timeout=150):
    """What a program printed, on so many devices."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT.parent)])}
    command = [sys.executable, "-c", BEGIN.format(devices=devices) + program, *map(str, arguments)]
    done = subprocess.run(command, env=environment, timeout=timeout, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


RUN_AXIS = """
runs.QUICK_COMPILATION |= QUICK
config = config_of(ALL[sys.argv[1]], total_steps=32)
train, wanted = make_train(config), None
COLLECTIVE = "all-reduce|all-gather|all-to-all|collective|reduce-scatter|send|recv"
for count in json.loads(sys.argv[2]):
    mapped = over_runs(train, jax.devices()[:count], vmap_size=1)(KEYS)
    compiled = over_runs(train, jax.devices()[:count]).lower(KEYS).compile()
    state, metrics = compiled(KEYS)
    found = re.findall(rf" ({COLLECTIVE})[^ ]*[(]", compiled.as_text())
    assert not found, found
    if wanted is None:
        wanted, close = mapped, (state.policy, metrics)
    assert_same_bits(mapped, wanted)
    for a, b in zip(arrays((state.policy, metrics)), arrays(close), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.parametrize(
    ("algo", "counts"),
    [("a2c", [1, 8]), *(pytest.param(x, [1, 2, 4, 8], marks=pytest.mark.slow) for x in ("a2c", "ppo", "trpo"))],
)
@pytest.mark.thorough
def test_the_run_axis_has_no_collectives_and_the_same_results_on_1_2_4_8_devices(algo, counts):
    """In order, the bits; vmapped, 1e-5 after the first update."""
    finishes(RUN_AXIS, 8, algo, counts, timeout=400)


GROUPS = """
runs.QUICK_COMPILATION |= QUICK
train = make_train(config_of(ALL["a2c"], total_steps=32))
text = over_runs(train, jax.devices(), env_shards=2).lower(KEYS).compile().as_text()
print(sorted({*re.findall(r" all-[^ ]*[(].*?replica_groups=([^ ]*?),? ", text)}))
"""


@pytest.mark.thorough
def test_with_an_env_axis_only_who_shares_a_run_talks():
    assert finishes(GROUPS, 4).strip() in ("['{{0,1},{2,3}}']", "['[2,2]<=[4]']")


ENV_AXIS = """
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, PartitionSpec as P
from purejaxppo.agent import Agent
from purejaxppo.advantages import standardize
from purejaxppo.optimize.conjugate_gradient import conjugate_gradient
from purejaxppo.optimize.local_model import local_model
from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.improvement import value_loss
from purejaxppo.train import learning_batch
from purejaxppo.rollout import rollout
from purejaxppo.agent import Agent
import functools

def numbers(algo, config, state, batch):
    policy = Agent.of(config).policy
    model = local_model(jax.random.key(0), policy.apply, state.policy, batch, standardize(batch.advantage), 0.1, 1)
    solution, _ = conjugate_gradient(model.product, model.gradient, 10)
    adam = MinibatchAdam(1e-2, 0.5, 1, 1)
    moved, *_ = algo.update(jax.random.key(3), policy.apply, state.policy, algo.init(state.policy), batch, adam)
    start = MinibatchAdam.init(state.critic)
    critic, moments, _ = adam.minimize(jax.random.key(0), value_loss(Agent.of(config)), state.critic, start, batch)
    step = jax.tree.map(lambda a, b: a - b, moved, state.policy)
    found = (model.gradient, model.product(model.theta), solution, moved, step, critic, moments.mu)
    return [ravel_pytree(x)[0] for x in found]

for name, algo in ALL.items():
    config = config_of(algo, num_envs=8)
    state = init(config, jax.random.key(1))
    _, transitions, _ = rollout(jax.random.key(2), config.environment, acting(config, state), state.rollout, 8)
    batch, *_ = learning_batch(Agent.of(config), state, transitions)
    expected = jax.jit(functools.partial(numbers, algo, config))(state, batch)
    for count in (2, 4):
        mesh = Mesh(np.asarray(jax.devices()[:count]), ("env",), axis_types=(AxisType.Auto,))
        fn, specs = functools.partial(numbers, algo, config), (P(), P("env"))
        fn = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
        actual = jax.jit(fn)(state, batch)
        worst = [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(actual, expected, strict=True)]
        print(json.dumps([name, count, worst]))
"""


@pytest.mark.slow
def test_the_env_axis_on_1_2_4_devices_every_algorithm():
    """Gradient, Fisher product, CG solution, new parameters, and the critic's, of a rollout: 1e-5 of one device."""
    rows = [json.loads(line) for line in finishes(ENV_AXIS, 4, timeout=580).splitlines()]
    assert len(rows) == 12
    for name, count, worst in rows:
        assert max(worst[:4] + worst[5:]) < 1e-5, (name, count, worst)
        assert worst[4] < 1e-4, (name, count, worst)  # of the step itself, which is a difference


REPLICAS = """
config = config_of(TRPO(), num_envs=8, normalize_observations=True, normalize_rewards=True, total_steps=100 * 64)
from purejaxppo import Config, UsageError
from purejaxppo.experiment import loop, program
from purejaxppo.parallel.runs import differing_replica
from purejaxppo.experiment.options import HostOptions
state, metrics = over_runs(make_train(config), jax.devices(), env_shards=4)(KEYS[:2])
assert int(state.update[0]) == 100
print(differing_replica((state, metrics)), len(state.policy["params"]["Dense_0"]["kernel"].addressable_shards))
"""


@pytest.mark.slow
def test_replicas_are_identical_after_100_updates_on_8_devices():
    """Two runs, four devices each; what the debug check of a run looks at."""
    assert finishes(REPLICAS, 8).split() == ["None", "8"]


def test_a_replica_that_differs_is_found():
    mesh = Mesh(np.asarray(jax.devices()).reshape(1, 2), ("run", "env"), axis_types=(AxisType.Auto,) * 2)
    parts = [
        jax.device_put(np.float32([[1.0, last]]), device) for last, device in zip((2, 3), jax.devices(), strict=True)
    ]
    placed = NamedSharding(mesh, PartitionSpec("run"))
    torn = jax.make_array_from_single_device_arrays((1, 2), placed, parts)
    split = jax.make_array_from_single_device_arrays((2, 2), NamedSharding(mesh, PartitionSpec("env")), parts)
    assert differing_replica({"same": jax.device_put(np.ones(2), placed), "split": split}) is None
    assert differing_replica({"split": split, "policy": {"w": torn}}) == "policy.w"

    class State(NamedTuple):
        policy: dict
        failure: tuple

    state = State({"w": torn}, (jnp.zeros(1), jnp.zeros(1)))
    runs = SimpleNamespace(members=[], own_count=0, of_all=lambda row: row)
    given = {"runs": runs, "state": state}
    loop.Loop._find_failed(SimpleNamespace(**given, debug=False))
    with pytest.raises(UsageError, match=r"policy\.w differs between devices"):
        loop.Loop._find_failed(SimpleNamespace(**given, debug=True))


@pytest.mark.parametrize(("runs", "together", "enough"), [(3, None, 4), (18, 8, 20)])
def test_runs_that_cannot_be_divided_are_refused_before_compilation(runs, together, enough):
    divided = over_runs(lambda x: x + 1, vmap_size=together)
    with pytest.raises(UsageError, match=rf"runs = {runs} cannot be divided equally among 2 devices.*train {enough}\."):
        divided(np.zeros(runs))
    np.testing.assert_array_equal(divided(np.zeros(enough)), np.ones(enough))


def test_the_memory_check_knows_what_devices_share(monkeypatch):
    """A run too large for one device fits on two that share it, but not two such runs, nor with each its own."""
    config = Config(env="CartPole-v1", num_envs=4096, num_steps=128, num_minibatches=512)
    per_run = 4096 * 128 * (4 * 16)  # four copies of each observation; states, activations are less
    monkeypatch.setattr(devices_module, "available_bytes", lambda devices: int(0.9 * per_run))
    shared, own = HostOptions(mesh="env=2"), HostOptions()
    program.check_memory(config, 1, jax.devices(), shared)
    for runs, devices, options in ((1, jax.devices()[:1], own), (2, jax.devices(), own), (2, jax.devices(), shared)):
        with pytest.raises(UsageError, match="GiB"):
            program.check_memory(config, runs, devices, options)


def test_the_memory_check_counts_the_runs_that_a_core_makes_at_once(monkeypatch):
    """Of 32 runs on a core, eight are made at a time and the others are only kept."""
    config = Config(env="CartPole-v1", num_envs=256, num_steps=128, num_minibatches=128)
    per_run = 256 * 128 * (4 * 16)
    monkeypatch.setattr(devices_module, "available_bytes", lambda devices: 12 * per_run)
    program.check_memory(config, 32, jax.devices()[:1], HostOptions())
    monkeypatch.setattr(devices_module, "available_bytes", lambda devices: 7 * per_run)
    with pytest.raises(UsageError, match="GiB"):
        program.check_memory(config, 32, jax.devices()[:1], HostOptions())


EXACT = """
from purejaxppo.parallel.runs import QUICK_COMPILATION
config = config_of(ALL[sys.argv[1]], num_epochs=2, total_steps=3 * 32)
keys = jax.random.split(jax.random.key(1), 64)
train = make_train(config)
together = over_runs(train, jax.devices(), vmap_size=1)(keys)
alone = over_runs(train, jax.devices()[:1])  # a device's only run is not vmapped, whatever the mode
plain = jax.jit(train, compiler_options=QUICK_COMPILATION)
same = [0, 0]
for i in range(64):
    wanted = arrays(jax.tree.map(lambda x: x[i], together))
    for j, lone in enumerate((jax.tree.map(lambda x: x[0], alone(keys[i : i + 1])), plain(keys[i]))):
        same[j] += all(a.tobytes() == b.tobytes() for a, b in zip(arrays(lone), wanted, strict=True))
print(*same)
"""


@pytest.mark.parametrize(
    "algo", [pytest.param(x, marks=pytest.mark.slow) for x in ("a2c", "reinforce", "ppo", "penalty", "npg", "trpo")]
)
def test_in_order_each_of_64_seeds_has_the_bits_of_its_lone_run(algo):
    """On two devices, against one run by itself, and against the jitted `train` of one key."""
    assert finishes(EXACT, 2, algo).split() == ["64", "64"]


MESHES = """
from purejaxppo.experiment import loop
from purejaxppo.rundir.checkpoint import read, steps_saved
from purejaxppo.rundir.snapshot import flatten
from purejaxppo.cli.run import main
flags = "--algo a2c --num-envs 8 --num-steps 4 --num-epochs 1 --num-minibatches 1 --hidden-sizes 4 --final-episodes 1"
flags = [*flags.split(), *"--log-interval 1 --quiet --num-seeds 8 --total-steps 64".split()]
train = loop.Loop._train
def check_what_is_restored(self):
    placed = flatten({"state": self.state})
    assert before is None or all(placed[name].tobytes() == before[name].tobytes() for name in placed)
    train(self)
loop.Loop._train = check_what_is_restored
out = pathlib.Path(sys.argv[1])
jax.config.update("jax_compilation_cache_dir", str(out / "cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
for name, mesh in json.loads(sys.argv[2]).items():
    before = None
    if not (out / name).exists():
        assert main([*flags, "--mesh", mesh, "--out", str(out / name)]) == 0
    else:
        before = read(steps_saved(out / name / "checkpoints")[-1]).arrays
        again = ["--mesh", mesh] if mesh else []
        assert main(["--resume", str(out / name), "--total-steps", "96", "--quiet", *again]) == 0
        last = read(steps_saved(out / name / "checkpoints")[-1])
        record = json.loads((out / name / "config.json").read_text())
        print(name, record["devices"], last.about["update"])
"""


@pytest.mark.slow
def test_a_checkpoint_of_one_mesh_is_restored_exactly_on_another(tmp_path):
    """1 → 8; 8 → 1, where there is no more than one."""
    begun = {"wide": "run=8", "narrow": "run=1"}
    assert finishes(MESHES, 8, tmp_path, json.dumps(begun), timeout=300) == ""
    assert finishes(MESHES, 8, tmp_path, json.dumps({"narrow": "run=8"}), timeout=300).split() == ["narrow", "8", "3"]
    assert finishes(MESHES, 1, tmp_path, json.dumps({"wide": ""}), timeout=300).split() == ["wide", "1", "3"]


@pytest.mark.slow
def test_a_run_that_devices_shared_goes_on_with_one_device_each(tmp_path):
    assert finishes(MESHES, 8, tmp_path, json.dumps({"shared": "run=2,env=4"}), timeout=300) == ""
    assert finishes(MESHES, 8, tmp_path, json.dumps({"shared": "run=8"}), timeout=300).split() == ["shared", "8", "3"]
