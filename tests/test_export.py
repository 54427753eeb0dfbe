"""Exported policies: the file alone does what the policy does, and is complete and right or not there."""

import functools
import logging
import os
import subprocess
import sys

import gymnasium
import jax
import numpy as np
import onnxruntime
import pytest
from support import by_cost

from purejaxppo.cli.export import main
from purejaxppo.cli.run import main as run
from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.policy import export
from purejaxppo.policy.acting import actor
from purejaxppo.policy.export import OBSERVATIONS, TOLERANCE, export_policy, largest_difference, observations
from purejaxppo.policy.load import Trained, load
from purejaxppo.presets import preset
from purejaxppo.spaces import Box
from purejaxppo.train import init

ENVS = ("CartPole-v1", "Pendulum-v1", "Breakout-MinAtar")
QUICK = (("CartPole-v1", ".onnx"), ("CartPole-v1", ".jax"))
DRIVE = """
import gymnasium, numpy, onnxruntime

policy = onnxruntime.InferenceSession("policy.onnx")
env = gymnasium.make("CartPole-v1")
obs, _ = env.reset(seed=0)
total, over = 0.0, False
while not over:
    [action] = policy.run(["action"], {"obs": numpy.float32(obs[None])})
    obs, reward, terminated, truncated, _ = env.step(action[0])
    total, over = total + reward, terminated or truncated
print(total)
"""


@functools.cache
def stub(env, seed=3):
    """A seed whose policy is as far from its initialisation as training would take it, without the training."""
    config = preset("ppo", env, num_envs=2, num_steps=16, num_minibatches=2, hidden_sizes=(8,))
    config = config.replace(normalize_observations=True)
    state = jax.jit(lambda key: init(config, key))(jax.random.key(seed))
    rng = np.random.default_rng(seed)

    def drift(x):
        return x + rng.normal(scale=0.7, size=x.shape).astype(np.float32)

    statistics = state.observation_statistics
    statistics = statistics.replace(mean=drift(statistics.mean), variance=drift(statistics.variance) ** 2)
    state = state.replace(policy=jax.tree.map(drift, state.policy), observation_statistics=statistics)
    return Trained(config, seed, state, 640, actor(config, state))


@pytest.fixture(scope="module", autouse=True)
def drawn_once():
    """The observations that a policy is checked on are the same each time; what draws them is compiled once."""
    drawn = {}

    def again(trained):
        key = (trained.config.env, trained.seed, trained.env_steps)
        if key not in drawn:
            drawn[key] = observations(trained)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "observations", again)
        yield


@pytest.fixture(scope="module", params=ENVS)
def trained(request):
    return stub(request.param)


@pytest.fixture(scope="module")
def cartpole():
    return stub("CartPole-v1")


@pytest.fixture(scope="module")
def pendulum():
    return stub("Pendulum-v1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    flags = "--num-envs 2 --num-steps 16 --total-steps 200 --hidden-sizes 8 --num-seeds 2 --final-episodes 2 --quiet"
    assert run([*flags.split(), "--algo", "a2c", "--seed", "4", "--out", str(out)]) == 0
    return out


def untrained(config):
    """A policy of large first weights, so that its actions differ."""
    state = jax.jit(lambda key: init(config, key))(jax.random.key(0))
    state = state.replace(policy=jax.tree.map(lambda x: 30 * x, state.policy))
    return Trained(config, 0, state, 8, actor(config, state))


def read(path):
    """The file's function, by what its format's own runtime offers."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        return lambda obs: session.run(["action"], {"obs": obs})[0]
    restored = jax.export.deserialize(bytearray(path.read_bytes()))
    assert {"cpu", "cuda"} <= set(restored.platforms)
    return lambda obs: np.asarray(restored.call(obs))


@pytest.mark.parametrize(
    ("trained", "suffix"),
    by_cost([(env, suffix) for env in ENVS for suffix in (".onnx", ".jax")], QUICK),
    indirect=["trained"],
)
def test_the_file_alone_maps_batches_of_any_size_to_the_policys_actions(trained, suffix, tmp_path):
    difference = export_policy(trained, tmp_path / f"policy{suffix}")
    assert 0 <= difference <= TOLERANCE
    assert [path.name for path in tmp_path.iterdir()] == [f"policy{suffix}"]
    act, obs = read(tmp_path / f"policy{suffix}"), export.observations(trained)
    space, actions = trained.config.environment.action_space, act(obs)
    assert largest_difference(trained, obs, actions) <= TOLERANCE
    for few in (slice(1), slice(600, 607)):
        np.testing.assert_allclose(act(obs[few]), actions[few], atol=TOLERANCE)
    if isinstance(space, Box):
        assert actions.shape == (OBSERVATIONS, *space.shape)
        assert actions.dtype == np.float32
        assert np.max(np.abs(actions)) == 2  # the bound is met, and not all the time
        assert np.min(np.abs(actions)) < 1
    else:
        assert (actions.shape, actions.dtype) == ((OBSERVATIONS,), np.int32)
        assert len(set(actions.tolist())) > 1


def test_the_file_is_the_formula(pendulum, tmp_path):
    """Normalise, clip, one hidden layer, clip: in float64 NumPy."""
    export_policy(pendulum, tmp_path / "policy.onnx")
    obs = export.observations(pendulum)
    statistics, params = pendulum.state.observation_statistics, pendulum.state.policy["params"]
    x = np.clip((obs - np.float64(statistics.mean)) / np.sqrt(np.float64(statistics.variance) + 1e-8), -10, 10)
    hidden, head = params["Torso_0"]["Dense_0"], params["Dense_0"]
    x = np.tanh(x @ np.float64(hidden["kernel"]) + np.float64(hidden["bias"]))
    x = np.clip(x @ np.float64(head["kernel"]) + np.float64(head["bias"]), -2, 2)
    np.testing.assert_allclose(read(tmp_path / "policy.onnx")(obs), x, atol=2e-5)


def test_observations_are_those_of_the_policy_and_disturbed_ones_in_bounds(trained):
    obs, space = export.observations(trained), trained.config.environment.observation_space
    kept = bool if "MinAtar" in trained.config.env else np.float32
    assert (obs.shape, obs.dtype) == ((OBSERVATIONS, *space.shape), kept)
    assert np.all((obs >= space.low) & (obs <= space.high))
    assert len(np.unique(obs.reshape(OBSERVATIONS, -1), axis=0)) > 0.5 * OBSERVATIONS


def test_the_difference_of_wrong_actions(cartpole, pendulum):
    obs = export.observations(cartpole)
    right = np.asarray(cartpole.act(obs))
    assert largest_difference(cartpole, obs, right) == 0
    assert largest_difference(cartpole, obs, np.where(np.arange(OBSERVATIONS) == 7, 1 - right, right)) > TOLERANCE
    for wrong in (right[:, None], right.astype(np.float32), right + np.int32(2), right - np.int32(2)):
        assert largest_difference(cartpole, obs, wrong) == np.inf
    state = cartpole.state.replace(policy=jax.tree.map(np.zeros_like, cartpole.state.policy))
    undecided = cartpole._replace(state=state, act=actor(cartpole.config, state))
    assert largest_difference(undecided, obs, right) == 0  # all actions are as good as each other
    obs = export.observations(pendulum)
    mean = np.asarray(pendulum.act(obs))
    assert np.max(np.abs(mean)) == 2
    assert largest_difference(pendulum, obs, mean + np.float32(1e-3) * (np.abs(mean) < 1)) == pytest.approx(5e-4, 1e-2)
    assert not largest_difference(pendulum, obs, mean * np.float32(np.nan)) <= TOLERANCE


@pytest.mark.parametrize("suffix", [".onnx", ".jax"])
def test_a_failed_check_writes_nothing_and_leaves_what_was_there(cartpole, suffix, tmp_path, monkeypatch):
    packages, write = export.FORMATS[suffix]
    other = stub("CartPole-v1", seed=8)
    monkeypatch.setitem(export.FORMATS, suffix, (packages, lambda trained, *inputs: write(other, *inputs)))
    out = tmp_path / f"policy{suffix}"
    with pytest.raises(UsageError, match="actions are off by"):
        export_policy(cartpole, out)
    assert not list(tmp_path.iterdir())
    out.write_text("older")
    with pytest.raises(UsageError):
        export_policy(cartpole, out)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]


def test_matrices_are_multiplied_in_full_float32_on_accelerators_too(cartpole, tmp_path):
    export_policy(cartpole._replace(config=cartpole.config.replace(precision="high")), tmp_path / "policy.jax")
    program = jax.export.deserialize(bytearray((tmp_path / "policy.jax").read_bytes())).mlir_module()
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all("HIGHEST" in line for line in products)


def test_the_command_writes_the_best_seed_and_says_what_the_check_found(finished, tmp_path, capsys):
    out = tmp_path / "policy.onnx"
    out.write_text("older")
    assert main([str(finished), "--out", str(out)]) == 0
    best = load(finished)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"{out}: seed {best.seed} after 224 steps; largest difference from the policy " in printed.out
    assert "over 1,000 observations" in printed.out
    about = onnxruntime.InferenceSession(out).get_modelmeta().custom_metadata_map
    assert about.pop("purejaxppo")
    assert about == {"algo": "a2c", "env": "CartPole-v1", "seed": str(best.seed), "env_steps": "224"}
    other = 9 - best.seed
    assert main([str(finished), "--seed", str(other), "--checkpoint", "224", "--out", str(out)]) == 0
    assert f"seed {other} after 224 steps" in capsys.readouterr().out


def test_a_policy_acts_in_gymnasium_without_jax(finished, tmp_path):
    assert main([str(finished), "--out", str(tmp_path / "policy.onnx")]) == 0
    before = "import sys\nsys.modules['jax'] = None\nsys.modules['purejaxppo'] = None\n"
    after = "assert sys.modules['jax'] is None and not any(name.startswith(('jax.', 'jaxlib')) for name in sys.modules)"
    command = [sys.executable, "-c", before + DRIVE + after]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert 1 <= float(ran.stdout) <= 500


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--out", "policy.pkl"], "out = 'policy.pkl' must end in .onnx or .jax; rename it."),
        (["--out", "missing/policy.jax"], "must be a file in a directory that exists"),
        (["--out", "policy.onnx", "--seed", "9"], "seed = '9' is not one of this run's"),
        (["--out", "policy.onnx", "--checkpoint", "7"], "checkpoint = '7' was not kept"),
        (["--out", "policy.onnx", "--sed", "4"], "--seed"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(finished, argv, told, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(finished), *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert told in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["jax2onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_the_extra_that_has_it(package, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["nowhere", "--out", str(tmp_path / "policy.onnx")]) == 2
    error = capsys.readouterr().err
    assert package in error
    assert error.endswith('; pip install "purejaxppo[onnx]".\n')


def test_a_full_disk_leaves_no_half_file(cartpole, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        export_policy(cartpole, tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


def test_a_link_planted_beside_the_file_is_not_followed(cartpole, tmp_path):
    other = tmp_path / "precious"
    other.write_text("mine")
    for name in (".policy.jax.saving", ".policy.saving.jax"):
        (tmp_path / name).symlink_to(other)
    export_policy(cartpole, tmp_path / "policy.jax")
    assert other.read_text() == "mine"


@pytest.mark.filterwarnings("ignore")  # the suites' own
@pytest.mark.parametrize(
    "env",
    by_cost(
        [
            *("gymnasium/CartPole-v1", "gymnasium/host_environments:Spaces-v0"),
            "gymnasium/host_environments:Spaces-v0,actions=box",
            *("brax/inverted_pendulum,backend=positional", "craftax/Craftax-Classic-Symbolic-v1"),
            *("navix/Navix-Empty-5x5-v0", "jumanji/Snake-v1", "pgx/tic_tac_toe", "playground/CartpoleBalance"),
        ],
        ["gymnasium/host_environments:Spaces-v0"],
    ),
)
def test_a_policy_of_every_suite_is_exported(env, tmp_path):
    """From fresh episodes; the file takes and gives what the environment itself gives and takes."""
    suite = env.partition("/")[0]
    pytest.importorskip({"playground": "mujoco_playground"}.get(suite, suite))
    with jax.numpy_rank_promotion("allow"):  # suites rely on it
        config = preset("a2c", env, num_envs=2, num_steps=4, total_steps=8, hidden_sizes=(4,))
        with config.environment:
            trained = untrained(config)
            assert export_policy(trained, tmp_path / "policy.jax") <= TOLERANCE
            if "Spaces" not in env:
                return
            parts = np.float32([[0, 1], [1, 1]]), np.float32([[2, 3], [0, 0]])
            masks = np.array([[True, False, True], [True, True, True]])
            obs = {"picture": np.full((2, 4, 4, 1), 200, np.uint8), "place": np.int32([3, 6]), "action_mask": masks}
            actions = np.asarray(trained.act(obs | {"nested": parts}))
            space = gymnasium.make("Spaces-v0", **config.environment.params).action_space
            assert all(action in space for action in actions)
            given = obs | {"nested.0": parts[0], "nested.1": parts[1]}
            given["action_mask"] = masks.astype(trained.state.rollout.obs["action_mask"].dtype)
            np.testing.assert_allclose(read(tmp_path / "policy.jax")(given), actions, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "settings",
    [
        {"activation": "gelu", "layer_norm": True, "action_distribution": "beta"},
        {"activation": "elu", "action_distribution": "gsde"},
        {"activation": "leaky_relu", "action_distribution": "tanh-gaussian-state-std", "shared_torso": True},
    ],
    ids=lambda settings: settings["action_distribution"],
)
def test_what_few_policies_are_made_of_is_exported_too(settings, tmp_path):
    config = Config(env="Pendulum-v1", num_envs=2, num_minibatches=2, hidden_sizes=(4,), **settings)
    state, rng = jax.jit(lambda key: init(config, key))(jax.random.key(0)), np.random.default_rng(0)
    drift = jax.tree.map(lambda x: np.float32(0.7 * rng.normal(size=x.shape)), state.policy)
    state = state.replace(policy=jax.tree.map(np.add, state.policy, drift))
    trained = Trained(config, 0, state, 8, actor(config, state))
    assert export_policy(trained, tmp_path / "policy.onnx") <= TOLERANCE
    obs = export.observations(trained)[:50]
    action = read(tmp_path / "policy.onnx")(obs)
    np.testing.assert_allclose(action, trained.act(obs), atol=1e-4)
    assert np.std(action) > 0.01


@pytest.mark.parametrize("actions", by_cost(["whole", "high"], ()))
def test_boxes_of_integers_and_those_without_a_zero(actions, tmp_path):
    """What the file gives is what the environment receives, up to its type."""
    config = preset("a2c", f"gymnasium/host_environments:Spaces-v0,actions={actions}", num_envs=2, hidden_sizes=(4,))
    with config.environment:
        trained = untrained(config)
        export_policy(trained, tmp_path / "policy.jax")
        obs = export.observations(trained)
        given, _ = export.as_given(config.environment, obs)
        action, expected = read(tmp_path / "policy.jax")(given), np.asarray(trained.act(given))
        np.testing.assert_allclose(action, expected, atol=1e-5)
        some = np.float32([[-3.0, -0.6], [0.4, 7.3], [8.6, 9.0]])
        for to_gymnasium in (config.environment.to_gymnasium, jax.jit(config.environment.to_gymnasium)):
            if actions == "whole":
                np.testing.assert_array_equal(to_gymnasium(some), [[-1, -1], [0, 1], [1, 1]])


def test_what_the_policy_does_not_see_is_neither_in_the_file_nor_asked_for(tmp_path):
    config = preset("a2c", "gymnasium/host_environments:Spaces-v0", num_envs=2, hidden_sizes=(4,))
    with config.environment:
        trained = untrained(config.replace(policy_obs=("place", "nested.0")))
        assert export_policy(trained, tmp_path / "policy.onnx") <= TOLERANCE
        obs = {
            "place": np.int32([3, 6]),
            "nested.0": np.float32([[0, 1], [1, 1]]),
            "action_mask": np.ones((2, 3), bool),
        }
        session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
        assert {x.name for x in session.get_inputs()} == {*obs}
        (action,) = session.run(["action"], obs)
        np.testing.assert_array_equal(trained.act(obs), action)
        np.testing.assert_array_equal(trained.act(obs | {"action_mask": np.ones(3, bool)}), action)  # one for all
        with pytest.raises(UsageError, match="nested"):
            trained.act({"place": 3, "action_mask": np.ones(3, bool)})


def test_an_entry_with_the_outputs_name_is_told(pendulum, tmp_path):
    given = {"action": np.zeros((2, 1), np.float32), "obs": np.zeros((2, 3), np.float32)}
    with pytest.raises(UsageError, match=r"'action' is a name that an ONNX file gives to another; export to \.jax"):
        export.to_onnx(pendulum, given, ())


def test_the_converter_is_quiet(cartpole, tmp_path, caplog, capfd):
    with caplog.at_level(logging.WARNING):
        export_policy(cartpole, tmp_path / "policy.onnx")
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
