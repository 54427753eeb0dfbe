"""Tables that take hours: how runs are scored, and that their commands are known."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import long_runs
import mujoco_table
import ppo_paper

from purejaxppo.cli.run import main
from purejaxppo.cli.settings import parse_settings
from purejaxppo.cli.sweep import SweepOptions
from purejaxppo.presets import settings_of
from purejaxppo.rundir.metrics import MetricsTable


def test_last_episodes() -> None:
    rng = np.random.default_rng(0)
    episodes = rng.integers(0, 9, (3, 40)).astype(float)
    episodes[2] = 0.0  # a seed none of whose episodes ends
    single = [[[float(rng.normal())] * int(n) for n in seed] for seed in episodes]
    returns = np.array([[np.mean(part) if part else np.nan for part in seed] for seed in single])
    table = MetricsTable([0, 1, 2], np.arange(40), np.arange(40), {"episodes": episodes, "episode_return": returns})
    for count in (1, 50, 100, 1000):
        expected = [np.mean([*itertools.chain(*seed)][-count:]) for seed in single[:2]]
        np.testing.assert_allclose(long_runs.last_episodes(table, count)[:2], expected)
    assert np.isnan(long_runs.last_episodes(table)[2])
    parts = [[np.mean([*itertools.chain(*seed[i : i + 8])]) for i in range(0, 40, 8)] for seed in single[:2]]
    np.testing.assert_allclose(np.array(long_runs.curve(table, 5)[:2], float), parts, atol=0.006)
    assert long_runs.curve(table, 5)[2] == [None] * 5


@pytest.mark.thorough
def test_rows_of_a_run(tmp_path: Path) -> None:
    small = "--num-seeds 2 --num-envs 2 --num-steps 16 --total-steps 64 --hidden-sizes 8 --final-episodes 1"
    batch = long_runs.Batch("CartPole", "CartPole-v1", f"--algo a2c {small}", {"": "a2c"})
    assert main([*batch.command[2:], "--out", str(tmp_path / "run"), "--quiet"]) == 0
    rows = long_runs.rows_of(batch, tmp_path / "run", batch.command)
    assert [(row["method"], row["seed"], row["env_steps"], row["failed"]) for row in rows] == [
        ("a2c", 0, 64, False),
        ("a2c", 1, 64, False),
    ]
    assert all(row["final"] >= 1 and row["last_100"] >= 1 for row in rows)


@pytest.mark.parametrize("stem", ["ppo_paper", "mujoco_table"])
@pytest.mark.thorough
def test_commands(stem: str) -> None:
    """Every batch's flags are known, and a sweep's directories are named as its methods expect."""
    batches = (
        [*ppo_paper.batches_of("Reacher"), *ppo_paper.batches_of(ppo_paper.SWITCHED[0])]
        if stem == "ppo_paper"
        else [
            long_runs.Batch("any", "", f"--algo {method} --total-steps 1000000", {"": method})
            for method in mujoco_table.METHODS
        ]
    )
    for batch in batches:
        flags = ["--env", "Pendulum-v1", *batch.flags.split()]
        config, _, _, chosen = parse_settings(flags, "test", "", SweepOptions())
        config.check()
        if "" not in batch.methods:
            labels = [",".join(f"{k}={v}" for k, v in own.items()) for own in chosen.settings(config, 0)]
            assert labels == [*batch.methods]


def test_settings_of_the_papers_table_are_the_same_in_all_tasks_and_those_of_its_rows_but_for_their_own() -> None:
    """No preset, which some algorithms have in some tasks, decides what is compared."""

    def settings(batch: long_runs.Batch) -> dict[str, object]:
        config, *_ = parse_settings(["--env", batch.env, *batch.flags.split()], "test", "", SweepOptions())
        return {name: str(x) for name, x in settings_of(config).items() if name != "env"}

    found: dict[str, list[dict[str, object]]] = {}
    for task in ppo_paper.TASKS:
        for batch in ppo_paper.batches_of(task):
            found.setdefault(batch.name.removeprefix(task), []).append(settings(batch))
    assert all(each == same[0] for same in found.values() for each in same)
    clip, adaptive, fixed, *_ = (same[0] for same in found.values())
    own = {"algo", "clip_eps", "dual_clip", "target_kl", "kl_coef", "kl_target", "adaptive"}
    for other in (adaptive, fixed):
        assert {name for name in clip.keys() | other.keys() if clip.get(name) != other.get(name)} <= own


def test_scores_are_0_for_random_and_1_for_the_best() -> None:
    rows = [{"task": "T", "method": m, "last_100": x} for m, x in (("a", -5.0), ("a", 15.0), ("b", 5.0), ("b", None))]
    found = ppo_paper.normalized(rows, {"T": -5.0})
    assert found["T", "a"].tolist() == [0.0, 1.0]
    assert found["T", "b"].tolist() == [0.5]


def test_what_chance_leaves_of_a_correlation() -> None:
    published = np.array([*ppo_paper.PAPER.values()])
    assert ppo_paper.attainable(published, 0.0).tolist() == [1.0, 1.0, 1.0]
    low, middle, high = ppo_paper.attainable(published, 100.0)  # of 11 ranks by chance: standard deviation 1/√10
    np.testing.assert_allclose((low, middle, high), (-1.96 / np.sqrt(10), 0.0, 1.96 / np.sqrt(10)), atol=0.03)
    low, middle, high = ppo_paper.shuffled(published)  # but for the lowest: of ten ranks by chance
    np.testing.assert_allclose((low, middle, high), (-0.23, 0.26, 0.73), atol=0.05)
    parts = [np.array([0.0, 0.5, 1.0]), np.array([10.0, 10.5, 11.0])]
    point, least, most = ppo_paper.iqm_over_tasks(parts)
    assert point == pytest.approx(5.5)
    assert 5.0 <= least < point < most <= 6.0  # pooled, a resample might lack a task
    few = {(task, method): np.array([0.0, 1.0, 2.0]) for task in "AB" for method in "xy"}
    assert ppo_paper.error_of_means(few, ["A", "B"], "xy") == pytest.approx(np.sqrt(1 / 3 + 1 / 3) / 2)
