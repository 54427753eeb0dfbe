"""`purejaxppo evaluate`: its figures, against independent ones, here and in Gymnasium."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from purejaxppo import Config, evaluate, make_train, preset
from purejaxppo.__main__ import front
from purejaxppo.cli.run import main as run
from purejaxppo.errors import UsageError
from purejaxppo.keys import EVALUATION
from purejaxppo.parallel.runs import over_runs
from purejaxppo.policy.frames import in_gymnasium

SMALL = {"num_envs": 2, "num_steps": 16, "total_steps": 200, "num_minibatches": 2, "hidden_sizes": (8,)}
FLAGS = "--algo a2c --num-envs 2 --num-steps 16 --total-steps 200 --num-minibatches 2 --hidden-sizes 8 --quiet".split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 3 seeds."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert run([*FLAGS, "--num-seeds", "3", "--seed", "5", "--final-episodes", "5", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def bare_states():
    """The states of the bare `make_train`, for the run's seeds and one more."""
    keys = jax.vmap(jax.random.key)(np.array([5, 6, 7, 7], np.uint32))
    return over_runs(make_train(preset("a2c", "CartPole-v1", **SMALL)), jax.devices())(keys)[0]


@pytest.fixture
def command(monkeypatch, capsys):
    """The command's exit code and what it prints."""

    def call(*argv, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        return front(["evaluate", *map(str, argv)]), capsys.readouterr()

    return call


@pytest.mark.parametrize("policy", ["greedy", pytest.param("sample", marks=pytest.mark.slow)])
@pytest.mark.thorough
def test_figures_are_those_of_the_bare_trains_states(policy, finished, bare_states, tmp_path, command):
    code, _ = command(finished, "--episodes", 9, "--json", tmp_path / "x.json", f"--{policy}", "--episode-seed", 3)
    assert code == 0
    config = preset("a2c", "CartPole-v1", **SMALL, eval_greedy=policy == "greedy")
    result = json.loads((tmp_path / "x.json").read_text())
    assert (result["policy"], result["seeds"], result["env_steps"]) == (policy, [5, 6, 7], 224)
    for i, row in enumerate(result["returns"]["port"]["per_seed"]):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), EVALUATION), 5 + i)
        expected = evaluate(config, jax.tree.map(lambda x, i=i: x[i], bare_states), key, 9)
        returns = np.asarray(expected.returns, np.float64)
        assert row["mean"] == pytest.approx(returns.mean())
        assert row["std"] == pytest.approx(returns.std())
        assert (row["min"], row["max"]) == (returns.min(), returns.max())
        assert row["mean_length"] == pytest.approx(np.mean(expected.lengths))
        assert row["min"] <= row["ci_low"] <= row["mean"] <= row["ci_high"] <= row["max"]


@pytest.mark.thorough
def test_one_seed_has_the_figures_that_it_has_among_all(finished, tmp_path, command):
    for seed in ("all", "6"):
        assert command(finished, "--episodes", 9, "--seed", seed, "--json", tmp_path / f"{seed}.json")[0] == 0
    many, one = (json.loads((tmp_path / f"{seed}.json").read_text()) for seed in ("all", "6"))
    assert one["seeds"] == [6]
    among, alone = (x["returns"]["port"]["per_seed"] for x in (many, one))
    for name in ("mean", "std", "min", "max", "mean_length"):
        assert alone[0][name] == among[1][name]


@pytest.mark.thorough
def test_the_port_and_gymnasium_stand_side_by_side(finished, tmp_path, command):
    code, printed = command(
        finished, "--gymnasium", "CartPole-v1", "--episodes", 30, "--json", tmp_path / "x.json", "--sample"
    )
    assert (code, printed.err) == (0, "")
    assert "a2c on CartPole-v1 after 224 steps: 30 episodes per seed, sample" in printed.out
    for word in ("port", "CartPole-v1", "difference", "IQM", "95% interval", "std", "min", "max", "length"):
        assert word in printed.out
    places = json.loads((tmp_path / "x.json").read_text())["returns"]
    here, there, between = (places[place]["per_seed"] for place in ("port", "gymnasium", "difference"))
    for a, b, c in zip(here, there, between, strict=True):
        assert c["mean"] == pytest.approx(b["mean"] - a["mean"])
        assert c["ci_low"] <= c["mean"] <= c["ci_high"]
    over = places["difference"]["over_seeds"]
    assert over["mean"] == pytest.approx(np.mean([c["mean"] for c in between]))
    assert over["ci_low"] - 5 <= 0 <= over["ci_high"] + 5  # steps of about 20: the two are the same environment


BAD = {
    "--episodes 0": ["episodes = 0", "[1, 1e6]"],
    "--episodes x": ["--episodes", "'x'"],
    "--episode-seed -1": ["episode_seed = -1"],
    "--greedy --sample": ["exclude each other"],
    "--seed 9": ["seed = '9'", "5 … 7"],
    "--checkpoint 7": ["checkpoint = '7'", "224"],
    "--json nowhere/x.json": ["'nowhere/x.json'", "in a directory that exists"],
    "--json .": ["json = '.' must be a file"],
    "--eval-max-steps 0": ["eval_max_steps = 0"],
    "--gymnasium CartPole": ["'gymnasium/CartPole'", "did you mean", "CartPole-v1"],
    "--gymnasium qqqq": ["'gymnasium/qqqq'", "not a registered environment"],
    "--gymnasium nowhere:Env-v0": ["'gymnasium/nowhere:Env-v0'", "nowhere"],
    "--gymnasium Pendulum-v1": ["'Pendulum-v1'", "(3,)", "(4,)"],
    "--gymnasium Blackjack-v1": ["'Blackjack-v1'", "Discrete", "(4,)"],
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_input_is_one_line_and_exit_code_2(flags, finished, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    code, printed = command(finished, *flags.split())
    assert (code, printed.out) == (2, "")
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    for part in BAD[flags]:
        assert part in printed.err


@pytest.mark.parametrize(
    ("name", "port", "part"),
    [
        ("Acrobot-v1", "Pendulum-v1", "has observations"),
        ("MountainCarContinuous-v0", "MountainCar-v0", "trained on Discrete(n=3)"),
        ("MountainCar-v0", "MountainCarContinuous-v0", "trained on Box"),
    ],
)
def test_other_spaces_are_refused(name, port, part):
    with pytest.raises(UsageError, match="trained") as refused:
        in_gymnasium(Config(env=port), name)
    assert part in str(refused.value)


def test_no_digit_is_cut_and_no_interval_invented(finished, command):
    """At 40 columns, too; two episodes have no interval; those that are cut off are counted."""
    code, printed = command(finished, "--episodes", 2, "--eval-max-steps", 3, "--seed", 6, columns=40)
    assert (code, printed.err) == (0, "")
    assert "2 episodes per seed" in " ".join(printed.out.split())
    assert "…" not in printed.out
    assert printed.out.count("3.00") >= 4
    assert printed.out.endswith("port: 2 episodes cut off after eval_max_steps = 3\n")


@pytest.mark.thorough
def test_episodes_without_a_time_limit_are_cut_off_and_that_is_said(tmp_path, capsys, command):
    flags = "--algo a2c --env gymnasium/CliffWalking-v1 --num-envs 2 --num-steps 4 --total-steps 8 --hidden-sizes 4"
    ends = "--num-seeds 1 --final-episodes 2 --eval-max-steps 7 --devices 1"
    assert run([*flags.split(), *ends.split(), "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr()
    assert (
        "CliffWalking-v1 declares no time limit: evaluations cut episodes off after eval_max_steps = 7" in printed.out
    )
    assert "2 of 2 episodes of the final evaluation were cut off after eval_max_steps = 7" in printed.err
    command(tmp_path / "run", "--episodes", 12, "--eval-max-steps", 5, "--json", tmp_path / "x.json")
    [row] = json.loads((tmp_path / "x.json").read_text())["returns"]["port"]["per_seed"]
    assert (row["mean_length"], row["cut_off"]) == (5.0, 12)


@pytest.mark.thorough
def test_in_a_process_of_its_own_nothing_but_the_table_is_printed(finished):
    words = [sys.executable, "-m", "purejaxppo", "evaluate", str(finished), "--episodes", "2"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parent.parent
    result = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment, cwd=root, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "IQM" in result.stdout
