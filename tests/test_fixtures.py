"""What older versions left on disk is still read, acts as it did, and can go on."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import by_cost

from purejaxppo.agent import Agent
from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.cli.run import main
from purejaxppo.policy.load import load

FIXTURES = {path.name: path for path in sorted((Path(__file__).parent / "fixtures").glob("checkpoint-*"))}
ANNEALED = [
    name
    for name, path in FIXTURES.items()
    if json.loads((path / "config.json").read_text())["settings"]["anneal_learning_rate"]
]
GO_ON = [name for name in FIXTURES if name not in ANNEALED]


def test_there_is_one_of_each_algorithm_and_they_are_small():
    assert {json.loads((path / "config.json").read_text())["settings"]["algo"] for path in FIXTURES.values()} == {
        *ALGORITHMS
    }
    for path in FIXTURES.values():
        files = [file for file in path.rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in files) < 80_000
        own = path.name.encode()  # a path on the machine that made it would end in this
        assert not any(own in file.read_bytes() for file in files)


@pytest.mark.parametrize("name", by_cost(FIXTURES, [x for x in FIXTURES if x.endswith(("-trpo", "-cem"))]))
def test_it_acts_as_it_did(name):
    for expected in json.loads((FIXTURES[name] / "expected.json").read_text()):
        trained = load(FIXTURES[name], expected["seed"])
        assert (trained.seed, trained.env_steps) == (expected["seed"], expected["env_steps"])
        obs = np.asarray(expected["obs"], np.float32)
        distribution, _ = Agent.of(trained.config).make_policy(trained.state)(obs)
        np.testing.assert_allclose(trained.act(obs), expected["action"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(distribution.log_prob(distribution.mode()), expected["log_prob"], rtol=1e-4)
        np.testing.assert_allclose(distribution.entropy(), expected["entropy"], rtol=1e-4)
        np.testing.assert_allclose(trained.act(obs[0]), expected["action"][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FIXTURES)
def test_reading_it_changes_nothing(name, tmp_path):
    copy = shutil.copytree(FIXTURES[name], tmp_path / "run")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    load(copy)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", by_cost(GO_ON, (), GO_ON[:1]))
def test_it_goes_on(name, tmp_path):
    copy = shutil.copytree(FIXTURES[name], tmp_path / "run")
    before = (copy / "metrics.csv").read_text().splitlines()
    assert main(["--resume", str(copy), "--total-steps", "128", "--devices", "1", "--quiet"]) == 0
    after = (copy / "metrics.csv").read_text().splitlines()
    assert after[: len(before)] == before
    rows = list(csv.DictReader(after))
    assert [int(row["env_steps"]) for row in rows] == [steps for steps in (32, 64, 96, 128) for _ in range(2)]
    assert json.loads((copy / "summary.json").read_text())["env_steps"] == 128
    assert load(copy).env_steps == 128


@pytest.mark.parametrize("name", ANNEALED)
def test_it_does_not_go_on_for_longer_where_the_learning_rate_is_annealed(name, tmp_path, capsys):
    copy = shutil.copytree(FIXTURES[name], tmp_path / "run")
    assert main(["--resume", str(copy), "--total-steps", "128", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "annealed over it" in error
    assert error.count("\n") == 1
