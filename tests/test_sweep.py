"""Sweeps: what is swept, how it is divided, and that each setting gets what it would get alone."""

import csv
import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from PIL import Image
from support import assert_same_bits

from purejaxppo import PPO, TRPO, Config, UsageError, evaluate, make_train, preset
from purejaxppo.cli.flags import with_file
from purejaxppo.cli.run import main as run
from purejaxppo.cli.sweep import SweepOptions, main
from purejaxppo.errors import HostEnvironmentError
from purejaxppo.experiment import loop
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.progress import ProgressLine, plain_console
from purejaxppo.parallel.runs import padded_count
from purejaxppo.policy.load import load
from purejaxppo.presets import with_settings
from purejaxppo.rundir.checkpoint import read as read_checkpoint
from purejaxppo.rundir.summary import EvalReturn
from purejaxppo.sweeps import execution, plan, results_figure
from purejaxppo.sweeps import table as tables
from purejaxppo.sweeps.axes import checked, grid, parse_axis, parse_sampler
from purejaxppo.sweeps.definition import begin_sweep, read_sweep
from purejaxppo.sweeps.results import best_first, command_of
from purejaxppo.sweeps.table import _tidy, sweep

TINY = {"num_envs": 2, "num_steps": 16, "num_epochs": 1, "num_minibatches": 1, "hidden_sizes": (8,)}
CONFIG = Config(env="CartPole-v1", algo=TRPO(), total_steps=3 * 32, **TINY)
QUIET = ProgressLine(plain_console(), quiet=True)
FLAGS = (
    "--algo a2c --env CartPole-v1 --num-seeds 2 --total-steps 96 --num-envs 2 --num-steps 16 --num-epochs 1 "
    "--num-minibatches 1 --hidden-sizes 8 --final-episodes 2 --log-interval 1 --quiet"
).split()


def read(path):
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


def test_axes_take_the_types_of_their_fields():
    assert parse_axis(CONFIG, "max_kl=0.003,1e-2") == ("max_kl", [0.003, 0.01])
    assert parse_axis(CONFIG, "hidden-sizes=64 64,32") == ("hidden_sizes", [(64, 64), (32,)])
    assert parse_axis(CONFIG, "layer_norm=true,false") == ("layer_norm", [True, False])
    assert parse_axis(CONFIG, "activation=tanh,relu") == ("activation", ["tanh", "relu"])
    assert parse_axis(CONFIG, "max_grad_norm=0.5,inf") == ("max_grad_norm", [0.5, np.inf])
    assert parse_axis(CONFIG, "minibatch_size=none,64") == ("minibatch_size", [None, 64])
    assert parse_axis(CONFIG, "critic_hidden_sizes=64 64,32") == ("critic_hidden_sizes", [(64, 64), (32,)])
    assert parse_axis(CONFIG, "hidden_sizes=64x64,,32") == ("hidden_sizes", [(64, 64), (), (32,)])
    assert parse_axis(Config(), "anneal=,clip_eps") == ("anneal", [(), ("clip_eps",)])
    assert parse_axis(CONFIG, "stages=,0 gamma=0.9") == ("stages", [(), ("0 gamma=0.9",)])
    assert parse_sampler(CONFIG, "minibatch_size=randint:8,8")[1](np.random.default_rng(0)) == 8
    settings = grid({"max_kl": [0.01, 0.02], "gamma": [0.9, 0.99, 1.0]})
    assert [tuple(own.values()) for own in settings] == [*itertools.product([0.01, 0.02], [0.9, 0.99, 1.0])]


def test_samples_follow_their_distributions():
    rng, count = np.random.default_rng(0), 4000
    draws = {
        text: np.asarray([parse_sampler(CONFIG, text)[1](rng) for _ in range(count)])
        for text in ("max_kl=loguniform:0.001,0.1", "gamma=uniform:0.9,1.0", "num_epochs=randint:1,4")
    }
    kl, gamma, epochs = draws.values()
    for x, low, high in ((np.log(kl), np.log(0.001), np.log(0.1)), (gamma, 0.9, 1.0)):
        assert low <= x.min()
        assert x.max() <= high
        assert x.mean() == pytest.approx((low + high) / 2, abs=4 * (high - low) / np.sqrt(12 * count))
        assert x.std() == pytest.approx((high - low) / np.sqrt(12), rel=0.05)
    assert np.bincount(epochs)[1:] == pytest.approx(count / 4, rel=0.1)
    assert {parse_sampler(CONFIG, "num_envs=choice:2,8")[1](rng) for _ in range(64)} == {2, 8}
    for kind in ("uniform", "loguniform"):  # near 1, where 4 digits are few values, or none within
        drawn = [parse_sampler(CONFIG, f"gamma={kind}:0.99991,0.99999")[1](rng) for _ in range(100)]
        assert len({*drawn}) > 75
        assert 0.99991 <= min(drawn) < max(drawn) <= 0.99999
    with pytest.warns(UserWarning, match="of 20 draws 3 differ, and each is trained once"):
        assert len(SweepOptions(random=20, sample=("num_epochs=randint:2,4",)).settings(CONFIG, 0)) == 3


def test_a_file_says_the_same_as_flags(tmp_path):
    (tmp_path / "sweep.toml").write_text(
        'algo = "trpo"\nnum_seeds = 4\nrandom = 3\nlayer_norm = true\nhidden_sizes = [8, 8]\n'
        "[grid]\ngamma = [0.98, 0.99]\nhidden_sizes = [[64, 64], [32]]\n[sample]\nmax_kl = 'loguniform:0.001,0.1'\n"
    )
    expected = "--algo trpo --num-seeds 4 --random 3 --layer-norm --hidden-sizes 8 8 --grid gamma=0.98,0.99 --grid"
    expected = [*expected.split(), "hidden_sizes=64 64,32", "--sample", "max_kl=loguniform:0.001,0.1"]
    file = ["--config", str(tmp_path / "sweep.toml"), "--algo", "ppo"]
    assert with_file(file, ("grid", "sample")) == [*expected, *file]
    for axis in (["--grid", "gamma=0.9"], ["--sample=gamma=uniform:0.9,1"]):  # the command line wins
        there = expected.index("gamma=0.98,0.99")
        given = [*file, *axis]
        assert with_file(given, ("grid", "sample")) == [*expected[: there - 1], *expected[there + 1 :], *given]
    without = with_file([*file, "--grid", "max_kl=0.1,0.2"], ("grid", "sample"))
    assert "--random" not in without  # nothing is drawn any more
    options = SweepOptions(grid=("gamma=0.98,0.99",), random=3, sample=("max_kl=loguniform:0.001,0.1",))
    settings = options.settings(CONFIG, seed=5)
    assert settings == options.settings(CONFIG, seed=5)  # drawn with the seed
    assert len(settings) == 6
    assert len({own["max_kl"] for own in settings}) == 3


def test_groups_share_what_is_static():
    settings = grid({"max_kl": [0.01, 0.02], "num_steps": [16, 32], "gamma": [0.9]})
    groups = plan.group_settings(CONFIG, settings)
    assert [(group.name, group.swept, group.members) for group in groups] == [
        ("num_steps=16", ("max_kl",), [0, 2]),
        ("num_steps=32", ("max_kl",), [1, 3]),
    ]


@pytest.mark.parametrize(
    ("free", "compiled", "size"), [(10**9, [64], 64), (1600, [64, 10], 10), (200, [64, 1], 1), (None, [64], 64)]
)
def test_what_does_not_fit_is_done_in_equal_batches(monkeypatch, free, compiled, size):
    monkeypatch.setattr(plan, "available_bytes", lambda devices: free)
    tried = []
    program, count = plan.fit(lambda n: tried.append(n) or n, lambda n: 100 * n, 64, jax.devices())
    assert (tried, program, count) == (compiled, size, size)
    assert next(len(batch) for batch in plan.batches(range(64), count)) == size
    assert sum(map(len, plan.batches(range(64), count))) == 64


def test_one_setting_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(plan, "available_bytes", lambda devices: 10)
    monkeypatch.setattr("purejaxppo.parallel.devices.available_bytes", lambda devices: 10)
    with pytest.raises(UsageError, match="lower --num-seeds"):
        plan.fit(lambda n: n, lambda n: 100 * n, 64, jax.devices())


@pytest.mark.parametrize(
    ("runs", "devices", "together"), [(512, 2, 16), (7, 2, None), (35, 2, 16), (33, 1, 16), (1, 1, 16)]
)
def test_runs_are_shared_out_equally(runs, devices, together):
    total = padded_count(runs, devices, together)
    each = total // devices
    lots = -(-each // (together or each))
    assert total >= runs
    assert total % devices == each % lots == 0
    assert total - runs < devices * (lots + 1)


@pytest.mark.slow
@pytest.mark.parametrize("algo", [TRPO(), PPO()], ids=["trpo", "ppo"])
def test_each_setting_gets_what_its_lone_run_gives(algo):
    """After the first update, to 1e-5; all of the sweep's numbers at once, in the order of the axes."""
    name, values = ("max_kl", [0.003, 0.03]) if isinstance(algo, TRPO) else ("clip_eps", [0.1, 0.3])
    config = CONFIG.replace(algo=algo, total_steps=32, num_epochs=2)
    keys = jax.random.split(jax.random.key(0), 3)
    table = sweep(config, {name: values, "gamma": [0.9, 0.99], "learning_rate": [1e-3]}, keys)
    assert {len(column) for column in table.values()} == {2 * 2 * 3}
    assert table["seed"].tolist() == [0, 1, 2] * 4
    assert table["env_steps"].tolist() == [32] * 12
    for i, (value, gamma) in enumerate(itertools.product(values, [0.9, 0.99])):
        assert (table[name][3 * i], table["gamma"][3 * i]) == (value, gamma)
    own = with_settings(config, {name: values[1], "gamma": 0.99, "learning_rate": 1e-3})
    _, metrics = jax.jit(make_train(own))(keys[2])
    for metric, x in metrics.items():
        np.testing.assert_allclose(table[metric][-1], x[0], rtol=1e-5, atol=1e-6, err_msg=metric)


@pytest.fixture
def compiled_once(monkeypatch):
    """Each group's program is compiled once, though several sweeps have it; learning curves are not drawn."""
    programs, compile_program = {}, execution.compile_program

    def compile_once(runs):
        if runs.config.hidden_sizes not in programs:
            programs[runs.config.hidden_sizes] = compile_program(runs)
        return programs[runs.config.hidden_sizes]

    monkeypatch.setattr(execution, "compile_program", compile_once)
    monkeypatch.setattr("purejaxppo.experiment.run_batch.learning_curve", lambda *figure: None)


def test_a_small_group_leaves_the_devices_to_the_others(tmp_path):
    settings = [{"hidden_sizes": (size,), "gamma": gamma} for size, gamma in ((8, 0.9), (8, 0.99), (4, 0.9))]
    _, devices = begin_sweep(Config(), settings, [0], tmp_path, jax.devices()[:2], HostOptions())
    assert len(devices) == 2


def test_the_command_and_its_resumption(tmp_path, monkeypatch, capsys, compiled_once):
    """Two groups; the second is interrupted, and only it goes on: to the same bits, in all files."""
    axes = "--grid gamma=0.9,0.99 --grid hidden_sizes=8,4".split()
    assert main([*FLAGS, *axes, "--out", str(tmp_path / "whole")]) == 0
    names = [f"gamma={gamma},hidden_sizes={size}" for gamma in (0.9, 0.99) for size in (8, 4)]
    whole = read(tmp_path / "whole" / "results.csv")
    assert [row["directory"] for row in whole] == names
    assert (tmp_path / "whole" / "results.png").stat().st_size > 10_000
    for name in names:
        summary = json.loads((tmp_path / "whole" / name / "summary.json").read_text())
        assert summary["seeds"] == [0, 1]
        assert [int(row["update"]) for row in read(tmp_path / "whole" / name / "metrics.csv")] == [1, 1, 2, 2, 3, 3]
    curves = [(tmp_path / "whole" / name / "metrics.csv").read_text() for name in names]
    assert len({*curves}) == 4
    assert load(tmp_path / "whole" / names[3], seed=1).config.gamma == 0.99

    train, save, groups = loop.Loop.run, loop.Loop.save, []

    def killed_in_the_second_group(self):
        save(self)
        if len(groups) == 2:
            raise KeyboardInterrupt

    def count(self, *arguments):
        groups.append(self.runs.directory)
        return train(self, *arguments)

    monkeypatch.setattr(loop.Loop, "run", count)
    monkeypatch.setattr(loop.Loop, "save", killed_in_the_second_group)
    part = tmp_path / "part"
    assert main([*FLAGS, *axes, "--checkpoint-interval", "1", "--out", str(part)]) == 130
    assert sorted(path.parent.name for path in part.glob("*/summary.json")) == sorted(names[0::2])
    monkeypatch.setattr(loop.Loop, "save", save)
    groups.clear()
    capsys.readouterr()
    assert main(["--resume", str(part)]) == 0
    assert len(groups) == 1
    printed = capsys.readouterr().out
    for told in (
        "going on from update 1 of 3",
        "100% · 384 steps of all 4 runs",
        "finished",
        "purejaxppo run --algo a2c",
    ):
        assert told in printed
    assert (part / "results.csv").read_text() == (tmp_path / "whole" / "results.csv").read_text()
    for name in names:
        assert (part / name / "metrics.csv").read_text() == (tmp_path / "whole" / name / "metrics.csv").read_text()
        arrays, expected = (
            read_checkpoint(out / name / "checkpoints" / "96").arrays for out in (part, tmp_path / "whole")
        )
        assert arrays.keys() == expected.keys()
        assert all(arrays[path].tobytes() == expected[path].tobytes() for path in arrays)
        share = read_checkpoint(part / name / "checkpoints" / "96").about[
            "seconds"
        ]  # of the group's, as in the summary
        summary = json.loads((part / name / "summary.json").read_text())
        assert share["run"] <= summary["run_seconds"]
        assert share["compile"] == pytest.approx(summary["compile_seconds"])
    assert not (part / ".unfinished").exists()
    groups.clear()
    assert main(["--resume", str(part), "--quiet"]) == 0
    assert groups == []  # nothing is left to do

    one = part / names[0]  # a run like any other, which can be made longer by itself
    assert run(["--resume", str(one), "--total-steps", "128", "--quiet"]) == 0
    assert json.loads((one / "summary.json").read_text())["env_steps"] == 128


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ([{"gama": 0.1}], "did you mean gamma?"),
        ([{"gamma": 2.0}], "gamma = 2.0"),
        ([{"gamma": 10**400}], "larger than can be"),
        ([{"env": "canary:Env"}], "env is the same for a whole sweep"),
        ([{"__class__": 1}], "'__class__' is no setting of"),
        ([{"action_repeat": 2**30}], "action_repeat = 1073741824"),
        ([], "a sweep needs an axis"),
        ("all", "is not what a run leaves"),
        ([["gamma"]], "is not what a run leaves"),
        ([{"gamma": 0.9}, {"max_kl": 0.1}], "have the same fields"),
        ([{"gamma": {"a": 1}}], "gamma = {'a': 1}"),
        ([{"hidden_sizes": [2**30, 2**30]}], "hidden_sizes"),
    ],
)
def test_nothing_in_a_sweeps_file_is_believed(tmp_path, monkeypatch, capsys, sweep, message):
    monkeypatch.setattr(loop, "compile_program", None)
    begun, _ = begin_sweep(CONFIG, [{"gamma": 0.9}], [0, 1], tmp_path / "it", jax.devices(), HostOptions())
    (tmp_path / "it").mkdir()
    begun.write()
    path = tmp_path / "it" / "sweep.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sweep": sweep}))
    assert main(["--resume", str(tmp_path / "it")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.thorough
def test_a_setting_that_fails_ends_no_other_and_is_tried_again(tmp_path, monkeypatch, capsys):
    """Three settings of one program: they fail together, and then one alone."""
    out, train = tmp_path / "it", execution.Loop.run

    def run_or_fail(self, *arguments):
        if any(record.config.gamma == 0.5 for record in self.runs.records):
            raise HostEnvironmentError("the spring is broken")
        return train(self, *arguments)

    monkeypatch.setattr(execution.Loop, "run", run_or_fail)
    assert main([*FLAGS, "--grid", "gamma=0.9,0.5,0.99", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "1 of 3 settings have failed, gamma=0.5 first (the spring is broken); purejaxppo sweep --resume" in error
    rows = read(out / "results.csv")
    assert [row["iqm"] == "" for row in rows] == [False, True, False]
    assert [row["failed_seeds"] for row in rows] == ["0", "2", "0"]
    assert not (out / "gamma=0.5" / "summary.json").exists()
    assert (out / "results.png").exists()
    again = [*FLAGS, "--grid", "gamma=0.9,0.5,0.99", "--out", str(out), "--resume-or-start"]
    again_trained = []

    def noted(self, *arguments):
        again_trained.extend(record.directory.name for record in self.runs.records)
        return train(self, *arguments)

    monkeypatch.setattr(execution.Loop, "run", noted)
    assert main([*again, "--gamma", "0.8"]) == 2
    assert "holds a run with gamma = 0.99, not 0.8" in capsys.readouterr().err
    assert main(again) == 0
    assert again_trained == ["gamma=0.5"]  # what is finished, never again
    after = read(out / "results.csv")
    assert [after[0], after[2]] == [rows[0], rows[2]]
    assert after[1]["iqm"] != ""


def test_what_failed_keeps_its_checkpoint_and_is_not_joined_again(tmp_path, monkeypatch):
    settings = [{"gamma": 0.9}, {"gamma": 0.5}]
    begun, devices = begin_sweep(CONFIG, settings, [0, 1], tmp_path / "it", jax.devices(), HostOptions())
    (tmp_path / "it").mkdir()
    trained = []

    def run_or_fail(self, snapshot, program):
        trained.append([record.directory.name for record in self.runs.records])
        (self.runs.directory / "checkpoints" / "32").mkdir(parents=True, exist_ok=True)
        if "gamma=0.5" in trained[-1]:
            raise HostEnvironmentError("the spring is broken")
        (self.runs.records[0].directory / "summary.json").touch()

    monkeypatch.setattr(execution.Loop, "run", run_or_fail)
    monkeypatch.setattr(execution.RunBatch, "newest_checkpoint", lambda *_: None)
    monkeypatch.setattr(execution, "summaries_of", lambda *_: [])
    for _ in range(2):
        _, failed = execution.run_sweep(begun, unplanned(begun, devices, None), devices, QUIET)
        assert {*failed} == {1}
        assert begun.batch_directory([1]).joinpath("checkpoints", "32").exists()
        assert not begun.batch_directory([0]).exists()
    assert trained == [["gamma=0.9", "gamma=0.5"], ["gamma=0.9"], ["gamma=0.5"], ["gamma=0.5"]]


def test_each_is_told_its_own_way_to_go_on(tmp_path):
    begun, devices = begin_sweep(CONFIG, [{"gamma": 0.9}], [0, 1], tmp_path / "it", jax.devices(), HostOptions())
    study, out = dataclasses.replace(begun, called=("best",)), begun.record.directory

    def told(of, claimed):
        return execution._batch(of, of.groups[0], [0], 1, devices, claimed).resume_command

    assert told(begun, out) == f"purejaxppo sweep --resume {out}"
    assert told(begun, out / ".unfinished" / "0123") == f"purejaxppo sweep --join {out}"  # a worker
    assert told(study, out) == f"purejaxppo tune --resume {out}"


def test_what_failed_by_itself_from_the_first_goes_on_together(tmp_path, monkeypatch):
    """A server that is down for a day, say: the checkpoint that they have together is still there, and is used."""
    settings = [{"gamma": 0.9}, {"gamma": 0.5}]
    begun, devices = begin_sweep(CONFIG, settings, [0, 1], tmp_path / "it", jax.devices(), HostOptions())
    (tmp_path / "it").mkdir()
    together = begun.batch_directory([0, 1]) / "checkpoints" / "32"
    together.mkdir(parents=True)
    trained = []

    def fail(self, *_):
        trained.append(len(self.runs.records))
        raise HostEnvironmentError("the server is down")

    monkeypatch.setattr(execution.Loop, "run", fail)
    monkeypatch.setattr(execution.RunBatch, "newest_checkpoint", lambda *_: None)
    for _ in range(2):
        with pytest.raises(HostEnvironmentError):
            execution.run_sweep(begun, unplanned(begun, devices, None), devices, QUIET)
        assert together.exists()
    assert trained == [2, 1, 1, 2, 1, 1]


def test_settings_that_had_failed_together_go_on_apart(tmp_path, monkeypatch):
    settings = [{"gamma": 0.9}, {"gamma": 0.95}, {"gamma": 0.5}]
    begun, devices = begin_sweep(CONFIG, settings, [0, 1], tmp_path / "it", jax.devices(), HostOptions())
    (tmp_path / "it").mkdir()
    trained = []
    begun.batch_directory([1]).joinpath("checkpoints", "32").mkdir(parents=True)  # it was stopped then
    monkeypatch.setattr(execution.RunBatch, "newest_checkpoint", lambda *_: None)
    monkeypatch.setattr(execution, "summaries_of", lambda *_: [])
    monkeypatch.setattr(
        execution.Loop, "run", lambda self, *_: trained.append([record.directory.name for record in self.runs.records])
    )
    execution.run_sweep(begun, unplanned(begun, devices, None), devices, QUIET)
    assert trained == [["gamma=0.9"], ["gamma=0.95"], ["gamma=0.5"]]


def test_a_figure_of_many_settings_has_a_page_s_size(tmp_path):
    final = EvalReturn(mean=1.0, iqm=1.0, ci_low=0.5, ci_high=1.5, per_seed=[1.0, 1.0])
    settings = [{"num_epochs": y, "learning_rate": (x + 1) * 1e-5} for x in range(200) for y in (2, 4)]
    results_figure.draw(tmp_path / "x.png", "many", settings, [{"eval_return": final}] * 400)
    with Image.open(tmp_path / "x.png") as picture:
        assert max(picture.size) < 3000


def test_batches_are_the_same_when_a_sweep_goes_on_with_more_memory(tmp_path, monkeypatch):
    settings = [{"gamma": x, "num_steps": y} for x in (0.9, 0.95, 0.99) for y in (16, 32)]
    begun, devices = begin_sweep(CONFIG, settings, [0, 1], tmp_path / "it", jax.devices(), HostOptions())
    (tmp_path / "it").mkdir()
    begun.write()
    steps = [step._replace(at_once=size) for step, size in zip(unplanned(begun, 0, 0), (2, 3), strict=True)]
    execution.keep_sizes(begun, steps)
    again, _ = read_sweep(tmp_path / "it", QUIET)
    assert again.sizes == (2, 3)
    asked = []
    monkeypatch.setattr(execution, "fit", lambda *given: (asked.append(given[-1]), (None, given[-1]))[1])
    execution.plan_sweep(again, devices, QUIET)
    assert asked == [2, 3]
    path = tmp_path / "it" / "sweep.json"
    for sizes in ([0, 3], [2], "all"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sizes": sizes}))
        with pytest.raises(UsageError, match="sizes = "):
            read_sweep(tmp_path / "it", QUIET)


def test_where_all_settings_fail_the_sweep_does(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise HostEnvironmentError("the spring is broken")

    monkeypatch.setattr(execution.Loop, "run", fail)
    monkeypatch.setattr(execution, "plan_sweep", None)
    monkeypatch.setattr("purejaxppo.cli.sweep.plan_sweep", unplanned)
    assert main([*FLAGS, "--grid", "gamma=0.9,0.5", "--out", str(tmp_path / "it")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: the spring is broken"


def unplanned(swept, devices, progress):
    """Steps with a program that nobody calls."""
    about = execution.Program([], 0.0, 0, None, None, None, None, [])
    return [execution.Step(group, about, len(group.members)) for group in swept.groups]


def test_a_sweep_that_cannot_begin_leaves_nothing(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise UsageError("it does not fit")

    monkeypatch.setattr("purejaxppo.sweeps.execution.compile_program", refuse)
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        assert main([*FLAGS, "--grid", "gamma=0.9,0.99", "--out", str(tmp_path / name)]) == 2
        assert capsys.readouterr().err == "error: it does not fit\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


BAD = {
    "--grid max_kI=0.01,0.02": ["max_kI", "did you mean max_kl?"],
    "--algo ppo --grid max_klx=0.1": ["max_kl belongs to --algo npg or trpo"],
    "--grid max_kl=": ["grid max_kl is empty"],
    "--grid max_kl": ["must be field=value"],
    "--grid max_kl=0.01,zero": ["'zero'", "a number"],
    "--grid max_kl=0.01,-1": ["max_kl = -1.0", "(0, inf)"],
    "--grid max_kl=0.01,0.01": ["max_kl=0.01 is there twice"],
    "--grid num_envs=1.5,2": ["'1.5'", "a whole number"],
    "--grid max_kl=0.01,": ["max_kl = '' must be a number"],
    "--grid env=CartPole-v1,Acrobot-v1": ["env is the same for a whole sweep", "make one sweep of each"],
    "--grid seed=0,1": ["seed is the same for a whole sweep", "pass --seed and --num-seeds"],
    "--grid hidden_sizes=64,64": ["hidden_sizes=64 is there twice", "joined by x: hidden_sizes=64x64,32"],
    "--random 4 --sample num_envs=uniform:1,8": ["num_envs is static", "randint"],
    "--random 4 --sample max_kl=loguniform:0,1": ["0 < low"],
    "--random 4 --sample max_kl=uniform:-1e308,1e308": ["low ≤ high, within ±1e+18"],
    "--random 4 --sample max_kl=uniform:0,nan": ["low ≤ high, within ±1e+18"],
    "--random 4 --sample minibatch_size=randint:none,8": ["low ≤ high, within ±1e+18"],
    "--random 4 --sample num_envs=randint:0,1e30": ["low ≤ high, within ±1e+18"],
    "--random 4 --sample max_kl=normal:0,1": ["one of: uniform, loguniform"],
    "--random 4 --grid max_kl=0.01,0.02": ["random = 4 with 0 --sample"],
    "--sample max_kl=uniform:0.1,0.2": ["random = 0 with 1 --sample"],
    "--grid gamma=0.9,0.99 --random 2 --sample gamma=uniform:0.9,1": ["gamma is swept twice"],
    "--algo ppo --minibatch-size 64 --grid num_minibatches=2,4": [
        "num_minibatches=2 would do nothing",
        "leave out one",
    ],
    "": ["a sweep needs an axis"],
    "--grid max_kl=0.01,0.02 --mesh run=3": ["mesh = 'run=3' takes 3 devices, and there are 2"],
    "--grid max_kl=0.01 --num-seeds 3 --mesh run=2": ["run = 2 must divide 3 runs"],
    "--grid num_envs=2,3 --mesh env=2": ["env = 2 must divide num_envs = 3"],
    "--grid max_kl=0.01,0.02 --mesh rows=2": ["mesh = 'rows=2' must be run=N,env=M,net=2"],
    "--grid max_kl=0.01,0.02 --devices 64": ["devices = 64 must be within 1 … 2"],
    "--grid max_kl=0.01,0.02 --max-kI 3": ["--max-kI", "did you mean --max-kl?"],
    "--grid gamma=0.9,0.95,0.99,1 --random 60000 --sample max_kl=loguniform:1e-6,0.1": [
        "settings and may have 100,000"
    ],
    "--grid max_kl=0.01,0.02 --config nowhere.toml": ["nowhere.toml", "cannot be read"],
    "--resume nowhere": ["nowhere", "is this a run directory?"],
    "--resume nowhere --total-steps 9": [
        "--total-steps cannot be changed on --resume of a sweep; what can: --debug, --devices, --distributed, --env,"
    ],
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_input_is_one_line_and_exit_code_2_before_compilation(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "compile_program", None)
    assert main(["--algo", "trpo", *flags.split()] if "--resume" not in flags else flags.split()) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    for part in BAD[flags]:
        assert part in printed.err
    assert list(tmp_path.iterdir()) == []


def test_an_axis_keeps_its_values_where_a_metric_has_its_name():
    metrics = {"alive": np.ones((1, 2)), "learning_rate": np.array([[3e-4, 1.5e-4]])}
    table = _tidy(CONFIG, {"learning_rate": 3e-4}, metrics)
    assert table["learning_rate"].tolist() == [3e-4, 3e-4]
    assert table["learning_rate_of_update"].tolist() == [3e-4, 1.5e-4]


@pytest.mark.thorough
def test_each_setting_is_evaluated_as_it_was_trained(tmp_path):
    """`observation_clip` is part of the policy; and `desired_kl` of the state, so that it has one shape for all."""
    out = tmp_path / "it"
    flags = ["--normalize-observations", "--grid", "observation_clip=inf,1e-6", "--grid", "desired_kl=inf,0.01"]
    assert main([*FLAGS, *flags, "--final-episodes", "8", "--out", str(out), "--devices", "1"]) == 0
    for path in sorted(out.glob("*/summary.json")):
        trained = load(path.parent, 0)
        alone = evaluate(trained.config, trained.state, trained.state.key, 8).returns.mean()
        assert json.loads(path.read_text())["eval_return"]["per_seed"][0] == pytest.approx(alone)


def test_what_several_values_decide_has_one_shape(tmp_path):
    settings = [{"desired_kl": x} for x in (np.inf, 0.01)]
    config = Config(env="CartPole-v1", algo=PPO(), total_steps=64, **TINY)
    swept, devices = begin_sweep(config, settings, [0], tmp_path, jax.devices()[:1], HostOptions())
    runs = execution._batch(swept, swept.groups[0], [0, 1], 2, devices)
    assert runs.state_shapes.step_factor.shape == (2,)


def test_the_best_comes_first_and_of_equals_the_first():
    """And those last of which most seeds have failed: their frozen policies may have been good by chance."""
    scored = ((500.0, 0), (500.0, 0), (10.0, 1), (np.nan, 0), (700.0, 1), (900.0, 2))
    summaries = [{"eval_return": {"iqm": x}, "num_seeds": 2, "failed_seeds": [{}] * n} for x, n in scored]
    assert best_first(summaries) == [4, 0, 1, 2, 5, 3]


def test_stages_are_one_value_of_an_axis():
    staged = [("0 gamma=0.9",), ("0 gamma=0.95",)]
    assert parse_axis(CONFIG, "stages=0 gamma=0.9,0 gamma=0.95") == ("stages", staged)


def test_what_a_sweep_began_with_is_in_the_command_of_its_best(tmp_path):
    settings = [{"gamma": 0.9}, {"gamma": 0.95}]
    swept, _ = begin_sweep(CONFIG, settings, [0], tmp_path, jax.devices()[:1], HostOptions())
    assert "--init-from" not in command_of(swept, 1)
    record = swept.record._replace(options=swept.record.options | {"init_from": "runs/first"})
    command = command_of(dataclasses.replace(swept, record=record), 1)
    assert "--gamma 0.95" in command
    assert "--init-from runs/first --num-seeds 1" in command


def test_minibatches_that_are_left_open_are_those_of_a_lone_run():
    for given, settings in (
        ({"recurrent": "gru", "num_envs": 1}, [{"num_envs": 1}, {"num_envs": 4}, {"num_envs": 6}]),
        ({"num_envs": 6}, [{"recurrent": "none"}, {"recurrent": "gru"}]),
        ({"num_envs": 2, "recurrent": "gru"}, [{"recurrent": "none"}, {"num_envs": 8, "gamma": 0.9}]),
    ):
        base = preset("ppo", "CartPole-v1", **given)
        assert checked(base, settings) == [preset("ppo", "CartPole-v1", **(given | own)) for own in settings]
    fixed = preset("ppo", "CartPole-v1", num_envs=6, num_minibatches=3)
    assert [x.num_minibatches for x in checked(fixed, [{"recurrent": "none"}, {"recurrent": "gru"}])] == [3, 3]


def test_bad_axes_in_python():
    keys = jax.random.split(jax.random.key(0), 2)
    for axes, message in (
        ({"num_envs": jax.numpy.asarray([2, 4])}, "num_envs is static and cannot be an array"),
        ({"max_kI": [0.1]}, "did you mean max_kl"),
        ({"max_kl": []}, "grid max_kl is empty"),
        ({"max_kl": ["a"]}, "must be a list of numbers"),
        ({"num_steps": 64}, "num_steps = 64 must be a list of values"),
        ({"critic_hidden_sizes": [64]}, "critic_hidden_sizes = 64 must be a tuple"),
        ({}, "needs an axis"),
        ({"gamma": [0.9, 0.99]}, "gamma=0.9 would do nothing: stages set gamma from step 0"),
    ):
        with pytest.raises(UsageError, match=message):
            sweep(CONFIG.replace(stages=("0 gamma=0.95",)), axes, keys)
    for wrong, message in (
        ([], "must have"),
        (keys[0], "must have"),
        (3, "must have"),
        ([0, 1], "is not one PRNG key"),
    ):
        with pytest.raises(UsageError, match=message):
            sweep(CONFIG, {"gamma": [0.9]}, wrong)


def test_keys_may_be_a_list_or_words(monkeypatch):
    given, keys = [], jax.random.split(jax.random.key(0), 2)
    monkeypatch.setattr(tables, "_train", lambda config, group, settings, keys: given.append(keys) or iter(()))
    for same in (keys, [*keys], jax.random.key_data(keys)):
        sweep(CONFIG, {"gamma": [0.9]}, same)
    assert len(given) == 3
    for same in given:
        assert_same_bits(same, keys)
