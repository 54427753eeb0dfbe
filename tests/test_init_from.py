"""Runs that begin with what another has learnt."""

import shutil

import jax
import numpy as np
import pytest

from purejaxppo import CEM, PPO, A2CTrustRegion, Config, run_experiment, tune
from purejaxppo.cli.run import main
from purejaxppo.errors import UsageError
from purejaxppo.experiment.options import HostOptions
from purejaxppo.policy.load import load
from purejaxppo.rundir import learnt
from purejaxppo.sweeps.definition import begin_sweep

SMALL = {"num_envs": 2, "num_steps": 16, "total_steps": 64, "hidden_sizes": (8,), "num_minibatches": 1}
OPTIONS = {"final_episodes": 1, "checkpoint_interval": 1}
STILL = {"learning_rate": 1e-30, "anneal_learning_rate": False}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    out = tmp_path_factory.mktemp("init_from") / "source"
    config = Config(env="Pendulum-v1", algo=PPO(), normalize_observations=True, normalize_rewards=True, **SMALL)
    return run_experiment(config, seeds=2, out=out, options=OPTIONS)


@pytest.mark.thorough
def test_networks_and_statistics_are_the_others(source, tmp_path):
    """Seed by seed, then from the first again; another method, whose own state is made of the parameters."""
    config = source.config.replace(algo=A2CTrustRegion(), **STILL)
    shutil.copytree(source.out, tmp_path / "copy")
    other = OPTIONS | {"init_from": str(tmp_path / "copy")}
    begun = run_experiment(config, seeds=3, out=tmp_path / "run", options=other)
    for part in ("policy", "critic"):
        for new, old in zip(*(jax.tree.leaves(getattr(x.state, part)) for x in (begun, source)), strict=True):
            np.testing.assert_array_equal(np.asarray(new)[:3], np.asarray(old)[[0, 1, 0]])
    for new, old in zip(
        *(jax.tree.leaves(x) for x in (begun.state.algorithm.average, begun.state.policy)), strict=True
    ):
        np.testing.assert_allclose(new, old, rtol=1e-6)
    before, after = source.state.observation_statistics.count, begun.state.observation_statistics.count
    np.testing.assert_array_equal(np.asarray(after)[:3], np.asarray(before)[[0, 1, 0]] + 64)
    assert np.all(np.asarray(begun.state.reward_normalizer.statistics.count)[:3] == 128)

    shutil.rmtree(tmp_path / "copy")  # a run that goes on does not need it any more
    assert main(["--resume", str(begun.out), "--total-steps", "96", "--quiet"]) == 0
    assert load(begun.out, seed=0).env_steps == 96


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_sizes": (9,)}, r"params.Dense_0.kernel is float32\[8, 1\] there and float32\[9, 1\] here"),
        ({"normalize_observations": False}, "normalize_observations = True, and here it is False; set it as there"),
        ({"activation": "relu"}, "activation = 'tanh', and here it is 'relu'"),
        ({"env": "MountainCarContinuous-v0"}, r"is float32\[3, 8\] there and float32\[2, 8\] here"),
        ({"log_std_init": -1.0}, "log_std_init = -1.0 would do nothing: log σ is that of init_from"),
        ({"recurrent": "gru"}, "recurrent = 'none', and here it is 'gru'"),
        ({"layer_norm": True}, "layer_norm = False, and here it is True"),
    ],
)
def test_what_does_not_fit_is_named(source, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        run_experiment(
            source.config.replace(**changes),
            seeds=2,
            out=tmp_path / "run",
            options=OPTIONS | {"init_from": str(source.out)},
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("network", ["policy", "critic"])
def test_a_layer_that_only_the_other_has_is_named(source, monkeypatch, network):
    read = learnt.newest_in_all

    def with_another_layer(*arguments):
        snapshot = read(*arguments)
        layer = {f"state.{network}.params.Torso_0.Dense_1.kernel": np.zeros((2, 8, 8), np.float32)}
        return snapshot._replace(arrays=snapshot.arrays | layer)

    monkeypatch.setattr(learnt, "newest_in_all", with_another_layer)
    told = rf"{network}.params.Torso_0.Dense_1.kernel is float32\[8, 8\] there and missing here"
    with pytest.raises(UsageError, match=told):
        learnt.read_learnt(source.out, source.config)
    if network == "critic":  # of which these have none
        learnt.read_learnt(source.out, source.config.replace(algo=CEM(), normalize_rewards=False))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("observation_clip", (np.inf, 1.0), "observation_clip = 'inf', and here it is 1.0"),
        ("log_std_init", (0.0, -1.0), "do nothing"),
    ],
)
def test_every_setting_of_a_sweep_and_a_study_must_fit(source, tmp_path, name, values, message):
    host = HostOptions(init_from=str(source.out))
    for settings in (values, values[::-1]):
        with pytest.raises(UsageError, match=message):
            begin_sweep(source.config, [{name: x} for x in settings], [0], tmp_path, jax.devices()[:1], host)
    space = {name: {"low": 0.5, "high": 1.0}}
    with pytest.raises(UsageError, match=f"space: {name} is that of the run in init_from"):
        tune(source.config, space, out=tmp_path / "study", options=host)


def test_the_default_environment_is_not_taken_for_the_others(source, tmp_path, capfd):
    assert main(["--init-from", str(source.out), "--out", str(tmp_path / "run")]) == 2
    said = capfd.readouterr().err
    assert "was trained on Pendulum-v1, and without --env a run is on CartPole-v1; add --env Pendulum-v1" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert main(["--init-from", str(source.out), "--env", "CartPole-v1", "--out", str(tmp_path / "run")]) == 2
    assert "normalize_observations = True, and here it is False" in capfd.readouterr().err


def test_no_run_to_begin_with(tmp_path, capfd):
    assert main(["--init-from", str(tmp_path / "none"), "--out", str(tmp_path / "run")]) == 2
    assert "has no checkpoint; name the directory of a run." in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
