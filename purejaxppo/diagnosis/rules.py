"""The rules, which stand as data in rules.toml."""

import dataclasses
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from types import MappingProxyType
from typing import Any

from purejaxppo.algorithms import ALGORITHMS, hyperparameters
from purejaxppo.algorithms.members import OF_GRADIENTS
from purejaxppo.config import Config
from purejaxppo.diagnosis import probe_symptoms, symptoms
from purejaxppo.diagnosis.case import Case, Symptom
from purejaxppo.rundir.contents import RunContents
from purejaxppo.types import traits_of

# `raise --x to 2`, `--no-x`, `--x choice`: which way, whether it is switched off, the flag, how far, which choice
_ADVICE = re.compile(r"(?:(raise|lower) )?--(no-)?([a-z-]+)(?: to (\d[\d.]*))?(?: ([\w-]+))?")


@dataclass(frozen=True)
class Rule:
    """One thing that may be wrong; see the head of rules.toml."""

    name: str  # also the anchor of its section in the documentation
    title: str
    means: str
    tries: tuple[str, ...]
    weight: float
    source: str = "benchmarks/diagnosis.py"
    thresholds: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    share: float = 0.5
    always: bool = False

    @property
    def find(self) -> Callable[[Case, Mapping[str, float]], Symptom | None]:
        """A case and the thresholds ↦ what is seen, or None."""
        name = self.name.replace("-", "_")
        where = symptoms if hasattr(symptoms, name) else probe_symptoms
        found: Callable[[Case, Mapping[str, float]], Symptom | None] = getattr(where, name)
        return found


def read_rules() -> list[Rule]:
    """In the order of the file."""
    text = resources.files("purejaxppo.diagnosis").joinpath("rules.toml").read_text("utf-8")
    return [Rule(name=name, **about | {"tries": tuple(about["tries"])}) for name, about in tomllib.loads(text).items()]


def fits(attempt: str, run: RunContents) -> bool:
    """Whether a line of `tries` is of use in a run: its method has the setting, whose value is another so far."""
    found = _ADVICE.search(attempt)
    if not found:
        return True
    way, off, flag, to, choice = found.groups()
    name, lacking = flag.replace("-", "_"), {*hyperparameters()}
    kind: Any = ALGORITHMS.get(run.algo)
    own = {field.name: field for owner in (Config, kind) if owner for field in dataclasses.fields(owner)}
    lacking -= own.keys() if kind else run.settings.keys()  # an update rule of the user's own is not among ours
    if kind and traits_of(kind).evolves:
        lacking |= {*OF_GRADIENTS}
    value = run.settings.get(name, "")
    if name in lacking or value in (choice, "false" if off else "true"):
        return False
    interval = own[name].metadata.get("interval") if name in own else ""
    if not way or not interval:
        return True
    low, high = interval[1:-1].split(",")
    try:
        number, end = float(value), float(to or (high if way == "raise" else low))
    except ValueError:  # not known
        return True
    return number < end if way == "raise" else number > end
