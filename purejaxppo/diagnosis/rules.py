"""The rules, which stand as data in rules.toml."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from types import MappingProxyType

from purejaxppo.diagnosis import symptoms
from purejaxppo.diagnosis.case import Case, Symptom


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
        found: Callable[[Case, Mapping[str, float]], Symptom | None] = getattr(symptoms, self.name.replace("-", "_"))
        return found


def read_rules() -> list[Rule]:
    """In the order of the file."""
    text = resources.files("purejaxppo.diagnosis").joinpath("rules.toml").read_text("utf-8")
    return [Rule(name=name, **about | {"tries": tuple(about["tries"])}) for name, about in tomllib.loads(text).items()]
