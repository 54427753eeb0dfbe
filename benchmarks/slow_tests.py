"""Runs the tests that CI leaves out, and keeps what came of each in benchmarks/results/slow_tests.json.

python benchmarks/slow_tests.py                        # all, about an hour on 2 cores
python benchmarks/slow_tests.py tests/test_scaling.py  # those of some files; other results are kept
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from purejaxppo.rundir.record import versions

RESULTS = Path(__file__).parent / "results" / "slow_tests.json"


class Results:
    """A plugin of pytest: what came of each test, written at once, so that an end before the last one loses nothing."""

    def __init__(self, path: Path) -> None:
        self.path, self.versions = path, versions()
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            about = {"outcome": report.outcome, "seconds": round(report.duration, 1), "versions": self.versions}
            self.found[report.nodeid] = about
            self.path.write_text(json.dumps(dict(sorted(self.found.items())), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(pytest.main(["-m", "slow", *(sys.argv[1:] or ["tests"])], [Results(RESULTS)]))
