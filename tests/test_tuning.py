"""Studies: what is searched, which trials go on, what they cost, and that stopped ones end as undisturbed ones do."""

import contextlib
import csv
import io
import itertools
import json
import math
import shutil
import sqlite3
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from rich.console import Console
from support import by_cost
from test_run import RewardTurnsNaN

from purejaxppo import A2C, PPO, Config, PPOPenalty, UsageError, init, make_train, tune, update_step
from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.cli.flags import with_file
from purejaxppo.cli.run import main as run
from purejaxppo.cli.settings import NoOptions, parse_settings
from purejaxppo.cli.tune import main
from purejaxppo.experiment import program
from purejaxppo.experiment.experiment import start_record
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.progress import ProgressLine, plain_console
from purejaxppo.experiment.signals import Signals
from purejaxppo.fields import number
from purejaxppo.presets import preset, settings_of
from purejaxppo.rundir import checkpoint
from purejaxppo.rundir.files import read_toml
from purejaxppo.rundir.snapshot import flatten
from purejaxppo.sweeps import execution
from purejaxppo.train import staged
from purejaxppo.tuning import study_results
from purejaxppo.tuning import trainer as trainer_module
from purejaxppo.tuning.final import judge
from purejaxppo.tuning.journal import Journal
from purejaxppo.tuning.population import Population, exploit_and_explore, inherited, scheduled
from purejaxppo.tuning.rungs import Rungs
from purejaxppo.tuning.search import FAILED, FINISHED, RUNNING, STOPPED, Search
from purejaxppo.tuning.space import as_toml, combinations, default_space, parse_space
from purejaxppo.tuning.study import read_study
from purejaxppo.tuning.study_file import StudyFile
from purejaxppo.tuning.study_options import StudyOptions
from purejaxppo.tuning.trainer import Trainer

TINY = {"num_envs": 2, "num_steps": 8, "hidden_sizes": (8,), "eval_episodes": 2, "eval_max_steps": 20}
CONFIG = Config(env="CartPole-v1", algo=A2C(), total_steps=128, num_epochs=1, num_minibatches=1, **TINY)
SPACE = {"learning_rate": {"low": 1e-4, "high": 1e-1, "scale": "log"}, "gamma": {"low": 0.9, "high": 1.0}}
STUDY = {"trials": 6, "seeds_per_trial": 2, "rungs": 3, "halving_factor": 2, "places": 4}
FINAL = {"seeds": 2, "options": {"final_episodes": 2, "checkpoint_interval": 10**6}}
FLAGS = (
    "--algo a2c --env CartPole-v1 --total-steps 128 --num-envs 2 --num-steps 8 --hidden-sizes 8 --trials 4 "
    "--seeds-per-trial 2 --rungs 2 --budget 1e5"
).split()


def quiet():
    return ProgressLine(plain_console(), quiet=True)


def searched(objective, space=SPACE, config=CONFIG, lot_size=2, entries=None, **options):
    """A search whose scores are an objective of the settings and of the rung; every evaluation takes 10 steps."""
    options = StudyOptions(**{"budget": 10**6, **STUDY, **options})
    parsed = parse_space(config, space)
    kind = Population if options.method == "pbt" else Search
    search = kind(config, parsed, options, options.ladder(config, parsed, 0), lot_size, seed=0)
    lots = []
    while lot := search.next_lot():
        assert len(lot.trials) <= lot_size
        assert sum(trial.status == RUNNING for trial in search.trials) <= options.places or kind is Population
        scores = np.array([objective(trial.settings, lot.rung) for trial in lot.trials])
        search.tell(lot, scores, np.full(len(lot.trials), 10))
        lots.append((lot.rung, [trial.number for trial in lot.trials], [trial.static for trial in lot.trials]))
    return search, lots


def by_rate(settings, rung):
    return -abs(math.log(settings["learning_rate"] / 1e-2)) + rung


def test_rungs_divide_a_trial_geometrically_or_evenly():
    assert Rungs.of("halving", 4, 3, 27_000, 100).steps == (1000, 3000, 9000, 27_000)
    assert Rungs.of("median", 4, 3, 400, 100).steps == (100, 200, 300, 400)
    assert Rungs.of("none", 4, 3, 400, 100).steps == (400,)
    rungs = Rungs.of("halving", 2, 3, 300, 60)
    assert [rungs.updates(k, 60) for k in (0, 1, 2)] == [0, 2, 5]  # whole updates, upwards
    with pytest.raises(UsageError, match=r"first would be at 37 of 300 steps, and an update has 60"):
        Rungs.of("halving", 2, 8, 300, 60)


@pytest.mark.parametrize(
    ("pruner", "scores", "kept"),
    [
        ("halving", [5, 1, 4, 2, 3, 0], [0, 2]),
        ("halving", [1, 2], [1]),  # the best always goes on
        ("halving", [math.nan, 2, 1, math.nan], [1]),
        ("halving", [1, 1, 1, 1, 1, 1], [0, 1]),  # of equals the earlier
        ("median", [1, 2, 3, 4], [2, 3]),
        ("median", [3], [0]),
    ],
)
def test_who_leaves_a_rung(pruner, scores, kept):
    rungs = Rungs.of(pruner, 2, 3, 300, 10)
    assert [i for i in range(len(scores)) if rungs.goes_on(i, dict(enumerate(scores)))] == kept


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_has_a_space_of_numbers_within_what_its_settings_may_be(algo, tmp_path):
    config = preset(algo, "CartPole-v1")
    space = parse_space(config, default_space(config))
    assert combinations(config, space) == [{}]  # one program
    path = tmp_path / "space.toml"
    path.write_text(as_toml(space, {"gamma": "a source"}))
    assert parse_space(config, read_toml(path)) == space


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "has no setting"),
        ({"learning_rat": {"low": 1, "high": 2}}, "did you mean learning_rate"),
        ({"max_kl": {"low": 0.1, "high": 0.2}}, "belongs to --algo"),
        ({"num_steps": {"low": 8, "high": 16}}, r"num_steps is static.*choices = \[8, …\]"),
        ({"gamma": {"low": 0.9, "high": 1.5}}, r"gamma = 1.5 must be a number in \[0, 1\]"),
        ({"gamma": {"low": 0.99, "high": 0.9}}, "must have low < high"),
        ({"gamma": {"low": 0.9, "high": 1.0, "scale": "one-minus-log"}}, "low < high < 1"),
        ({"entropy_coef": {"low": 0.0, "high": 1.0, "scale": "log"}}, "0 < low < high"),
        ({"gamma": {"low": 0.9, "high": 0.99, "scale": "logarithmic"}}, "not one of: linear, log"),
        ({"gamma": {"low": 0.9, "hihg": 0.99}}, "must have low and high"),
        ({"gamma": 0.9}, "must have low and high"),
        ({"gamma": {"low": "a", "high": 0.99}}, "must be a number"),
        ({"max_grad_norm": {"low": 0.5, "high": math.inf}}, "is no end of a range"),
        ({"gamma": []}, "must be a list of values"),
        ({"gamma": [0.9, 0.9]}, "has a value twice"),
        ({"activation": ["tanh", "reluu"]}, "not one of"),
        ({"num_minibatches": [1, 7]}, "with num_minibatches=7: num_envs × num_steps = 16 is not divisible"),
        ({"total_steps": [100, 200]}, "measures a trial"),
        ({"env": ["CartPole-v1"]}, "is the same for a whole sweep or study"),
        ({"num_steps": [*range(1, 20)], "num_envs": [1, 2, 3, 4]}, "combine to 76 programs"),
    ],
)
def test_a_space_that_cannot_be_is_refused(space, message):
    with pytest.raises(UsageError, match=message) as error:
        parse_space(CONFIG, space)
    assert "\n" not in str(error.value)


def test_drawn_values_become_settings_that_can_be_written_down():
    space = parse_space(
        CONFIG, {"gamma": {"low": 0.95, "high": 0.9999, "scale": "one-minus-log"}, "hidden_sizes": [[8], [8, 8]]}
    )
    gamma, sizes = space["gamma"], space["hidden_sizes"]
    assert gamma.parameter("gamma") == "one_minus_gamma"
    assert gamma.bounds == pytest.approx((0.0001, 0.05))
    assert gamma.setting(0.00123456) == 0.998765
    assert gamma.setting(gamma.bounds[0]) == 0.9999
    assert sizes.setting("8x8") == (8, 8)
    assert (gamma.drawn(0.99), sizes.drawn((8,))) == (pytest.approx(0.01), "8")


def test_halving_gives_the_places_of_those_that_stop_to_new_trials():
    search, lots = searched(by_rate, trials=16)
    assert [trial.status for trial in search.trials].count(STOPPED) > 8
    assert len(search.trials) == 16
    assert lots[:4] == [(0, [0, 1], ["[]"] * 2), (0, [2, 3], ["[]"] * 2), *lots[2:4]]
    assert any(rung == 0 and min(numbers) >= 4 for rung, numbers, _ in lots[2:])
    finished = [trial for trial in search.trials if trial.status == FINISHED]
    assert search.best in finished
    assert search.best.score == max(trial.score for trial in finished)
    top = [trial.number for trial in sorted(search.trials[:4], key=lambda x: -x.scores[0])[:2]]
    assert sorted(i for rung, numbers, _ in lots[2:4] if rung == 1 for i in numbers) == sorted(top)


def test_trials_and_the_study_say_the_same():
    search, _ = searched(by_rate, trials=12)
    for trial, theirs in zip(search.trials, search.study.get_trials(), strict=True):
        assert theirs.state.name == {FINISHED: "COMPLETE", STOPPED: "PRUNED"}[trial.status]
        assert [*theirs.intermediate_values.values()] == trial.scores[: len(theirs.intermediate_values)]
    assert search.study.best_trial.number == search.best.number


@pytest.mark.parametrize("sampler", ["tpe", "random", "sobol", "cmaes"])
def test_the_same_scores_lead_to_the_same_trials(sampler):
    if sampler == "cmaes":
        pytest.importorskip("cmaes")
    first, lots = searched(by_rate, sampler=sampler, trials=24, pruner="median")
    again, same = searched(by_rate, sampler=sampler, trials=24, pruner="median")
    assert lots == same
    assert [trial.settings for trial in first.trials] == [trial.settings for trial in again.trials]
    other, _ = searched(lambda own, rung: -by_rate(own, rung), sampler=sampler, trials=24, pruner="median")
    learns = sampler in ("tpe", "cmaes")
    differ = [trial.settings for trial in first.trials] != [trial.settings for trial in other.trials]
    assert differ == learns  # random search and Sobol's points do not look at scores


def test_tpe_comes_closer_to_an_optimum_than_random_search():
    """The optimum is known, and the sampler really told what it drew: its last trials are closer than chance."""
    distance = {}
    for sampler in ("tpe", "random"):
        search, _ = searched(by_rate, sampler=sampler, trials=60, pruner="none", budget=10**8)
        distance[sampler] = np.mean([-trial.score for trial in search.trials[-20:]])
    assert distance["tpe"] < 0.5 * distance["random"]


def test_tpe_learns_where_trials_fail():
    """A third of the range fails, next to the best. Optuna's TPE leaves failed trials out, and would ask for more."""
    search, _ = searched(lambda own, rung: math.nan if own["learning_rate"] > 1e-2 else by_rate(own, rung), trials=48)
    assert sum(trial.status == FAILED for trial in search.trials[12:]) < 18


def test_static_settings_group_the_lots():
    space = SPACE | {"num_steps": [8, 16], "activation": ["tanh", "relu"]}
    _, lots = searched(by_rate, space=space, trials=24, lot_size=4, sampler="random")
    assert len({static for *_, statics in lots for static in statics}) > 2
    assert all(len({*statics}) == 1 for *_, statics in lots)
    full = [numbers for rung, numbers, _ in lots if rung == 0]
    assert [len(numbers) for numbers in full[:1]] == [4]  # those asked together share a program


@pytest.mark.parametrize("pruner", ["halving", "median", "none"])
@pytest.mark.parametrize("budget", [300, 700, 1500, 4000])
def test_the_budget_is_kept_and_one_trial_reaches_its_end(pruner, budget):
    search, _ = searched(by_rate, budget=budget, trials=100, pruner=pruner)
    assert search.env_steps == sum(trial.env_steps for trial in search.trials)
    assert search.env_steps <= budget
    assert search.best.status == FINISHED
    assert all(trial.status in (FINISHED, STOPPED) and trial.scores for trial in search.trials)
    whole = 2 * 128 + 10 * len(search.rungs.steps)
    assert search.env_steps > budget - whole  # and it is spent


def test_a_trial_of_numbers_that_are_none_fails_and_never_wins():
    search, _ = searched(lambda own, rung: math.nan if own["gamma"] > 0.95 else by_rate(own, rung), trials=12)
    failed = [trial for trial in search.trials if trial.status == "failed"]
    assert failed
    assert math.isfinite(search.best.score)
    assert {search.study.trials[trial.number].state.name for trial in failed} == {"FAIL"}


class KilledError(Exception):
    """The end of a process, as far as what was written by then goes."""


def stops(monkeypatch, owner, name, after):
    """So many calls of a function succeed."""
    real, calls = getattr(owner, name), itertools.count()

    def stopping(*args, **options):
        if next(calls) >= after:
            raise KilledError
        return real(*args, **options)

    monkeypatch.setattr(owner, name, stopping)


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """Programs that one test has compiled serve the others: how often `compile_program` was asked, and how often new.

    What a program is, beside shapes: the settings that its runs share, their number, and the log's interval.
    """
    known, asked = {}, []

    def once(runs):
        config = runs.config.replace(**dict.fromkeys(runs.differing, 0.5))
        key = repr((config, runs.differing, len(runs.rows), runs.options, runs.devices))
        asked.append(key)
        if key not in known:
            known[key] = program.compile_program(runs)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "compile_program", once)
        patch.setattr(execution, "compile_program", once)
        yield asked


@pytest.fixture(scope="module")
def study(tmp_path_factory, compiled):
    """A study that nothing disturbed: its directory, its result, and how often something was compiled meanwhile."""
    out, events, lots, add = tmp_path_factory.mktemp("study") / "out", [], [], Journal.add
    listener = lambda name, *_, **__: events.append(name) if "backend_compile" in name else None  # noqa: E731

    def counted(self, *args):
        add(self, *args)
        lots.append(len(events))

    before = len(compiled)
    jax.monitoring.register_event_duration_secs_listener(listener)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "add", counted)
        result = tune(CONFIG, SPACE, 10**5, out=out, **FINAL, **STUDY)
    jax.monitoring.unregister_event_duration_listener(listener)
    return out, result, len(compiled) - before - 1, lots  # one for both final runs


@pytest.mark.thorough
def test_nothing_is_compiled_anew_within_a_group(study):
    _, result, programs, lots = study
    assert programs == 1
    assert len(lots) >= 4
    assert (result.trials["rung"] == 3).any()
    assert len({*lots[2:]}) == 1  # the second lot that goes on from a state may compile how states are placed


def test_the_results_are_files_that_others_read(study):
    out, result, *_ = study
    with (out / "trials.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [float(row["learning_rate"]) for row in rows] == result.trials["learning_rate"].tolist()
    assert sum(int(row["env_steps"]) for row in rows) == result.env_steps
    loaded = optuna.load_study(study_name="a2c on CartPole-v1", storage=f"sqlite:///{out / 'study.db'}")
    assert [trial.params["gamma"] for trial in loaded.trials] == pytest.approx(result.trials["gamma"], rel=1e-3)
    assert loaded.best_value == np.max(result.trials["score"][result.trials["status"] == FINISHED])
    names = {path.name for path in out.iterdir()}
    assert names >= {"importance.png", "slices.png", "best", "best.toml", "defaults", "results.csv", "tune.json"}
    assert not [*(out / "states").iterdir()]  # no trial goes on


def test_the_best_settings_are_judged_on_seeds_that_no_trial_had(study):
    out, result, *_ = study
    assert result.summary["seeds"] == [0, 1]
    assert StudyOptions(**STUDY).search_seeds([0, 1]) == [2, 3]
    assert (
        json.loads((out / "best" / "config.json").read_text())["settings"]["learning_rate"]
        == result.settings["learning_rate"]
    )
    assert result.final_env_steps == 2 * 2 * 128


def test_what_the_study_began_with_is_judged_on_the_same_seeds(study):
    out, result, *_ = study
    best, defaults = (json.loads((out / name / "summary.json").read_text()) for name in ("best", "defaults"))
    assert defaults["seeds"] == best["seeds"] == [0, 1]
    assert defaults["eval_return"]["per_seed"] == result.defaults["eval_return"]["per_seed"]
    assert defaults["device"] == best["device"]
    settings = json.loads((out / "defaults" / "config.json").read_text())["settings"]
    assert settings["learning_rate"] == CONFIG.learning_rate != result.settings["learning_rate"]
    with (out / "results.csv").open(newline="") as file:
        rows = {row["directory"]: row for row in csv.DictReader(file)}
    assert {name: float(row["iqm"]) for name, row in rows.items()} == {
        "best": best["eval_return"]["iqm"],
        "defaults": defaults["eval_return"]["iqm"],
    }
    reserved = json.loads((out / "tune.json").read_text())["tune"]["reserved"]
    assert reserved == result.final_env_steps  # of the budget


def test_the_final_table_shows_both_and_how_likely_the_tuned_are_better():
    def summary(scores):
        low, high = min(scores), max(scores)
        final = {"iqm": np.mean(scores), "mean": np.mean(scores), "ci_low": low, "ci_high": high, "per_seed": scores}
        return {"algo": "ppo", "env": "it", "num_seeds": 3, "failed_seeds": [], "env_steps": 9, "eval_return": final}

    console = Console(record=True, width=120, file=io.StringIO())
    console.print(study_results.final_table(summary([4.0, 5.0, 6.0]), summary([1.0, 5.0, 9.0]), 1000, 54))
    text = " ".join(console.export_text().split())
    for part in ("tuned", "as begun", "5.00", "1.00 … 9.00", "4.00 … 6.00", "0.50", "1,000", "54"):
        assert part in text, text


def test_settings_that_are_the_defaults_are_trained_once(study):
    out, result, *_ = study
    planned, devices = read_study(out, quiet())
    tuned, defaults, steps = judge(planned.record._replace(config=result.config), result.config, devices, quiet())
    assert defaults is tuned
    assert steps == 2 * 128


def test_run_takes_the_best_settings_from_a_file(study):
    out, result, *_ = study
    config, options, *_ = parse_settings(with_file(["--config", str(out / "best.toml")]), "", "", NoOptions())
    assert settings_of(config) == settings_of(result.config)
    assert options.seeds == [0, 1]


@pytest.mark.thorough
def test_a_trial_learns_what_a_run_of_its_settings_learns():
    """In three parts, beside another one, as alone and in one go."""
    configs = [CONFIG.replace(learning_rate=rate) for rate in (1e-2, 3e-2)]
    with Signals() as signals:
        record = start_record(CONFIG, [0], Path("nowhere"), jax.devices()[:1], HostOptions())
        made = Trainer([5, 6], ("learning_rate",), 2, jax.devices()[:1], record, quiet(), signals)
        states = None
        for done, until in ((0, 2), (2, 5), (5, 8)):
            trained = made.train("", configs, done, until, states)
            states = trained.states
        at_once = made.train("", configs, 0, 8, None)
    for part, whole in zip(trained.states, at_once.states, strict=True):
        assert all(part[path].tobytes() == whole[path].tobytes() for path in whole)
    assert np.array_equal(trained.returns, at_once.returns)
    assert trained.evaluation_steps.max() <= 2 * 2 * 20
    for config, own in zip(configs, states, strict=True):
        for i, seed in enumerate((5, 6)):
            alone = flatten(jax.jit(make_train(config))(jax.random.key(seed))[0])
            for path in (path for path in alone if path.startswith(("policy", "critic."))):
                np.testing.assert_allclose(own[path][i], alone[path], rtol=2e-3, atol=2e-5)


@pytest.mark.thorough
def test_a_trial_whose_numbers_are_not_finite_any_more_has_no_score():
    """Its policy is frozen as it last was, and plays on: that is what no run would have."""
    config = CONFIG.replace(env=RewardTurnsNaN(), eval_max_steps=10)  # within which it pays
    with Signals() as signals:
        record = start_record(config, [0], Path("nowhere"), jax.devices()[:1], HostOptions())
        made = Trainer([5, 6], ("learning_rate",), 2, jax.devices()[:1], record, quiet(), signals)
        healthy, sick = (made.train("", [config] * 2, 0, until, None) for until in (2, 3))
    assert np.all(np.isfinite(healthy.returns))
    assert np.all(np.isnan(sick.returns))


def test_what_is_good_so_far_is_no_bad_trial_to_the_sampler():
    """TPE counts trials under way as bad. Those that have come to a rung, and go on, are known, and the best."""
    options = StudyOptions(**{"budget": 10**6, **STUDY, "trials": 12, "places": 4})
    parsed = parse_space(CONFIG, SPACE)
    under_way = Search(CONFIG, parsed, options, options.ladder(CONFIG, parsed, 0), 2, seed=0)
    for _ in range(2):  # the first wave, of which the worse half ends
        lot = under_way.next_lot()
        under_way.tell(lot, np.array([by_rate(trial.settings, 0) for trial in lot.trials]), np.full(2, 10))
    under_way.next_lot()
    good = [trial for trial in under_way.trials if trial.status == RUNNING and trial.scores]
    assert len(good) == 2
    shown = under_way._scored.trials
    for trial in good:
        seen = shown[trial.number]
        assert (seen.state.name, [*seen.intermediate_values.values()]) == ("PRUNED", [trial.score])
        assert under_way.study.trials[trial.number].state.name == "RUNNING"
    new = [trial for trial in under_way.trials if not trial.scores]
    assert new
    assert all(shown[trial.number].state.name == "RUNNING" for trial in new)
    assert all(shown[trial.number].params == trial.asked.params for trial in under_way.trials)


@pytest.mark.parametrize(
    ("stopped_in", "lot"),
    by_cost([("scores", 3), ("training", 3), ("scores", 0), ("states", 2)], [("scores", 3)], [("training", 3)]),
)
def test_a_study_that_was_stopped_ends_in_the_same_one(study, tmp_path, monkeypatch, stopped_in, lot):
    out, result, *_ = study
    own = tmp_path / "own"
    where = {"scores": (Journal, "_write"), "states": (checkpoint, "save"), "training": (Trainer, "train")}
    stops(monkeypatch, *where[stopped_in], lot)
    with pytest.raises(KilledError):
        tune(CONFIG, SPACE, 10**5, out=own, **FINAL, **STUDY)
    monkeypatch.undo()
    monkeypatch.setattr(study_results, "draw", lambda *_: None)
    unsaid = STUDY | {"rungs": None}  # which is three, too
    again = tune(CONFIG, SPACE, 10**5, out=own, resume_or_start=True, **FINAL, **unsaid)
    same_directories(own, out)
    assert again.settings == result.settings


def same_directories(a, b):
    """All that a study is: its lots, its table, its file, and the states of its best run, bit for bit."""
    for name in ("scores.json", "trials.csv", "best.toml", "results.csv"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    ours, theirs = (
        optuna.load_study(study_name=None, storage=f"sqlite:///{path / 'study.db'}").trials for path in (a, b)
    )
    for x, y in zip(ours, theirs, strict=True):
        for part in ("number", "state", "values", "params", "intermediate_values", "distributions", "user_attrs"):
            assert getattr(x, part) == getattr(y, part)
    (ours, *_), (theirs, *_) = (
        [checkpoint.read(path).arrays for path in sorted((x / "best" / "checkpoints").iterdir())[-1:]] for x in (a, b)
    )
    assert all(ours[path].tobytes() == theirs[path].tobytes() for path in theirs)


@pytest.mark.thorough
def test_states_that_are_damaged_are_trained_again(study, tmp_path, monkeypatch):
    out, *_ = study
    own = tmp_path / "own"
    stops(monkeypatch, Trainer, "train", 3)
    with pytest.raises(KilledError):
        tune(CONFIG, SPACE, 10**5, out=own, **FINAL, **STUDY)
    monkeypatch.undo()
    monkeypatch.setattr(study_results, "draw", lambda *_: None)
    (manifest, *_) = sorted((own / "states").glob("*/manifest.json"))
    manifest.write_text("{}")
    tune(CONFIG, SPACE, 10**5, out=own, resume_or_start=True, **FINAL, **STUDY)
    same_directories(own, out)


def test_another_study_is_not_gone_on_with(study, tmp_path):
    out, *_ = study
    for config, space, options, message in (
        (CONFIG.replace(num_steps=16), SPACE, STUDY, "holds a run with num_steps = 8, not 16"),
        (CONFIG.replace(env="Acrobot-v1"), SPACE, STUDY, "not the one that this run was trained on, 'CartPole-v1'"),
        (CONFIG, {"gamma": [0.9, 0.99]}, STUDY, "of another space"),
        (CONFIG, SPACE, STUDY | {"places": 3}, "places = 4, not 3"),
    ):
        with pytest.raises(UsageError, match=message):
            tune(config, space, 10**5, out=out, resume_or_start=True, **FINAL, **options)
    with pytest.raises(UsageError, match="already holds files"):
        tune(CONFIG, SPACE, 10**5, out=out, **FINAL, **STUDY)


def test_files_of_a_study_are_not_believed(study, tmp_path):
    out, *_ = study
    own = tmp_path / "own"
    shutil.copytree(out, own)
    scores = own / "scores.json"
    whole = scores.read_text()
    scores.write_text(whole.replace('"rung": 0', '"rung": 1', 1))
    with pytest.raises(UsageError, match="SHA-256"):
        Journal(own).read()
    about = json.loads((own / "tune.json").read_text())
    for change, message in (
        ({"lot_size": 10**9}, "lot_size"),
        ({"options": about["tune"]["options"] | {"trials": "many"}}, "trials"),
        ({"options": about["tune"]["options"] | {"other": 1}}, "is not what a run leaves"),
        ({"space": {"gamma": {"low": 2, "high": 3}}}, "gamma"),
        ({"space": 3}, "is not what a run leaves"),
    ):
        (own / "tune.json").write_text(json.dumps(about | {"tune": about["tune"] | change}))
        with pytest.raises(UsageError, match=message):
            read_study(own, quiet())
    (own / "tune.json").write_text(json.dumps(about))
    (own / "study.db").write_text("no database")
    scores.write_text(whole)
    with pytest.raises(UsageError, match=r"study\.db is not this study's file"):
        tune(CONFIG, SPACE, 10**5, out=own, resume_or_start=True, **FINAL, **STUDY)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--budget", "200"],
            "budget = 200 is too small: one trial of 2 seeds takes 128 steps to its first rung and 256 to its last, "
            "and the final runs take 2,048;",
        ),
        (["--rungs", "5"], "rungs = 5: the first would be at 8 of 128 steps, and an update has 16"),
        (["--sampler", "grid"], "invalid choice"),
        (["--trials", "0"], "trials = 0 must be a whole number in [1, 1e5]"),
        (["--space", "missing.toml"], "'missing.toml' cannot be read"),
        (["--mesh", "env=2"], "trials lie side by side"),
        (["--trails", "3"], "did you mean --trials"),
        (["--env", "line.py:Line"], "names a file; name the module: line:Line"),
        (["--env", "gymnasium/CartPole-v1"], ""),
        (["--resume", "nowhere"], "cannot be read"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(flags, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main([*FLAGS, "--out", str(tmp_path / "out"), *flags] if flags[0] != "--resume" else flags) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_study_of_another_environment_is_not_resumed(study, capfd):
    out, *_ = study
    assert main(["--resume", str(out), "--env", "Acrobot-v1"]) == 2
    assert "env = 'Acrobot-v1' is not the one that this run was trained on" in capfd.readouterr().err


def test_without_optuna_one_line_says_what_to_install(monkeypatch, capfd):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(FLAGS) == 2
    assert "pip install 'purejaxppo[tune]'" in capfd.readouterr().err


def test_the_space_is_shown_with_its_sources(capsys):
    assert main(["--algo", "ppo", "--show-space"]) == 0
    shown = capsys.readouterr().out
    assert "# rl-zoo" in shown
    assert tomllib.loads(shown)["clip_eps"] == {"low": 0.1, "high": 0.5}
    assert parse_space(Config(algo=PPO()), tomllib.loads(shown))


def test_a_study_file_that_somebody_has_locked_is_written_later(tmp_path, monkeypatch):
    search, _ = searched(by_rate, trials=6)
    file = StudyFile(tmp_path, "a study")

    def locked(*_):
        raise OSError("database is locked")

    monkeypatch.setattr(file.study, "add_trial", locked)
    assert (
        file.update(search)
        == f"{tmp_path / 'study.db'} is not up to date (OSError: database is locked); training goes on"
    )
    monkeypatch.undo()
    assert file.update(search) == ""
    assert [trial.params for trial in file.study.trials] == [trial.asked.params for trial in search.trials]


@pytest.mark.thorough
def test_a_study_file_that_somebody_writes_is_told_as_locked(tmp_path):
    StudyFile(tmp_path, "a study")
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UsageError, match="is locked by another process, which writes it; close that one"):
            StudyFile(tmp_path, "a study")


MEMBERS = CONFIG.replace(eval_max_steps=100)  # in which they differ
POPULATION = {"method": "pbt", "trials": 4, "seeds_per_trial": 2, "rungs": 3}


def test_the_worst_copy_the_best_and_change_their_numbers():
    space = parse_space(CONFIG, SPACE | {"max_grad_norm": [0.5, 1.0, 2.0]})
    settings = [{"learning_rate": 1e-3 * (i + 1), "gamma": 0.95, "max_grad_norm": 1.0} for i in range(10)]
    scores = np.array([3.0, 9.0, math.nan, 5.0, 1.0, 8.0, 2.0, 4.0, 6.0, 7.0])
    parents, new = exploit_and_explore(np.random.default_rng(0), scores, settings, space)
    assert {i for i in range(10) if parents[i] != i} == {2, 4}  # a fifth, the one without a score among them
    assert {parents[2], parents[4]} <= {1, 5}
    for i, parent in enumerate(parents):
        ratio = new[i]["learning_rate"] / settings[parent]["learning_rate"]
        assert ratio == pytest.approx(1) if parent == i else ratio in (pytest.approx(0.8), pytest.approx(1.2))
        assert 0.9 <= new[i]["gamma"] <= 1.0
    again = exploit_and_explore(np.random.default_rng(0), scores, settings, space)
    assert again[0].tolist() == parents.tolist()
    assert again[1] == new
    assert settings[2]["learning_rate"] == 3e-3  # a pure function


def test_a_member_takes_over_what_was_learnt_and_keeps_its_own_episodes():
    keys = (
        "key",
        "rollout.obs",
        "reward_normalizer.discounted_return",
        "reward_normalizer.statistics.mean",
        "policy.w",
    )
    own, parent = ({path: np.full((3, 2), who) for path in keys} for who in ("own", "parent"))
    own["failure.cause"], parent["failure.cause"] = np.array([0, 0, 2]), np.array([0, 0, 0])
    child = inherited(own, parent)
    assert [str(child[path][0, 0]) for path in keys] == ["own", "own", "own", "parent", "parent"]
    # its third seed's own episodes may be those that it failed in
    assert [str(child[path][2, 0]) for path in keys] == ["own", "parent", "parent", "parent", "parent"]
    assert not child["failure.cause"].any()
    for scores in (np.zeros(4), np.full(4, np.nan)):
        alike = exploit_and_explore(np.random.default_rng(0), scores, [{}] * 4, {})
        assert alike[0].tolist() == [0, 1, 2, 3]  # no one is better


@pytest.fixture(scope="module")
def population(tmp_path_factory, compiled):
    out, before = tmp_path_factory.mktemp("population") / "out", len(compiled)
    result = tune(MEMBERS, SPACE, 10**5, out=out, **FINAL, **POPULATION)
    return out, result, len(compiled) - before - 2  # and one for each final run: stages are static


@pytest.mark.thorough
def test_a_population_is_one_program_and_its_schedule_can_be_replayed(population):
    out, result, programs = population
    assert programs == 1
    assert len(result.trials["trial"]) == 4 * 3  # members, at each rung
    assert result.trials["rung"].tolist() == [1] * 4 + [2] * 4 + [3] * 4
    assert result.env_steps == result.trials["env_steps"].sum()
    own = json.loads((out / "best" / "config.json").read_text())["settings"]
    assert tuple(own["stages"]) == result.config.stages
    config, *_ = parse_settings(with_file(["--config", str(out / "best.toml")]), "", "", NoOptions())
    assert settings_of(config) == settings_of(result.config)


def test_run_takes_a_schedule_from_a_file(tmp_path, capsys):
    path, staged = tmp_path / "schedule.toml", CONFIG.replace(stages=("32 gamma=0.5", "64 learning_rate=0.001"))
    path.write_text(study_results.schedule_toml(staged, SPACE))
    config, *_ = parse_settings([*FLAGS[:10], "--schedule", str(path)], "", "", NoOptions())
    assert config.stages == (f"0 learning_rate={CONFIG.learning_rate} gamma=0.99", *staged.stages)
    config.check()
    assert run([*FLAGS[:10], "--schedule", str(path), "--stages", "64 gamma=0.9"]) == 2
    assert "stages and schedule both say which numbers change" in capsys.readouterr().err
    path.write_text("gamma = 0.9")
    assert run([*FLAGS[:10], "--schedule", str(path)]) == 2
    assert "has no stages" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_population_that_was_stopped_ends_as_an_undisturbed_one(population, tmp_path, monkeypatch):
    out, *_ = population
    own = tmp_path / "own"
    stops(monkeypatch, Trainer, "train", 2)
    with pytest.raises(KilledError):
        tune(MEMBERS, SPACE, 10**5, out=own, **FINAL, **POPULATION)
    monkeypatch.undo()
    monkeypatch.setattr(study_results, "draw", lambda *_: None)
    tune(MEMBERS, SPACE, 10**5, out=own, resume_or_start=True, **FINAL, **POPULATION)
    same_directories(own, out)


def test_the_schedule_of_a_line_is_that_of_its_ancestors():
    search, _ = searched(by_rate, method="pbt", trials=5, pruner="none", budget=10**5, lot_size=5)
    copied = [trial for trial in search.trials if trial.parent is not trial.own]
    assert copied
    assert all(trial.parent.score >= trial.own.score for trial in copied)
    last = [trial for trial in copied if trial.rung == 3][-1]
    config = scheduled(CONFIG, last, search.rungs)
    steps, *changes = config.stages[-1].split()
    assert int(steps) == 16 * search.rungs.updates(2, 16)
    assert f"learning_rate={last.settings['learning_rate']!r}" in changes
    assert config.learning_rate == last.parent.settings["learning_rate"] or len(config.stages) > 1


def test_a_trial_without_ancestors_keeps_the_stages_of_the_study():
    staged = CONFIG.replace(stages=("33 gamma=0.5",))
    search, _ = searched(by_rate, trials=2, pruner="none", budget=10**5, lot_size=2)
    trial = search.trials[0]
    config = scheduled(staged, trial, search.rungs)
    assert config.stages == staged.stages
    assert config.learning_rate == trial.settings["learning_rate"]


@pytest.mark.thorough
def test_stages_are_numbers_that_change_at_their_steps():
    """As the same run in two parts, each with its numbers; and a stage between two updates waits for the next."""
    after = CONFIG.replace(learning_rate=1e-4, gamma=0.5)
    state = init(CONFIG, jax.random.key(0))
    for config in [CONFIG] * 3 + [after] * 2:
        state, metrics = jax.jit(update_step)(config, state)
    staged = CONFIG.replace(stages=("33 learning_rate=1e-4 gamma=0.5",))
    whole = init(staged, jax.random.key(0))
    for _ in range(5):
        whole, last = jax.jit(update_step)(staged, whole)
    assert last["learning_rate"] == metrics["learning_rate"] == np.float32(1e-4)
    for a, b in zip(jax.tree.leaves(whole.policy), jax.tree.leaves(state.policy), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_stage_beyond_all_updates_never_begins():
    config = CONFIG.replace(stages=("64 gamma=0.5", "3e12 gamma=0.6"))
    config.check()
    assert [float(staged(config, jnp.asarray(x)).gamma) for x in (3, 4, 2**31 - 2)] == pytest.approx([0.99, 0.5, 0.5])


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (("learning_rate=1",), "is not STEP field=value"),
        (("5 learning_rate",), "is not STEP field=value"),
        (("5",), "nothing changes at step 5"),
        (("5 gamma=0.5", "5 gamma=0.6"), "put them in order"),
        (("5 num_envs=3",), "'num_envs' is no number that can change"),
        (("5 gama=0.5",), "did you mean gamma"),
        (("5 gamma=2",), r"gamma = 2.0 must be a number in \[0, 1\]"),
        (("5 gamma=nan",), "gamma = nan"),
        ("5 gamma=0.5", "must be a tuple"),
    ],
)
def test_stages_that_cannot_be_are_refused(stages, message):
    with pytest.raises(UsageError, match=message):
        CONFIG.replace(stages=stages).check()


def test_stages_of_an_update_rule_of_ones_own_may_set_what_ours_read_but_once():
    class Own(PPO):
        kl_coef: float = number(1.0, "[0, inf)", "read at each update")

    stages = ("5 kl_coef=2",)
    CONFIG.replace(algo=Own(), stages=stages).check()
    with pytest.raises(UsageError, match="'kl_coef' is no number that can change"):
        CONFIG.replace(algo=PPOPenalty(), stages=stages).check()


def test_the_rungs_of_default_options():
    config, space = CONFIG.replace(total_steps=3200), parse_space(CONFIG, SPACE)
    assert StudyOptions().ladder(config, space, 0).steps == (800, 1600, 3200)
    assert StudyOptions(pruner="median").ladder(config, space, 0).steps == (1066, 2133, 3200)
    assert StudyOptions(method="pbt").ladder(config, {"gamma": space["gamma"]}, 0).steps == (*range(320, 3201, 320),)
    before = StudyOptions(rungs=4, halving_factor=3)  # defaults of older studies, as their files say
    assert before.ladder(config, space, 0).steps == (118, 355, 1066, 3200)


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (SPACE | {"num_steps": [8, 16]}, {}, "num_steps is static: it cannot change while a run learns"),
        ({"observation_clip": {"low": 1, "high": 2}}, {}, "observation_clip cannot change"),
        (SPACE, {"trials": 1}, "at least 2 members"),
        (SPACE, {"pruner": "none"}, "pruner = 'none' would do nothing with method = 'pbt'"),
        (SPACE, {"halving_factor": 3}, "halving_factor = 3 would do nothing"),
        (SPACE, {"places": 4}, "places = 4 would do nothing"),
        (SPACE, {"trials": 64}, "budget = 10,000 is too small: 64 members of 2 seeds take 16,384 steps"),
    ],
)
def test_a_population_that_cannot_be_is_refused(space, options, message):
    with pytest.raises(UsageError, match=message):
        tune(CONFIG, space, 10**4, **FINAL, **(POPULATION | options))


@pytest.mark.parametrize(
    ("options", "stages", "message"),
    [
        ({"pruner": "none", "rungs": 3}, (), "rungs = 3 would do nothing with pruner = 'none', where each trial is"),
        ({"pruner": "none", "halving_factor": 3}, (), "halving_factor = 3 would do nothing with pruner = 'none'"),
        ({"pruner": "median", "halving_factor": 3}, (), "halving_factor = 3 would do nothing with pruner = 'median'"),
        ({"method": "pbt"}, ("64 clip_eps=0.1",), "stages would do nothing with method = 'pbt'"),
        ({}, ("64 gamma=0.95",), "space: gamma is set by stages"),
    ],
)
def test_what_would_do_nothing_is_refused(options, stages, message):
    config = CONFIG.replace(algo=PPO(), stages=stages)
    with pytest.raises(UsageError, match=message) as error:
        tune(config, SPACE, 10**5, **FINAL, **options)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_trials_begin_with_what_another_run_has_learnt(study, tmp_path, monkeypatch):
    out, *_ = study
    monkeypatch.setattr(study_results, "draw", lambda *_: None)
    options = FINAL["options"] | {"init_from": str(out / "best")}
    how = {"trials": 2, "seeds_per_trial": 2, "places": 4, "pruner": "none", "seeds": 2, "options": options}
    same = tune(CONFIG, {"learning_rate": [1e-30, 2e-30]}, 10**5, out=tmp_path / "own", **how)
    (trained, *_) = checkpoint.steps_saved(out / "best" / "checkpoints")[-1:]
    (kept, *_) = checkpoint.steps_saved(tmp_path / "own" / "best" / "checkpoints")[-1:]
    ours, theirs = (checkpoint.read(path).arrays for path in (kept, trained))
    policies = [path for path in theirs if path.startswith("state.policy")]
    assert policies
    assert all(np.array_equal(ours[path], theirs[path]) for path in policies)  # nothing is learnt at such a rate
    assert len({*same.trials["score"]}) == 1
    with pytest.raises(UsageError, match="init_from"):
        tune(CONFIG.replace(hidden_sizes=(4,)), SPACE, 10**5, **how)
