"""Every rule sees its own fault in made-up numbers and nothing in healthy ones; the probe, in environments that lie."""

import csv
import dataclasses
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import Walk

from purejaxppo import Config, UsageError, diagnose, preset, run_experiment
from purejaxppo.__main__ import front
from purejaxppo.agent import Agent
from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.algorithms.members import OF_GRADIENTS
from purejaxppo.cli.settings import RunOptions
from purejaxppo.diagnosis import probe_symptoms, symptoms
from purejaxppo.diagnosis.case import Case, span
from purejaxppo.diagnosis.diagnose import SITE, findings, in_short, in_words
from purejaxppo.diagnosis.probe import ProbeResult, _deviations, _one_valid_action, effect_of_actions, probe
from purejaxppo.diagnosis.rules import fits, read_rules
from purejaxppo.presets import settings_of
from purejaxppo.rollout import begin_episodes
from purejaxppo.rundir.contents import RunContents
from purejaxppo.rundir.files import shown, to_json
from purejaxppo.rundir.metrics import MetricsTable
from purejaxppo.spaces import Box, Discrete, MultiDiscrete
from purejaxppo.train import init

ROWS, SEEDS = 40, 4
RULES = {rule.name: rule for rule in read_rules()}
SETTINGS = {
    "gamma": "0.99",
    "num_envs": "4",
    "num_steps": "128",
    "damping": "0.1",
    "cg_iterations": "10",
    "anneal_learning_rate": "true",
    "normalize_advantages": "minibatch",
    "normalize_rewards": "false",
    "normalize_observations": "false",
    "reward_scale": "1",
    "reward_clip": "inf",
    "truncation_as_termination": "false",
}
OF_PROBES_AND_FLAT = ("actions-at-bounds", "reward-ignores-actions")
PROBED = ProbeResult(
    episodes=64,
    returns=np.linspace(10.0, 40.0, 64),
    length=22.0,
    ends_at_limit_as_terminated=False,
    rewards=(1.0, 1.0),
    observation_std=np.array([0.1, 0.5, 0.1, 0.8]),
    not_finite="",
    reproducible=True,
    actions_matter=True,
    at_bounds=0.1,
    action_effect=0.6,
)


def healthy():
    """Columns [seeds, rows] as those of a run that learns."""
    rng = np.random.default_rng(0)
    t = np.linspace(0.0, 1.0, ROWS) + np.zeros((SEEDS, 1))
    returns = 20.0 + 180.0 * t + rng.normal(0.0, 5.0, t.shape)
    return {
        "alive": 1.0 + 0.0 * t,
        "episode_return": returns,
        "episode_length": returns,
        "episodes": 3.0 + 0.0 * t,
        "entropy": 0.69 - 0.4 * t,
        "kl": 0.01 + 0.0 * t,
        "clip_fraction": 0.1 + 0.0 * t,
        "explained_variance": 0.8 * t,
        "learning_rate": 3e-4 * (1.0 - t) + 3e-6,
        "policy_loss": -0.01 + 0.0 * t,
        "grad_norm": 0.1 + 0.0 * t,
    }


def flat(columns):
    """The same, but that returns stay where they began."""
    rng = np.random.default_rng(1)
    returns = 22.0 + rng.normal(0.0, 2.0, columns["episode_return"].shape)
    return columns | {"episode_return": returns, "episode_length": np.abs(returns)}


def natural(columns):
    """With a natural gradient's columns."""
    shape = columns["kl"].shape
    more = {"accepted": 1.0, "cg_residual": 0.01, "step_norm": 0.1, "predicted_kl": 0.01, "backtracks": 0.0}
    return columns | {name: np.full(shape, x) for name, x in more.items()}


def contents(columns, summary=None, **settings):
    update = np.arange(1.0, columns["alive"].shape[1] + 1)
    table = MetricsTable([*range(SEEDS)], update, 512 * update, columns)
    return RunContents(Path("it"), "ppo", "Corridor", [*range(SEEDS)], SETTINGS | settings, {}, table, summary)


def summary(per_seed, failed=()):
    return {"eval_return": {"per_seed": per_seed}, "failed_seeds": [*failed]}


def case_of(name):
    """A run, and what was probed, in which the rule of that name holds, and as little else as can be."""
    good, still = healthy(), flat(healthy())
    shape, t = good["kl"].shape, np.linspace(0.0, 1.0, ROWS) + np.zeros((SEEDS, 1))
    const = lambda x: np.full(shape, float(x))  # noqa: E731
    dead = const(1.0)
    dead[2, 20:] = 0.0
    apart = good["episode_return"].copy()
    apart[1] = still["episode_return"][1]
    peak = 20.0 + 180.0 * np.sin(np.pi * t) ** 2
    noise = np.random.default_rng(2).normal(0.0, 5.0, shape)
    failed = {"seed": 2, "update": 21, "cause": "reward"}
    runs = {
        "failed-seeds": lambda: contents(good | {"alive": dead}, summary([200.0] * 4, [failed])),
        "no-episode-ends": lambda: contents(good | {"episodes": const(0), "episode_return": const(np.nan)}),
        "one-action": lambda: contents(still | {"entropy": const(0)}),
        "return-never-changes": lambda: contents(good | {"episode_return": const(-200), "episode_length": const(200)}),
        "policy-does-not-move": lambda: contents(still | {"kl": const(0)}),
        "advantage-of-a-constant": lambda: contents(still | {"policy_loss": const(0), "grad_norm": const(1e-5)}),
        "line-search-fails": lambda: contents(natural(still) | {"accepted": const(0.2)})._replace(algo="trpo"),
        "cg-does-not-converge": lambda: contents(natural(still) | {"cg_residual": const(0.9)})._replace(algo="trpo"),
        "damping-dominates": lambda: contents(natural(still) | {"predicted_kl": const(1e-9)}, damping="100")._replace(
            algo="trpo"
        ),
        "time-limit-as-termination": lambda: contents(good, truncation_as_termination="true"),
        "steps-too-large": lambda: contents(still | {"kl": const(2), "clip_fraction": const(0.8)}),
        "steps-too-small": lambda: contents(still | {"kl": const(1e-7)}),
        "returns-fall": lambda: contents(good | {"episode_return": good["episode_return"][:, ::-1]}),
        "reward-scale": lambda: contents(good | {"episode_return": 1e4 * good["episode_return"]}),
        "entropy-collapsed": lambda: contents(still | {"entropy": 0.69 * np.exp(-20 * t)}),
        "entropy-never-falls": lambda: contents(still | {"entropy": const(0.69)}),
        "critic-explains-nothing": lambda: contents(still | {"explained_variance": const(-0.1)}),
        "short-sighted": lambda: contents(still, gamma="0.5"),
        "too-few-episodes": lambda: contents(still | {"episode_length": const(200)}, num_envs="1", num_steps="8"),
        "annealed-too-soon": lambda: contents(still),
        "forgotten": lambda: contents(good | {"episode_return": peak}),
        "evaluation-below-training": lambda: contents(good, summary([25.0] * 4)),
        "seeds-apart": lambda: contents(good | {"episode_return": apart}),
        "stands-still": lambda: contents(
            good | {"episode_return": np.minimum(20.0 + 2e3 * t, 200.0) + noise, "entropy": 1.4 + 0.2 * t}
        ),
        "returns-ignore-policy": lambda: contents(still),
        "no-progress": lambda: contents(still | {"explained_variance": const(0.07)}, anneal_learning_rate="false"),
    }
    probed = {
        "not-finite": {"not_finite": "rewards"},
        "actions-do-nothing": {"actions_matter": False, "action_effect": 0.0},
        "reward-ignores-actions": {"action_effect": 0.0},
        "observations-constant": {"observation_std": np.zeros(4)},
        "observation-scale": {"observation_std": np.array([0.1, 4e3])},
        "actions-at-bounds": {"at_bounds": 0.99},
        "not-reproducible": {"reproducible": False},
    }
    run = runs[name]() if name in runs else contents(still if name in OF_PROBES_AND_FLAT else good)
    return run, PROBED._replace(**probed.get(name, {}))


@pytest.mark.parametrize("name", RULES)
def test_each_rule_sees_its_fault_first(name):
    found = findings(*case_of(name))
    assert name in [finding.name for finding in found[:2]], [finding.name for finding in found]
    finding = next(finding for finding in found if finding.name == name)
    assert finding.evidence
    assert finding.tries
    assert finding.link == f"{SITE}#{name}"
    assert "seed" in finding.where(SEEDS)


def test_nothing_is_said_of_a_healthy_run():
    good = healthy()
    for run in (contents(good), contents(natural(good)), contents(good, summary([200.0] * 4))):
        assert findings(run) == findings(run, PROBED) == []


def test_nothing_is_said_where_little_is_known():
    columns = {name: x[:, :5] for name, x in flat(healthy()).items()}
    assert findings(contents(columns)) == []
    assert findings(contents({"alive": np.zeros((SEEDS, 0))})) == []


@pytest.mark.parametrize("value", [np.nan, 0.0, 1e99, -1e99])
def test_no_number_is_too_odd(value):
    odd = {name: np.full_like(x, value) for name, x in natural(healthy()).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = findings(contents(odd, gamma="what", damping="inf", num_envs=""), PROBED)
    assert all(np.isfinite(finding.weight) for finding in found)


def test_seeds_and_updates_are_named():
    found = findings(*case_of("failed-seeds"))[0]
    assert (found.seeds, found.update, found.where(4)) == ([2], 21, "seed 2; update 21")
    found = findings(*case_of("seeds-apart"))[0]
    assert (found.name, found.seeds) == ("seeds-apart", [1])


def test_evidence_is_of_the_seeds_that_are_named_alone():
    columns = flat(healthy())
    columns["kl"][1:] = 2.0  # seed 0 is within the region
    found = next(x for x in findings(contents(columns)) if x.name == "steps-too-large")
    assert found.seeds == [1, 2, 3]
    assert "median kl 2, at most 2," in found.evidence


def test_what_learns_is_told_from_what_does_not():
    assert Case(contents(healthy())).learnt.all()
    assert not Case(contents(flat(healthy()))).learnt.any()
    assert span(np.array([0.5, np.nan, 2.0])) == "0.5 … 2"
    assert span(np.array([0.01234, 1000.0])) == "0.0123 … 1,000"


def test_rules_and_symptoms_belong_together():
    own = {
        name
        for file in (symptoms, probe_symptoms)
        for name, x in vars(file).items()
        if callable(x) and getattr(x, "__module__", "") == file.__name__
    }
    assert {rule.find.__name__ for rule in RULES.values()} == own - {"seen", "certain"}
    assert all(0 <= rule.share <= 1 < rule.weight or rule.name == "no-progress" for rule in RULES.values())


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_all_advice_exists_in_the_method(algo):
    config = preset(algo, "CartPole-v1")
    settings = {name: shown(value) for name, value in to_json(settings_of(config)).items()}
    run = contents(healthy())._replace(algo=algo, settings=settings | {"gamma": "0.5"})  # short-sighted
    evolves, natural_gradient = algo in ("cem", "cma-es"), algo in ("npg", "trpo")
    known = {*settings, *(field.name for field in dataclasses.fields(RunOptions)), "probe"}
    known -= {*OF_GRADIENTS} if evolves else {*()}
    for rule in RULES.values():
        told = [attempt for attempt in rule.tries if fits(attempt, run)]
        flags = [flag for attempt in told for flag in re.findall(r"--(?:no-)?([a-z-]+)", attempt)]
        assert {flag.replace("-", "_") for flag in flags} <= known
        of_natural_gradients = rule.name in ("line-search-fails", "cg-does-not-converge", "damping-dominates")
        cannot_be = (of_natural_gradients and not natural_gradient) or (evolves and rule.name == "short-sighted")
        assert told or cannot_be, rule.name
        assert all(len(re.findall("--[a-z]", attempt)) <= 1 for attempt in rule.tries)


def test_advice_that_is_followed_already_is_left_out():
    run = contents(healthy(), entropy_coef="0", clip_eps="inf", target_kl="0.01", action_distribution="beta")
    run = run._replace(settings=run.settings | {"normalize_rewards": "true", "num_epochs": "1"})
    for attempt in (
        *("lower --entropy-coef", "raise --clip-eps", "lower --target-kl to 0.02: why", "lower --num-epochs"),
        *("--action-distribution beta", "--normalize-rewards, if they are rare", "--no-truncation-as-termination"),
        *("raise --gamma to 0.99: why", "raise --max-kl"),
    ):
        assert not fits(attempt, run), attempt
    for attempt in (
        *("raise --entropy-coef", "lower --clip-eps", "raise --target-kl to 0.02", "raise --num-epochs", "mend it"),
        *("--action-distribution tanh-gaussian", "--normalize-observations", "--no-normalize-rewards"),
        *("raise --gamma to 0.999", "lower --learning-rate", "run it again with --debug"),
    ):
        assert fits(attempt, run), attempt
    assert fits("raise --max-kl", run._replace(algo="mine", settings={"max_kl": "0.1"}))


def test_words_and_the_two_lines_at_the_end_of_a_run():
    run, probed = case_of("steps-too-large")
    text = "\n".join(in_words(findings(run, probed), run))
    assert "worst first" in text
    assert "1. Updates are far too large (all 4 seeds)" in text
    assert "evidence: median kl 2, at most 2, clip_fraction 0.8" in text
    assert "try: lower --learning-rate" in text
    assert len(in_short(findings(run), run.directory)) == 2
    assert in_short(findings(run), run.directory, "m:Env")[1].endswith("--probe --env m:Env")
    assert "purejaxppo diagnose 'my runs/a' --probe" in in_short(findings(run), Path("my runs/a"))[1]
    assert in_short([], run.directory) == []
    settings = {**run.settings, "init_from": "runs/other"}  # it may have nothing left to learn
    assert "no-progress" not in [found.name for found in findings(run._replace(settings=settings))]
    assert "no rule finds anything" in "\n".join(in_words([], run))


@dataclasses.dataclass(frozen=True)
class Liar(Walk):
    """Ignores its action, shows large numbers, and tells its time limit as a termination."""

    limit: int = 12

    @property
    def observation_space(self):
        return Box(-np.inf, np.inf, (2,))

    def step(self, key, state, action):
        state, obs, _, _, _ = super().step(key, state, jnp.zeros_like(action))
        terminated = state.steps >= self.limit
        return state, 1e4 * obs, jnp.ones(()), terminated, jnp.zeros((), bool)


def test_a_probe_of_an_environment_that_lies(tmp_path, capsys):
    config = Config(env=Liar(), num_envs=2, num_steps=16, num_minibatches=1, num_epochs=1, hidden_sizes=(8,))
    found = probe(config)
    assert found.actions_matter is False
    assert found.reproducible
    assert found.action_effect == 0.0
    assert found.ends_at_limit_as_terminated
    assert (found.length, found.rewards) == (12.0, (1.0, 1.0))
    assert found.observation_std.max() > 1e4
    assert np.isnan(found.one_valid_action)
    two = MultiDiscrete((2, 2))
    for space, mask, share in ((Discrete(3), [0, 1, 0], 1.0), (two, [1, 0, 0, 1], 1.0), (two, [1, 1, 0, 1], 0.0)):
        assert _one_valid_action(space, {"action_mask": np.asarray([mask], bool)}) == share
    names = [finding.name for finding in findings(contents(flat(healthy())), found)]
    assert {"actions-do-nothing", "observation-scale", "time-limit-as-termination"} <= {*names}
    assert names[0] == "actions-do-nothing"


@pytest.mark.parametrize(("space", "dtype", "most"), [(Discrete(500), int, 1.0), (Box(0, 255, (4, 4)), np.uint8, 0.35)])
def test_the_size_of_an_observation_is_that_which_the_network_sees(space, dtype, most):
    """Whole numbers are embedded, bytes divided by 255."""
    seen = np.random.default_rng(0).integers(0, 256, (20, 8, *space.shape)).astype(dtype)
    env = SimpleNamespace(observation_space=space)
    agent = SimpleNamespace(env=env, clip=lambda obs: obs)
    deviations = _deviations(agent, SimpleNamespace(obs=seen, reward=np.zeros((20, 8))))
    assert 0.2 < deviations.max() <= most


def test_what_is_of_critics_is_not_told_of_evolution_strategies():
    run = case_of("reward-scale")[0]._replace(algo="cem")
    assert "reward-scale" not in {x.name for x in findings(run)}
    run, seen = case_of("time-limit-as-termination")
    assert findings(run._replace(algo="cma-es"), seen) == []


def test_a_seed_that_failed_before_an_episode_ended_is_no_environment_without_ends():
    run, _ = case_of("no-episode-ends")
    columns = run.metrics.columns
    episodes = np.array(columns["episodes"], float)
    episodes[:, 4:] = np.nan
    run = run._replace(metrics=run.metrics._replace(columns=columns | {"episodes": episodes}))
    assert "no-episode-ends" not in {x.name for x in findings(run)}


@dataclasses.dataclass(frozen=True)
class Paid(Walk):
    """Pays 0.75 for one action and takes as much for the other, and adds noise of 1."""

    limit: int = 200

    def step(self, key, state, action):
        state, obs, _, _, truncated = super().step(key, state, action)
        reward = 0.75 * (2.0 * action - 1.0) + jax.random.normal(jax.random.fold_in(key, 1))
        return state, obs, reward, jnp.zeros((), bool), truncated


def test_the_effect_of_actions_is_their_part_of_the_returns_deviation():
    config = Config(env=Paid(), num_envs=2, num_steps=16, num_minibatches=1, hidden_sizes=(8,))
    agent = Agent.of(config)
    state, begun = jax.jit(lambda key: (init(config, key), begin_episodes(key, agent.env, 32)))(jax.random.key(0))
    begun = begun._replace(hidden=agent.policy.initial_hidden(begun.obs))
    found = effect_of_actions(agent, state, begun)
    assert found == pytest.approx(0.6, abs=0.1)  # 0.75 / √(0.75² + 1²)
    with jax.enable_x64(True):
        assert effect_of_actions(agent, state, begun) == found


def test_actions_whose_effect_comes_later_or_of_which_one_is_valid_are_not_said_to_do_nothing():
    run, seen = case_of("actions-do-nothing")
    assert findings(run, seen._replace(action_effect=0.5)) == []
    assert [x.name for x in findings(run, seen._replace(one_valid_action=1.0))] == ["one-action"]


def test_returns_that_stay_at_the_top_are_no_finding():
    run, _ = case_of("stands-still")
    returns = np.minimum(run.metrics.columns["episode_return"], 190.0)  # reached by most rows
    columns = run.metrics.columns | {"episode_return": np.where(returns > 150.0, 190.0, returns)}
    assert findings(run._replace(metrics=run.metrics._replace(columns=columns))) == []


@pytest.mark.slow
def test_a_probe_of_a_run_in_an_environment_that_does_not(tmp_path, capsys):
    out = tmp_path / "run"
    config = Config(total_steps=64, num_envs=2, num_steps=16, num_minibatches=1, num_epochs=1, hidden_sizes=(8,))
    run_experiment(config, 2, out, options={"final_episodes": 2})
    assert diagnose(out, probing=True) == []
    assert front(["diagnose", str(out), "--probe"]) == 0
    assert "ppo on CartPole-v1, 2 seeds, 64 steps each: no rule finds anything wrong." in capsys.readouterr().out
    jax.clear_caches()


PLANTED = {  # a grid -> for each of its settings what should be among the first two; "": nothing is found
    "ppo learning_rate=2.5e-4,1e-9,1.0": ["", "policy-does-not-move", "steps-too-large"],
    "trpo max_kl=0.01,1e-7": ["", "steps-too-small"],
    "trpo damping=0.1,10000": ["", "damping-dominates"],
}


@pytest.mark.slow
@pytest.mark.parametrize("grid", PLANTED)
def test_faults_in_settings_are_named(grid, tmp_path):
    algo, axis = grid.split()
    flags = f"--algo {algo} --num-seeds 4 --total-steps 40000 --final-episodes 20 --quiet".split()
    assert front(["sweep", *flags, "--grid", axis, "--out", str(tmp_path / "it")]) == 0
    with (tmp_path / "it" / "results.csv").open(newline="") as file:
        directories = [row["directory"] for row in csv.DictReader(file)]
    found = [[finding.name for finding in diagnose(tmp_path / "it" / name)] for name in directories]
    for names, expected in zip(found, PLANTED[grid], strict=True):
        assert expected in names[:2] if expected else not names, found


def test_a_directory_without_a_run_is_refused(tmp_path, capsys):
    with pytest.raises(UsageError, match="is this a run directory"):
        diagnose(tmp_path)
    assert front(["diagnose", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
