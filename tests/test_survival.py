"""Runs that are killed, stopped, or whose disk is full: what is resumed ends as if nothing had happened.

The counts here are small; `python benchmarks/survival.py --kills 200 --stops 50 --full-disks 20` is the whole of it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from purejaxppo.cli.run import main

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "survival.py"
FLAGS = "--algo a2c --num-envs 2 --num-steps 16 --total-steps 3200 --num-minibatches 2 --hidden-sizes 8 --num-seeds 3"


def survival(out, *flags):
    command = [sys.executable, BENCHMARK, *flags, "--out", out]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(out.read_text())


def test_killed_and_stopped_runs_resume_bit_for_bit(tmp_path):
    few = "--kills 3 --stops 1 --algorithms trpo --updates 40"
    counts = survival(tmp_path / "counts.json", *few.split())
    killed, stopped = counts["kills"], counts["stops"]
    assert killed["identical"] == killed["runs"] == 3
    assert stopped["identical"] == stopped["exit code 128 + n"] == stopped["stopped"] == 1
    assert stopped["slowest_seconds"] < 10


@pytest.mark.slow
def test_the_whole_of_it(tmp_path):
    counts = survival(tmp_path / "counts.json", "--kills", "200", "--stops", "50", "--full-disks", "20")
    for name, total in (("kills", "runs"), ("stops", "stopped"), ("full disks", "runs")):
        assert counts[name]["identical"] == counts[name][total]


def test_a_file_that_cannot_be_written_ends_the_run_in_one_line_and_it_can_go_on(tmp_path):
    """A limit on the size of files stands in for a full disk, which only root may make."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "purejaxppo.run", *FLAGS.split(), "--checkpoint-interval", "20", "--out", str(out)]
    limited = ["bash", "-c", 'ulimit -f 20; exec "$@"', "bash", *command]
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # whose files would be cut, too
    stopped = subprocess.run(limited, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert stopped.returncode == 1
    assert stopped.stderr.startswith("error: ")
    assert stopped.stderr.count("\n") == 1
    assert f"--resume {out}" in stopped.stderr
    assert not (out / "summary.json").exists()
    assert [path for path in out.rglob("*") if path.name.endswith(".saving")] == []
    assert main(["--resume", str(out), "--quiet"]) == 0
    assert json.loads((out / "summary.json").read_text())["env_steps"] == 3200
