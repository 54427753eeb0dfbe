"""The command line: what it leaves on disk, what it prints, and how it refuses."""

import csv
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import AS_USERS, by_cost

from purejaxppo import make_train, resume_experiment
from purejaxppo.cli.run import is_alone, main
from purejaxppo.experiment import loop, program
from purejaxppo.experiment.experiment import devices_again
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.signals import Stopped
from purejaxppo.parallel import runs as devices
from purejaxppo.parallel.runs import over_runs
from purejaxppo.presets import PRESETS, preset, settings_of
from purejaxppo.rundir import lock
from purejaxppo.rundir.checkpoint import read
from purejaxppo.rundir.files import write_json
from purejaxppo.rundir.record import RunRecord, versions
from purejaxppo.spaces import Box, Discrete
from purejaxppo.train import update_step

SMALL = {"num_envs": 2, "num_steps": 16, "total_steps": 200, "num_minibatches": 2, "hidden_sizes": (8,)}
FLAGS = "--num-envs 2 --num-steps 16 --total-steps 200 --num-minibatches 2 --hidden-sizes 8 --num-seeds 3".split()


class RewardTurnsNaN:
    """A user's environment whose reward is NaN from the 20th step of an episode on."""

    observation_space = Box(-math.inf, math.inf, (1,))
    action_space = Discrete(2)

    def reset(self, key):
        return jnp.zeros((), jnp.int32), jnp.zeros(1)

    def step(self, key, state, action):
        state = state + 1
        reward = jnp.where(state < 20, 1.0, jnp.nan)
        return state, state[None].astype(jnp.float32), reward, jnp.zeros((), bool), state >= 50


class LogOfNegative(RewardTurnsNaN):
    """The reward is log(20 - steps)."""

    def step(self, key, state, action):
        state, obs, _, *rest = super().step(key, state, action)
        return state, obs, jnp.log(20.0 - state), *rest


class DictActions(RewardTurnsNaN):
    action_space = {"left": 1}


class DeepObservations(RewardTurnsNaN):
    observation_space = Box(0.0, 1.0, (2, 2, 2, 2))


class FourResults(RewardTurnsNaN):
    def step(self, key, state, action):
        return super().step(key, state, action)[:4]


class FloatFlags(RewardTurnsNaN):
    def step(self, key, state, action):
        state, obs, reward, terminated, truncated = super().step(key, state, action)
        return state, obs, reward, terminated.astype(jnp.float32), truncated


class WrongShape(RewardTurnsNaN):
    def step(self, key, state, action):
        state, _, *rest = super().step(key, state, action)
        return state, jnp.zeros(2), *rest


class Raises:
    def __init__(self):
        raise KeyError("no such level")


class Exits:
    def __init__(self):
        sys.exit(0)


class ExitsInReset(RewardTurnsNaN):
    def reset(self, key):
        raise GeneratorExit


class NoActions(RewardTurnsNaN):
    action_space = Discrete(0)


class NoBounds(RewardTurnsNaN):
    observation_space = Box(math.nan, 1.0, (1,))


class UpsideDown(RewardTurnsNaN):
    action_space = Box(1.0, -1.0, (1,))


class NoSpaces:
    def reset(self, key):
        return key


traces = []  # of the update of the run below


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of 3 seeds on 2 devices, with evaluations at intervals."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    flags = [*FLAGS, "--algo", "trpo", "--seed", "5", "--out", str(out), "--log-interval", "3", "--eval-interval", "4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "update_step", lambda *x: traces.append(x) or update_step(*x))
        assert main(flags) == 0
    return out


@pytest.mark.thorough
def test_an_update_is_traced_once(finished):
    """For the names of its metrics and for its work: tracing is a fifth of what a start from the cache takes."""
    assert len(traces) == 1


def test_the_run_directory_holds_what_is_promised(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {"config.json", "metrics.csv", "summary.json", "learning_curve.png", "checkpoints"}
    assert [path.name for path in (finished / "checkpoints").iterdir()] == ["224"]  # 7 updates of 32 steps
    assert (finished / "learning_curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_summary_holds_the_contracts_keys_and_agrees_with_itself(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary) == {
        *("algo", "env", "num_seeds", "env_steps", "eval_return", "steps_per_second"),
        *("compile_seconds", "run_seconds", "training_seconds", "evaluation_seconds", "saving_seconds"),
        *("device", "seeds", "failed_seeds", "cut_off", "sha256"),
    }
    assert (summary["algo"], summary["env"], summary["num_seeds"], summary["env_steps"]) == (
        "trpo",
        "CartPole-v1",
        3,
        224,
    )
    returns = summary["eval_return"]
    assert len(returns["per_seed"]) == 3
    assert returns["mean"] == pytest.approx(np.mean(returns["per_seed"]))
    assert returns["ci_low"] <= returns["iqm"] <= returns["ci_high"]
    assert summary["steps_per_second"] == pytest.approx(3 * 224 / summary["run_seconds"])


def test_metrics_have_a_row_per_seed_and_interval(finished):
    rows = list(csv.DictReader((finished / "metrics.csv").read_text().splitlines()))
    assert list(rows[0])[:3] == ["seed", "update", "env_steps"]
    assert [(int(row["seed"]), int(row["update"])) for row in rows] == [(s, u) for u in (3, 4, 6, 7) for s in (5, 6, 7)]
    assert all(int(row["env_steps"]) == 32 * int(row["update"]) for row in rows)
    evaluated = {int(row["update"]) for row in rows if row["eval_return"]}
    assert evaluated == {4, 7}
    wanted = {"episode_return", "episode_length", "episodes", "policy_loss", "value_loss", "entropy", "kl", "grad_norm"}
    wanted |= {"explained_variance", "learning_rate", "predicted_kl", "predicted_gain", "gain", "cg_residual", "xFx"}
    assert wanted | {"step_norm", "backtracks", "accepted"} <= set(rows[0])


def test_config_json_makes_the_same_config_again(finished):
    stored = json.loads((finished / "config.json").read_text())
    settings = {name: float(x) if x == "inf" else x for name, x in stored["settings"].items()}
    settings["hidden_sizes"] = tuple(settings["hidden_sizes"])
    assert preset(**settings) == preset("trpo", "CartPole-v1", **SMALL, eval_interval=4)
    assert stored["seeds"] == [5, 6, 7]
    assert stored["versions"]["jax"] == jax.__version__
    assert stored["prng_implementation"] == "threefry2x32"


@pytest.mark.parametrize("algo", ["a2c", pytest.param("trpo", marks=pytest.mark.slow)])
def test_the_checkpoint_is_the_state_of_the_bare_train_bit_for_bit(algo, tmp_path, monkeypatch):
    """Compiled as users' runs are: without fusion emitters, the two programs' last digits differ."""
    monkeypatch.setattr(devices, "QUICK_COMPILATION", AS_USERS)
    out, schedule = tmp_path / "run", ["--log-interval", "3", "--final-episodes", "1"]
    assert main([*FLAGS, "--algo", algo, "--seed", "5", "--out", str(out), *schedule]) == 0
    config = preset(algo, "CartPole-v1", **SMALL)
    keys = jax.vmap(jax.random.key)(np.array([5, 6, 7, 7], np.uint32))
    state, _ = over_runs(make_train(config), jax.devices())(keys)
    state = jax.tree.map(lambda x: x[:3], state)
    saved = read(out / "checkpoints" / "224").state(state)
    bits = [jax.random.key_data(x) if x.dtype == keys.dtype else x for x in jax.tree.leaves((state, saved))]
    half = len(bits) // 2
    assert half > 20
    for expected, actual in zip(bits[:half], bits[half:], strict=True):
        assert expected.dtype == actual.dtype
        np.testing.assert_array_equal(expected, actual)


def test_a_person_reads_stages_rounding_and_a_table(tmp_path, capsys):
    assert main([*FLAGS, "--algo", "a2c", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "total_steps = 200 is rounded up to 224: 7 updates of 32 steps." in printed
    for part in (
        "compiling",
        "training",
        "evaluating",
        "a2c on CartPole-v1",
        "IQM",
        "95% interval",
        "steps per second",
    ):
        assert part in printed


@pytest.mark.thorough
def test_quiet_prints_nothing(tmp_path, capsys):
    assert main([*FLAGS, "--quiet", "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr() == ("", "")


BAD = {
    "--algo trp": ["'trp'", "reinforce, a2c, a2c-tr, npg, trpo, ppo, ppo-penalty, cem, cma-es", "did you mean trpo"],
    "--algo": ["Missing value for argument '--algo'"],
    "--env CartPole": ["'CartPole'", "did you mean CartPole-v1"],
    "--env nowhere:Env": ["'nowhere:Env'", "No module named", "PYTHONPATH"],
    "--env test_run:Missing": ["'test_run:Missing'", "Missing"],
    "--env test_run:Raises": ["'test_run:Raises'", "KeyError"],
    "--env test_run:Exits": ["'test_run:Exits' cannot be made (SystemExit: 0)"],
    "--env test_run:ExitsInReset": ["reset or step fails under jax.jit (GeneratorExit: )"],
    "--env test_run:NoActions": ["action_space = Discrete(n=0) has nothing in it"],
    "--env test_run:NoBounds": ["observation_space = Box(nan, 1, (1,)) must have low ≤ high everywhere, and no NaN"],
    "--env test_run:UpsideDown": ["action_space = Box(1, -1, (1,)) must have low ≤ high everywhere, and no NaN"],
    "--env [/x]": ["env = '[/x]'"],
    "--env test_run:[red]": ["'test_run:[red]' cannot be made"],
    "--env test_run:FourResults": ["step must return (state, obs, reward, terminated, truncated), not 4 values"],
    "--env test_run:FloatFlags": ["terminated is float32[] but must be bool[]"],
    "--env test_run:WrongShape": ["obs", "float32[2]", "float32[1]"],
    "--env test_run:NoSpaces": ["test_run:NoSpaces", "no step, observation_space, action_space"],
    "--env test_run:DictActions": ["action_space", "is no purejaxppo Box, Discrete"],
    "--env test_run:DeepObservations": ["observation_space", "rank"],
    "--num-envs 0": ["num_envs = 0", "[1, 1e9]", "default is 4"],
    "--num-envs -3": ["num_envs = -3", "[1, 1e9]"],
    "--num-envs abc": ["--num-envs", "'abc' is not a whole number"],
    "--num-steps 1.5": ["--num-steps", "'1.5' is not a whole number"],
    "--total-steps 0": ["total_steps = 0", "[1, 1e15]"],
    "--total-steps 1e18": ["total_steps = 1000000000000000000", "[1, 1e15]"],
    "--algo sac": ["'sac'", "off-policy methods are not here: see Stable-Baselines3 or rejax"],
    "--total-steps 60k": ["'60k' is not a whole number, such as 60000 or 6e4"],
    "--total-steps 1e12 --num-steps 1": ["takes 2³¹ updates or more", "num_steps"],
    "--num-seeds 4000000000": ["num_seeds = 4000000000", "[1, 1e6]"],
    "--action-repeat 1073741824": ["action_repeat = 1073741824", "[1, 1000]"],
    "--frame-stack 100000000": ["frame_stack = 100000000", "[1, 1000]"],
    "--num-envs 1e400": ["'1e400' is not a whole number"],
    "--num-minibatches 7": ["num_minibatches = 7", "512", "nearest", "8"],
    "--num-epochs 0": ["num_epochs = 0"],
    "--learning-rate 0": ["learning_rate = 0.0", "(0, inf)", "default is 0.00025"],
    "--learning-rate nan": ["learning_rate = nan"],
    "--learning-rate inf": ["learning_rate = inf"],
    "--gamma 1.01": ["gamma = 1.01", "[0, 1]"],
    "--gamma nan": ["gamma = nan"],
    "--gae-lambda -0.1": ["gae_lambda = -0.1", "[0, 1]"],
    "--clip-eps 0": ["clip_eps = 0.0", "(0, inf]"],
    "--dual-clip 1": ["dual_clip = 1.0", "(1, inf]"],
    "--entropy-coef -1": ["entropy_coef = -1.0", "[0, inf)"],
    "--max-grad-norm 0": ["max_grad_norm = 0.0"],
    "--activation mish": ["mish", "tanh", "relu"],
    "--hidden-sizes 64 0": ["hidden_sizes = 0", "[1, 1e5]"],
    "--hidden-sizes 64,x": ["--hidden-sizes", "'x' is not a whole number"],
    "--max-kl 0.1": ["--max-kl", "--algo npg or trpo"],
    "--lerning-rate 1": ["--lerning-rate", "did you mean --learning-rate"],
    "--lr 1": ["--lr", "did you mean --learning-rate?"],
    "--batch_size 64": ["did you mean --minibatch-size?"],
    "--n-envs 3 --lr 1e-3": ["did you mean --num-envs? --lr is not a flag", "did you mean --learning-rate?"],
    "--minibatch-size 64 --num-minibatches 4": ["minibatch_size = 64 makes 8 of a rollout; leave one of them out"],
    "--env json:Target-v0": ["if json registers it with Gymnasium: --env gymnasium/json:Target-v0."],
    "--algo trpo --target-kl 0.1": ["did you mean --max-kl?"],
    "--algo ppo-penalty --target-kl 0.1": ["did you mean --kl-target?"],
    "--algo trpo --max-kl 0": ["max_kl = 0.0", "(0, inf)"],
    "--algo trpo --damping -1": ["damping = -1.0"],
    "--algo trpo --cg-iterations 0": ["cg_iterations = 0"],
    "--algo trpo --region cube": ["cube", "kl", "ball"],
    "--algo ppo-penalty --kl-target 0": ["kl_target = 0.0"],
    "--num-seeds 0": ["num_seeds = 0"],
    "--seed -1": ["seed = -1"],
    "--devices 0": ["devices = 0"],
    "--devices 99": ["devices = 99", "number of devices"],
    "--log-interval 0": ["log_interval = 0"],
    "--final-episodes 0": ["final_episodes = 0"],
    "--eval-interval -1": ["eval_interval = -1"],
    "--num-envs 100000000": ["GiB", "lower --num-seeds"],
    "--out /dev/null/run": ["/dev/null/run", "cannot be written", "--out"],
    "surplus": ["surplus"],
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_input_is_one_line_and_exit_code_2_before_compilation(flags, tmp_path, monkeypatch, capsys):
    def no_compilation(*args):
        raise AssertionError("compiled before the input was checked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("purejaxppo.experiment.loop.compile_program", no_compilation)
    assert main(flags.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    for part in BAD[flags]:
        assert part in printed.err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("purejaxppo.cli.run.run_experiment", interrupted)
    assert main([]) == 130
    assert capsys.readouterr().err == "stopped: nothing had to be saved\n"


def test_a_directory_with_files_is_never_written_over(tmp_path, capsys):
    (tmp_path / "precious").write_text("mine")
    assert main([*FLAGS, "--quiet", "--out", str(tmp_path)]) == 2
    assert "already holds files" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.slow
def test_a_signal_while_it_evaluates_at_an_interval_saves_and_the_log_goes_on_as_if_nothing_had_been(
    finished, tmp_path, monkeypatch, capsys
):
    """The row that the evaluation would have ended is written once the run goes on."""
    evaluate, stopped = loop.Loop._evaluate, []

    def interrupted(self, now):
        if now and self.done == 4 and not stopped:
            stopped.append(self.done)
            self.signals._handle(signal.SIGTERM, None)
            raise Stopped(signal.SIGTERM, "it takes long")
        return evaluate(self, now)

    monkeypatch.setattr(loop.Loop, "_evaluate", interrupted)
    flags = [*FLAGS, "--algo", "trpo", "--seed", "5", "--log-interval", "3", "--eval-interval", "4"]
    assert main([*flags, "--out", str(tmp_path / "run")]) == 128 + signal.SIGTERM
    assert f"saved at update 4; purejaxppo run --resume {tmp_path / 'run'} goes on" in capsys.readouterr().err
    told = []
    resume_experiment(tmp_path / "run", on_chunk=lambda report: told.extend(report.rows.get("update", [])))
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    assert min(told) == 4  # that of the evaluation, too


def test_resume_or_start(tmp_path, monkeypatch, capsys):
    """Begins where nothing is, or only what a process left that was killed at once; goes on where the run is."""
    out = tmp_path / "run"
    out.mkdir()
    (out / lock.CLAIM).write_text("{}")
    (out / ".0123456789abcdef.saving.json").write_text("{")
    flags = [*FLAGS, "--algo", "a2c", "--num-minibatches", "1", "--final-episodes", "2", "--quiet"]
    again = [*flags, "--out", str(out), "--resume-or-start"]
    assert main(again) == 0
    first = json.loads((out / "summary.json").read_text())
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert main(again) == 0
    assert json.loads((out / "summary.json").read_text())["eval_return"] == first["eval_return"]
    monkeypatch.setattr(program, "compile_program", None)
    for more, said in (
        (["--gamma", "0.5"], "holds a run with gamma = 0.99, not 0.5; choose another --out"),
        (["--seed", "1"], "holds a run of other seeds"),
        (["--init-from", "nowhere"], "holds a run with init_from = '', not 'nowhere'; choose another --out"),
    ):
        assert main([*again, *more]) == 2
        assert said in capsys.readouterr().err
    assert main([*flags, "--resume-or-start"]) == 2
    assert "pass --out DIR" in capsys.readouterr().err


@pytest.mark.thorough
def test_where_all_seeds_fail_the_run_ends_with_seed_update_and_cause_and_keeps_the_log(tmp_path, capsys):
    code = main(
        [*FLAGS, "--env", "test_run:RewardTurnsNaN", "--log-interval", "1", "--quiet", "--out", str(tmp_path / "run")]
    )
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1
    assert "all 3 seeds" in error
    assert "seed 0 first: reward in update 2;" in error  # steps 17 … 32 of each environment
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["update"], row["alive"], row["value_loss"] != "") for row in rows[:6]] == [
        *[("1", "1", True)] * 3,
        *[("2", "0", False)] * 3,
    ]


@pytest.mark.slow
def test_debug_names_the_operation(tmp_path, capsys):
    code = main([*FLAGS, "--env", "test_run:LogOfNegative", "--debug", "--quiet", "--out", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1)
    assert "nan generated by primitive: log" in error
    assert "in LogOfNegative.step" in error
    assert "test_run.py:" in error


def test_help_of_an_algorithm_shows_its_own_flags_with_their_defaults(capsys):
    assert main(["--algo", "trpo", "--help"]) == 0
    printed = capsys.readouterr().out
    for part in ("--max-kl", "--damping", "--cg-iterations", "--num-envs", "--learning-rate", "(default: 0.01, in"):
        assert part in printed
    assert "--clip-eps" not in printed


@pytest.mark.thorough
def test_an_error_in_a_process_of_its_own_has_no_traceback():
    result = run_module("--gamma", "2")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: gamma = 2.0 must be a number in [0, 1]; the default is 0.99.\n"


@pytest.mark.parametrize(
    ("flags", "alone"),
    [
        ("--num-seeds 1", True),
        ("--algo a2c --num_seeds=1 --env Pendulum-v1", True),
        ("--num-seeds 1 --seed-mode vmap", True),
        ("", False),
        ("--num-seeds 2", False),
        ("--num-seeds 1 --num-seeds 4", False),
        ("--num-seeds 1 --devices 1", False),
        ("--num-seeds 1 --devices 2", False),
        ("--num-seeds 1 --num-envs 16", True),
        ("--num-seeds 1 --num-envs 64", False),
        ("--num-seeds 1 --num-envs many", False),
        ("--num-seeds 1 --algo cem", False),  # 50 environments, in CartPole
        ("--num-seeds 1 --algo cem --num-envs 16", True),
        ("--num-seeds 1 --algo none-such", True),  # to be refused
        ("--num-seeds 1 --env Breakout-MinAtar", False),
        ("--num-seeds 1 --mesh env=2", False),
        ("--num-seeds 1 --seed-mode map", False),  # whose bits are those of many such runs on as many devices
        ("--num-seeds 1 --env gymnasium/CartPole-v1", False),  # the host is called from XLA's threads
        ("--num-seeds 1 --env my:Env", False),
    ],
)
def test_which_runs_are_alone(flags, alone):
    assert is_alone(flags.split()) == alone


def test_a_run_that_goes_on_is_alone_if_it_was(tmp_path):
    resume = ["--resume", str(tmp_path)]
    assert not is_alone(resume)  # no such run
    settings = {"algo": "ppo", "env": "CartPole-v1"}
    rest = {"settings": settings, "seeds": [0], "versions": {}, "prng_implementation": "threefry2x32"}
    for record, alone in (({"threads": 1}, True), ({"threads": 2}, False), ({"threads": None}, False), ({}, False)):
        write_json(tmp_path / "config.json", rest | record)
        assert is_alone(resume) == is_alone([*resume, "--devices", "1"]) == alone
        assert not is_alone([*resume, "--devices", "2"])
        assert not is_alone([*resume, "--mesh", "env=2"])


@pytest.mark.slow  # three processes
def test_a_run_alone_has_one_thread_and_goes_on_in_the_same_bits(tmp_path):
    """TRPO on batches that XLA would divide among threads: 4 updates, and 2 and then 2 more, by the command line."""
    small = (
        "--algo trpo --num-seeds 1 --num-envs 2 --num-steps 512 --hidden-sizes 32 --final-episodes 2 --quiet".split()
    )
    for out, steps in (("whole", 4096), ("parts", 2048)):
        result = run_module(*small, "--total-steps", str(steps), "--log-interval", "1", "--out", str(tmp_path / out))
        assert (result.returncode, result.stderr) == (0, "")
    result = run_module("--resume", str(tmp_path / "parts"), "--total-steps", "4096", "--quiet")
    assert (result.returncode, result.stderr) == (0, "")
    for out in ("whole", "parts"):
        assert json.loads((tmp_path / out / "config.json").read_text())["threads"] == 1
    assert (tmp_path / "parts" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


@pytest.mark.parametrize(
    ("devices", "threads", "said"),
    [
        (1, 2, ""),
        (1, None, ""),  # an older version's record, which does not say
        (1, 1, "2 threads instead of 1: the last digits of what follows may differ"),
        (4, 4, "on 2 devices instead of 4: the last digits of what follows may differ"),
    ],
)
def test_other_devices_and_threads_than_before_are_said(devices, threads, said, tmp_path, monkeypatch):
    monkeypatch.setenv("PJRT_NPROC", "2")
    warnings = []
    config, options = preset("ppo", "CartPole-v1"), dataclasses.asdict(HostOptions())
    record = RunRecord(tmp_path, config, [0, 1], options, "threefry2x32", devices, versions(), threads)
    now, here = devices_again(record, [(config, 2)], None, None, SimpleNamespace(warn=warnings.append))
    assert warnings == [said] * bool(said)
    assert (now.devices, now.threads) == (len(here), 2)


@pytest.mark.parametrize(
    ("before", "devices", "now", "count"),
    [
        ("env=2", 2, "env=2", 2),  # four groups of two, and now one: it fits
        ("run=2,env=2", 2, "env=2", 2),
        ("run=2", 1, "", 1),
        ("env=2", 1, "", 1),
    ],
)
def test_on_fewer_devices_a_run_keeps_what_fits_of_its_mesh(before, devices, now, count, tmp_path):
    warnings = []
    config, options = preset("ppo", "CartPole-v1"), dataclasses.asdict(HostOptions(mesh=before))
    record = RunRecord(tmp_path, config, [0, 1, 2, 3], options, "threefry2x32", 8, versions())
    again, here = devices_again(record, [(config, 4)], devices, None, SimpleNamespace(warn=warnings.append))
    assert (again.options["mesh"], len(here)) == (now, count)
    assert warnings[0].startswith(f"mesh = {before!r} takes more than the {devices} devices") == (before != now)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
@pytest.mark.parametrize(
    ("alone", "chosen", "devices", "count"), by_cost([(True, "", 1, 1), (True, "3", 0, 3)], [(True, "", 1, 1)])
)
def test_one_device_and_one_thread_for_a_run_alone(alone, chosen, devices, count):
    """Counted by name; 0 stands for the cores."""
    program = f"""
import pathlib, jax
from purejaxppo.parallel.devices import threads, use_cpu_cores
use_cpu_cores(alone={alone})
jax.block_until_ready(jax.jit(lambda x: x + 1)(jax.numpy.ones(3)))
names = [path.read_text() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
print(jax.device_count(), sum("XLAEigen" in name for name in names), threads())
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}
    environment |= {"JAX_PLATFORMS": "cpu", "PJRT_NPROC": chosen}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=True)
    cores = len(os.sched_getaffinity(0))
    count = max(count or cores, devices or cores)
    assert [int(x) for x in done.stdout.split()] == [devices or cores, count, count]


def run_module(*flags):
    command = [sys.executable, "-m", "purejaxppo.run", *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parent.parent
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=root, check=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the suites' own
@pytest.mark.parametrize(("algo", "env"), PRESETS)
def test_presets_are_valid_and_flat_settings_round_trip(algo, env):
    suite, _, name = env.rpartition("/")
    if suite:  # of the extra of that name
        pytest.importorskip("brax" if suite == "brax" else "mujoco" if name.endswith("-v5") else "Box2D")
    config = preset(algo, env)
    with jax.numpy_rank_promotion("allow"):  # suites rely on it
        config.check()
    assert preset(**settings_of(config)) == config
    for name, value in PRESETS[algo, env].items():
        assert settings_of(config)[name] == value


def test_json_holds_infinities_as_strings(tmp_path):
    write_json(tmp_path / "x.json", {"a": math.inf, "b": (1, np.float32(2.5)), "c": None})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": "inf", "b": [1, 2.5], "c": None}
