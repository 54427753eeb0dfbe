"""The front door: commands, flags and the files that stand for them, names that people type, output and signals."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from purejaxppo import PPO, TRPO, Config, UsageError, make_train, preset, run_experiment
from purejaxppo.__main__ import COMMANDS, front
from purejaxppo.__main__ import main as command_line
from purejaxppo._version import __version__
from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.cli import command
from purejaxppo.cli.completion import completion
from purejaxppo.cli.flags import with_file
from purejaxppo.cli.run import main as run
from purejaxppo.cli.run import table
from purejaxppo.cli.settings import NoOptions, RunOptions, parse_settings
from purejaxppo.envs.registry import make_env
from purejaxppo.experiment.progress import ProgressLine, plain_console
from purejaxppo.fields import whole_number
from purejaxppo.presets import PRESETS, SOURCES
from purejaxppo.rundir.files import write_json
from purejaxppo.rundir.record import RunRecord, read_record, versions, write_record

ROOT = Path(__file__).parent.parent
TINY = (
    "--total-steps 64 --num-envs 2 --num-steps 16 --num-minibatches 2 --num-epochs 1 --hidden-sizes 8 --num-seeds 1 "
    "--final-episodes 2 --quiet"
).split()


def parsed(*flags):
    """The config and the options of a run's flags."""
    return parse_settings(with_file([*flags]), "purejaxppo run", "", NoOptions())[:2]


def said(capsys, *argv):
    """The exit code of a command, and its one line on stderr."""
    code, error = front([*argv]), capsys.readouterr().err
    assert error.count("\n") == 1
    return code, error


def test_the_front_door_has_an_overview_a_version_and_a_suggestion(capsys):
    for argv in ([], ["--help"]):
        assert front(argv) == 0
        overview = capsys.readouterr().out
        for name in COMMANDS:
            assert f"\n  {name} " in overview
        for example in re.findall(r"^  purejaxppo (\w+) ", overview, re.MULTILINE):
            assert example in COMMANDS
    assert front(["--version"]) == 0
    assert capsys.readouterr().out == f"purejaxppo {__version__}\n"
    assert said(capsys, "rum") == (2, "error: 'rum' is not a command; did you mean run?\n")
    assert said(capsys, "--print-completion", "dos") == (
        2,
        "error: --print-completion 'dos' must name a shell: bash, zsh, fish.\n",
    )
    for name in COMMANDS:
        assert front([name, "--help"]) == 0
        assert f"usage: purejaxppo {name} " in capsys.readouterr().out


def test_modules_in_the_current_directory_are_found(tmp_path, monkeypatch):
    """By the script `purejaxppo`, too, whose own directory is the first of `sys.path`."""
    (tmp_path / "own_in_cwd.py").write_text("class Own:\n    observation_space = action_space = None\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr("purejaxppo.__main__.run_process", lambda *_: make_env("own_in_cwd:Own"))
    with pytest.raises(UsageError, match="No module named 'own_in_cwd'"):
        make_env("own_in_cwd:Own")
    command_line()
    assert sys.path[0] == str(tmp_path)


def test_completion_knows_commands_and_flags_and_bash_can_read_it(tmp_path):
    script = completion(COMMANDS, "bash")
    for word in (*COMMANDS, "--num-envs", "--max-kl", "--kl-target", "--grid", "--gymnasium", "ppo-penalty"):
        assert word in script
    (tmp_path / "completion").write_text(script)
    subprocess.run(["bash", "-n", tmp_path / "completion"], check=True, timeout=20)
    assert "#compdef purejaxppo" in completion(COMMANDS, "zsh")
    assert "function _tyro_purejaxppo" in completion(COMMANDS, "fish")


def test_whole_numbers_and_sizes_are_read_as_people_write_them():
    config, options = parsed(*"--total-steps 1e6 --num-envs 1_000 --num-seeds=2e0 --hidden-sizes 64,32".split())
    assert (config.total_steps, config.num_envs, config.hidden_sizes) == (10**6, 1000, (64, 32))
    assert type(config.total_steps) is type(options.num_seeds) is int
    assert parsed("--hidden-sizes", "64", "32")[0] == parsed("--hidden-sizes", "64,32")[0]
    assert whole_number("1.5e1") == 15
    assert whole_number("9007199254740993") == 2**53 + 1  # exactly
    for text in ("1.5", "1e-3", "inf", "nan", "1e999999999", "", "0x10", "many"):
        with pytest.raises(ValueError, match="is not a whole number"):
            whole_number(text)


def test_what_is_left_open_is_adapted_and_what_is_given_is_not():
    for algo, env in (("trpo", "CartPole-v1"), ("ppo", "Pendulum-v1")):
        flags = f"--algo {algo} --env {env} --recurrent gru".split()
        for config in (preset(algo, env, recurrent="gru"), parsed(*flags)[0]):
            assert config.num_envs % config.num_minibatches == 0
            assert config.num_minibatches > 1
    assert preset("ppo", "Pendulum-v1", recurrent="gru", num_minibatches=32).num_minibatches == 32
    flags = "--algo ppo --env Pendulum-v1 --recurrent gru --num-minibatches 32".split()
    with pytest.raises(UsageError, match="num_envs = 4 is not divisible by num_minibatches = 32"):
        parsed(*flags)[0].check()
    assert parsed("--env", "Pendulum-v1", "--gamma", "0.9")[0] == preset("ppo", "Pendulum-v1", gamma=0.9)


def test_help_marks_what_a_preset_gives(capsys):
    assert run("--env Pendulum-v1 --help".split()) == 0
    told = " ".join(re.sub("[│\n]", " ", capsys.readouterr().out).split())
    assert "--gamma FLOAT discount (default: 0.97, from the preset, in [0, 1])" in told
    assert "--gae-lambda FLOAT λ of GAE and of the λ-return (default: 0.95, in [0, 1])" in told
    assert "seeds overlap share" in told
    assert run("--env gymnasium/LunarLander-v3 --help".split()) == 0
    told = " ".join(re.sub("[│\n]", " ", capsys.readouterr().out).split())
    assert "anneal the learning rate linearly towards 0 (default: False, from the preset)" in told
    assert "(Ba et al., 2016) --convolutions" in told  # False, as always


def test_a_setting_that_an_older_version_did_not_have_is_as_it_was_then(tmp_path):
    """And not as the preset has it today."""
    before = preset("ppo", "Breakout-MinAtar", activation="tanh")
    write_record(RunRecord(tmp_path, before, [0], {}, "threefry2x32", 1, versions()))
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["settings"]["activation"]
    write_json(tmp_path / "config.json", stored)
    assert parsed("--config", str(tmp_path))[0] == read_record(tmp_path).config == before
    assert preset("ppo", "Breakout-MinAtar").activation == "relu"


def test_flags_win_over_a_file_whose_minibatches_they_change(tmp_path):
    """`minibatch_size` makes `num_minibatches`, and both are in a run's file."""
    options = {"init_from": "runs/first"}
    before = preset("ppo", "CartPole-v1", minibatch_size=64, num_steps=128)
    write_record(RunRecord(tmp_path, before, [0], options, "threefry2x32", 1, versions()))
    (tmp_path / "it.toml").write_text("minibatch_size = 64\nnum_steps = 128\n")
    assert parsed("--config", str(tmp_path), "--env", "CartPole-v1", "--init-from", "")[0] == before
    assert "init_from" in str(with_file(["--config", str(tmp_path)])).replace("-", "_")
    for path in (tmp_path, tmp_path / "it.toml"):
        given = [*("--config", str(path)), *("--env", "CartPole-v1"), *("--init-from", "")]
        assert parsed(*given, "--num-steps", "256")[0].num_minibatches == 16
        assert parsed(*given, "--minibatch-size", "128")[0].num_minibatches == 4
        config, _ = parsed(*given, "--num-minibatches", "2")
        assert (config.num_minibatches, config.minibatch_size) == (2, None)
    content = json.loads((tmp_path / "config.json").read_text())
    write_json(tmp_path / "config.json", content | {"options": None})
    assert "--init-from" not in with_file(["--config", str(tmp_path)])
    (tmp_path / "it.toml").write_text("join = 'runs/it'\n")
    with pytest.raises(UsageError, match="join is for the command line"):
        with_file(["--config", str(tmp_path / "it.toml")])


def test_the_settings_of_a_run_are_those_of_another_or_of_a_file(tmp_path, capsys):
    settings = {"max_kl": 0.02, "hidden_sizes": (8, 4), "layer_norm": True, "max_grad_norm": float("inf")}
    before = preset("trpo", "Pendulum-v1", **settings)
    write_record(RunRecord(tmp_path, before, [7, 8], {}, "threefry2x32", 1, versions()))
    stored = json.loads((tmp_path / "config.json").read_text())
    write_json(tmp_path / "config.json", stored | {"settings": stored["settings"] | {"hidden_sizes": []}})
    assert parsed("--config", str(tmp_path))[0] == before.replace(hidden_sizes=())
    write_json(tmp_path / "config.json", stored)
    config, options = parsed("--config", str(tmp_path), "--gamma", "0.9", "--seed", "3")
    assert config == before.replace(gamma=0.9)
    assert (options.algo, options.env, options.seed, options.num_seeds) == ("trpo", "Pendulum-v1", 3, 8)
    file = tmp_path / "run.toml"
    file.write_text(
        'algo = "trpo"\nnum-envs = 4\ntotal_steps = 1e5\nlayer_norm = false\nhidden_sizes = [8, 4]\nseed = 1\n'
    )
    config, options = parsed("--config", str(file), "--num-envs", "8")
    assert config == preset("trpo", num_envs=8, total_steps=10**5, layer_norm=False, hidden_sizes=(8, 4))
    assert options.seed == 1
    for content, told in (
        ("a = " + "[" * 100_000, "is not TOML"),
        ("[grid]\ngamma = [0.9]", "[grid] is none of its tables"),
        ("lr = 3e-4", "did you mean --learning-rate?"),
        ("resume = 'runs/a'", "resume is for the command line"),
        ("#" * 2**20 + "\nseed = 1", "is larger than 1,048,576 bytes"),
        ("num_envs = 1979-05-27", "must be a number, a text or a list"),
    ):
        file.write_text(content)
        code, error = said(capsys, "run", "--config", str(file))
        assert (code, told in error) == (2, True), error
    for wrong, told in (
        ({"env": "my:Env"}, "which may come from others, may not say what is run; give it again: --env my:Env"),
        ({"activation": "--out=/tmp/x"}, "and no flag"),
        ({"out": "/tmp/x"}, "'out' is not a setting"),
    ):
        write_json(tmp_path / "config.json", stored | {"settings": stored["settings"] | wrong})
        assert told in said(capsys, "run", "--config", str(tmp_path))[1]
    assert "cannot be read" in said(capsys, "run", "--config", "nowhere.toml")[1]


OTHERS = (
    "lr n_envs n_steps total_timesteps num_timesteps ent_coef clip_range n_epochs gae_lam vf_coef discount net_arch "
    "use_sde sde_sample_freq use_rms_prop ortho_init policy_kwargs"
)


@pytest.mark.parametrize("name", OTHERS.split())
def test_other_libraries_names_lead_to_ours(name):
    for make in (lambda **settings: preset("ppo", "CartPole-v1", **settings), Config):
        with pytest.raises(UsageError, match="did you mean") as told:
            make(**{name: 1})
        assert "\n" not in str(told.value)


def test_an_unknown_algorithm_may_be_ones_own():
    with pytest.raises(UsageError, match=r"An algorithm of your own is known by the name .* in purejaxppo\.ALGORITHMS"):
        preset("spo", "CartPole-v1")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: PPO(clip_range=0.2), "'clip_range' is not a setting of PPO; did you mean clip_eps?"),
        (lambda: PPO(learning_rate=1e-3), "'learning_rate' is not a setting of PPO; its own are: clip_eps, dual_clip"),
        (lambda: PPO("MlpPolicy"), "PPO('MlpPolicy'): name each setting, as in PPO(name=…)."),
        (lambda: preset("trpo", clip_eps=0.1), "'clip_eps' is not a setting of trpo; it is one of ppo."),
        (lambda: preset("trpo", target_kl=0.01), "'target_kl' is not a setting of trpo; did you mean max_kl?"),
        (lambda: preset(TRPO()), "is not a name; pass 'trpo', say, or make Config(env=…, algo=TRPO())."),
        (lambda: preset("vpg"), "did you mean reinforce?"),
        (lambda: Config(max_kl=0.2), "did you mean algo=TRPO(max_kl=…)?"),
        (lambda: Config(num_seeds=4), "seeds are no setting: pass run_experiment(config, seeds=8), or vmap"),
        (
            lambda: Config(total_steps=1e5).check(),
            "total_steps = 100000.0 must be a whole number in [1, 1e15]; write 1",
        ),
        (lambda: Config(num_envs=-4.0).check(), "num_envs = -4.0 must be a whole number in [1, 1e9]; the default is"),
        (lambda: make_train({"LR": 1e-3}), "config = {'LR': 0.001} is no Config; pass Config(env=…, algo=TRPO()), or"),
        (lambda: run_experiment("CartPole-v1"), "config = 'CartPole-v1' is no Config; pass Config("),
        (lambda: run_experiment(Config(), jax.random.key(0)), "seeds are whole numbers, not keys; pass 8, or range(8)"),
    ],
)
def test_habits_from_other_libraries_are_answered_in_python_too(call, told):
    with pytest.raises(UsageError, match=re.escape(told)):
        call()


def test_a_setting_that_config_does_not_have_is_told_in_one_line():
    with pytest.raises(
        UsageError, match=re.escape("'clip_eps' is not a setting of Config; did you mean algo=PPO(clip_eps=…)?")
    ):
        Config(clip_eps=0.1)
    with pytest.raises(UsageError, match=r"did you mean gamma\?"):
        Config().replace(gama=0.1)
    for algo, name in ((TRPO(), "max_kl"), (PPO(), "target_kl"), (PPO(), "entropy_coef")):  # of what was given
        with pytest.raises(UsageError, match=re.escape(f"did you mean algo={type(algo).__name__}({name}=…)?")):
            Config(algo=algo, **{name: 0.1})
    with pytest.raises(UsageError, match=re.escape("did you mean algo=TRPO(max_kl=…)?")):
        Config(algo=TRPO(), target_kl=0.1)  # as sb3-contrib calls it


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LunarLander-v3", "gymnasium/LunarLander-v3"),
        ("Hopper-v5", "gymnasium/Hopper-v5 or brax/hopper"),
        ("ant", "brax/ant or gymnasium/Ant-v5"),
        ("brax/ants", "brax/ant"),
        ("Breakout", "Breakout-MinAtar or pgx/minatar-breakout or gymnasium/ALE/Breakout-v5"),
        ("BreakoutNoFrameskip-v4", "Breakout-MinAtar or pgx/minatar-breakout or gymnasium/ALE/Breakout-v5"),
        ("ALE/Pong-v5", "gymnasium/ALE/Pong-v5"),
        ("mujoco/Walker2d-v4", "brax/walker2d or gymnasium/Walker2d-v5"),
        ("gymnasium/LunarLander-v2", "gymnasium/LunarLander-v3"),
        ("CartPole-v0", "CartPole-v1"),
        ("pendulum", "Pendulum-v1"),
        ("jumanji/snake", "jumanji/Snake-v1"),
    ],
)
def test_names_of_environments_lead_to_the_right_suite(name, meant):
    with pytest.raises(UsageError, match=re.escape(f"did you mean {meant}")) as told:
        make_env(name)
    assert "\n" not in str(told.value)


def test_environments_are_listed_by_suite_and_word(capsys):
    assert front(["envs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"  CartPole-v1", "gymnax (26)"} <= {line.partition("   ")[0] for line in lines}
    assert any(line.split() == ["Breakout-MinAtar", "preset:", "ppo"] for line in lines)
    assert not any(name in " ".join(lines) for name in ("GymV21", "-v2 ", "Connector", "brax/swimmer"))
    assert front(["envs", "LUNAR"]) == 0
    assert "gymnasium/LunarLander-v3" in (listed := capsys.readouterr().out)
    assert "CartPole" not in listed
    assert said(capsys, "envs", "zzzz") == (
        2,
        "error: no environment has 'zzzz' in its name; purejaxppo envs lists all.\n",
    )


def test_presets_are_listed_as_flags_that_say_the_same(capsys):
    assert front(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(PRESETS)
    distinct = {(head.split()[1], flags): head for head, flags in zip(lines[::2], lines[1::2], strict=True)}
    for (_, flags), head in distinct.items():
        _, algo, _, env = head.split()[:4]
        assert SOURCES[algo, env] in head
        assert parsed("--algo", algo, "--env", "CartPole-v1", *flags.split())[0].replace(env=env) == preset(algo, env)
    assert front(["presets", "pendulum-v1"]) == 0
    assert capsys.readouterr().out.count("--env Pendulum-v1 ") == 2
    assert said(capsys, "presets", "Foo")[0] == 2


def notebook_class(name):
    """A class that a cell of your_own.ipynb defines, with what the first cell imports."""
    cells = json.loads((ROOT / "notebooks" / "your_own.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    first = "\n".join(sources[:2])  # installs what is missing; imports
    imports = [line for line in first.splitlines() if line.startswith(("import ", "from "))]
    definition = next(source for source in sources if source.startswith(f"class {name}")).partition("\n\n\n")[0]
    namespace = {"__name__": "notebook"}
    exec("\n".join([*imports, definition]), namespace)  # noqa: S102 - our own notebook
    return namespace[name]


def test_an_update_rule_of_ones_own_works_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ALGORITHMS, "spo", notebook_class("SPO"))
    assert run(["--algo", "spo", "--help"]) == 0
    assert "--epsilon FLOAT" in capsys.readouterr().out
    assert "did you mean --epsilon?" in said(capsys, "run", "--algo", "spo", "--epsilom", "1")[1]
    assert "it belongs to --algo spo." in said(capsys, "run", "--epsilon", "0.3")[1]
    config, _ = parsed("--algo", "spo", "--epsilon", "0.3", *TINY)
    config.check()
    assert config.algo.epsilon == 0.3
    jax.eval_shape(make_train(config), jax.random.key(0))
    record = RunRecord(tmp_path, config, [0], {}, "threefry2x32", 1, versions())
    write_record(record)
    assert read_record(tmp_path).config == config


def test_output_takes_every_text_and_survives_whoever_reads_it():
    reading, writing = os.pipe()
    for encoding, shown in (
        ("ascii", "lambda ... - 2 x e ?"),
        ("latin-1", "lambda ... · ² × é ?"),
        ("utf-8", "λ … · ² × é 語"),
    ):
        stream = command._tolerant(open(writing, "w", encoding=encoding, closefd=False))  # noqa: SIM115
        stream.write("λ … · ² × é 語\n")
        stream.flush()
        assert os.read(reading, 1000).decode(encoding) == shown + "\n"
    os.close(reading)
    stream.write("nobody reads this\n" * 10_000)  # EPIPE
    stream.flush()
    os.close(writing)
    assert command._Tolerant.lost == 0
    with command._tolerant(None) as nowhere:
        assert nowhere.write("a closed stdout") > 0
    notebook = io.StringIO()
    assert command._tolerant(notebook) is notebook


@pytest.mark.thorough
def test_a_process_without_unicode_whose_reader_leaves_ends_well():
    """Alone, as it replaces the process's streams: `--help` has Greek letters, and more lines than `head` reads."""
    line = f"{sys.executable} -m purejaxppo run --help | head -3; echo ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=120, env=environment, cwd=ROOT, check=True
    )
    assert (done.stdout.splitlines()[-1], done.stderr) == ("0", "")


def test_a_signal_while_flags_are_parsed_is_told(monkeypatch, capfd):
    """There, `sys.stderr` is a buffer whose text is dropped."""
    codes = []
    monkeypatch.setattr(command.os, "_exit", codes.append)
    with open(os.dup(2), "w") as own, contextlib.redirect_stderr(io.StringIO()):
        monkeypatch.setattr(sys, "__stderr__", own)
        command._terminate(signal.SIGTERM, None)
    monkeypatch.setattr(sys, "__stderr__", None)  # started with it closed: 2 may be any file
    command._terminate(signal.SIGTERM, None)
    assert codes == [143, 143]
    assert capfd.readouterr().err == "stopped: nothing had to be saved\n"


def test_names_and_paths_are_shown_as_they_are(tmp_path, capsys):
    """`[/x]` is no markup, which rich would refuse, and `:x:` no picture."""
    summary = {
        **{"algo": "ppo", "env": "own:Env,level=[/x]", "num_seeds": 1, "seeds": [0], "env_steps": 64, "device": "cpu"},
        **dict.fromkeys((f"{name}_seconds" for name in ("compile", "training", "evaluation", "saving")), 1.0),
        **{"steps_per_second": 1.0, "failed_seeds": []},
        "eval_return": {"mean": 1.0, "iqm": 1.0, "ci_low": 1.0, "ci_high": 1.0, "per_seed": [1.0]},
    }
    progress = ProgressLine(plain_console())
    progress.say("in [red]:x:")
    progress.show(table(summary, Path("[/x]/[red]/:x:")))
    printed = capsys.readouterr().out
    for text in ("in [red]:x:", "ppo on own:Env,level=[/x]", "[/x]/[red]/:x:"):
        assert text in printed


def test_a_platform_that_is_not_there_is_one_line(monkeypatch, capsys, tmp_path):
    def none_there():
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(jax, "devices", none_there)
        code, error = said(capsys, "run", *TINY, "--out", str(tmp_path / "run"))
    assert (code, "JAX_PLATFORMS = 'cpu' cannot be used here" in error, "purejaxppo[cuda]" in error) == (2, True, True)
    with jax.disable_jit():
        code, error = said(capsys, "run", *TINY, "--out", str(tmp_path / "run"))
    assert (code, "JAX_DISABLE_JIT is set" in error) == (2, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # a process each
@pytest.mark.parametrize("platforms", ["cuda", "gpu,cpu", "tpu"])
def test_a_process_on_a_platform_that_is_not_there(platforms):
    done = subprocess.run(
        [sys.executable, "-m", "purejaxppo", "run", *TINY],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
        env=os.environ | {"JAX_PLATFORMS": platforms},
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert repr(platforms) in done.stderr


def test_a_command_called_as_a_function_leaves_the_signals_alone(monkeypatch, capsys):
    """A notebook's kernel must not be ended by Ctrl-C: the command returns its code."""

    def interrupted(*args, **options):
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is terminate
        signal.raise_signal(signal.SIGINT)

    terminate = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("purejaxppo.cli.run.run_experiment", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
    try:
        assert said(capsys, "run", *TINY) == (130, "stopped: nothing had to be saved\n")
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_overview_and_the_version_need_no_jax():
    calls = "front([]), front(['--version']), sys.exit('jax' in sys.modules)"
    code = f"import sys\nfrom purejaxppo.__main__ import front\n{calls}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"purejaxppo {__version__}\n")


def test_a_directory_named_after_an_environment_has_neither_slash_nor_colon():
    names = [RunOptions(env=env).directory() for env in ("gymnasium/a.b:Line-v0", "line:Line", "CartPole-v1")]
    expected = ["gymnasium-a.b-Line-v0", "line-Line", "CartPole-v1"]
    for name, env in zip(names, expected, strict=True):
        assert re.fullmatch(rf"runs/{re.escape(env)}-ppo-\d{{8}}-\d{{6}}-[0-9a-f]{{8}}", name)


def test_jobs_that_begin_in_the_same_second_have_directories_of_their_own(monkeypatch):
    monkeypatch.setattr("time.strftime", lambda form: "20261130-120000")
    assert len({RunOptions().directory() for _ in range(3)}) > 1
    assert RunOptions(out="here").directory() == "here"
