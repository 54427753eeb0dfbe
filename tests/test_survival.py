"""Runs that are killed, stopped, or whose disk is full: what is resumed ends as if nothing had happened.

The counts here are small; `python benchmarks/survival.py --kills 200 --stops 50 --full-disks 20` is the whole of it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import QUICK

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "survival.py"
PROMISES = BENCHMARK.with_name("survival_promises.py")


def survival(out, *flags, **environment):
    command = [sys.executable, BENCHMARK, *flags, "--out", out]
    environment = os.environ | environment
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(out.read_text())


FEW = ("--algorithms", "a2c", "--updates", "40")
QUICKLY = " ".join(f"--{name}={str(value).lower()}" for name, value in QUICK.items())


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    killed = survival(tmp_path / "counts.json", "--kills", "1", "--stops", "0", *FEW, XLA_FLAGS=QUICKLY)["kills"]
    assert killed["identical"] == killed["runs"] == 1


@pytest.mark.thorough
def test_a_stopped_run_resumes_bit_for_bit(tmp_path):
    stopped = survival(tmp_path / "counts.json", "--kills", "0", "--stops", "1", *FEW, XLA_FLAGS=QUICKLY)["stops"]
    assert stopped["identical"] == stopped["exit code 128 + n"] == stopped["stopped"] == 1
    assert stopped["slowest_seconds"] < 10


@pytest.mark.slow
def test_the_whole_of_it(tmp_path):
    counts = survival(tmp_path / "counts.json", "--kills", "200", "--stops", "50", "--full-disks", "20")
    for name, total in (("kills", "runs"), ("stops", "stopped"), ("full disks", "runs")):
        assert counts[name]["identical"] == counts[name][total]


@pytest.mark.slow
def test_what_is_promised_of_interruptions(tmp_path):
    """Each trial says whether it held; the exit code is 0 only if all have."""
    out = tmp_path / "promises.json"
    command = [sys.executable, PROMISES, "--restarts", "20", "--stops", "36", "--sweeps", "3", "--out", out]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {name: x["held"] for name, x in json.loads(out.read_text())["summary"].items()} == {
        "restarts": 20,
        "stops": 36,
        "sweeps": 3,
    }
