"""Rules applied to a run, worst first, and what they say in words."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from purejaxppo.diagnosis.case import Case
from purejaxppo.diagnosis.probe import ProbeResult, probe
from purejaxppo.diagnosis.rules import Rule, fits, read_rules
from purejaxppo.errors import plural
from purejaxppo.policy.load import load_all, seed_index
from purejaxppo.rundir.contents import RunContents, read_contents
from purejaxppo.rundir.record import env_again, read_record

SITE = "https://purejaxppo.github.io/purejaxppo/guides/debug/"


class Finding(NamedTuple):
    """What is probably wrong."""

    name: str  # of the rule
    title: str
    means: str
    evidence: str
    seeds: list[int]  # in which it is seen
    update: int | None  # when, or from when on
    tries: tuple[str, ...]
    link: str  # to its section in the documentation
    weight: float

    def where(self, count: int) -> str:
        """ "all 8 seeds", "seed 3", "seeds 0, 4; update 17"."""
        some = f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds[:8]))}"
        some += ", …" if len(self.seeds) > 8 else ""
        which = f"all {plural(count, 'seed')}" if len(self.seeds) == count > 1 else some
        return which if self.update is None else f"{which}; update {self.update:,}"


def diagnose(directory: str | Path, probing: bool = False, env: Any = None) -> list[Finding]:
    """What is probably wrong with a run, worst first; empty if no rule finds anything.

    It reads config.json, metrics.csv and summary.json, of a run that has ended or is under way. Nothing is said of how
    a run develops before metrics.csv has 8 rows.

    Args:
        probing: look at the environment, too: a fresh policy acts in it for a few hundred steps, and the best seed's.
        env: the environment, again, if it is one of your own: a file is not trusted to run code. Only for `probing`.

    Raises:
        UsageError: there is no run, or it is damaged.
        HostEnvironmentError: the environment failed while it was probed.
    """
    contents = read_contents(Path(directory))
    return findings(contents, probe_run(Path(directory), env) if probing else None)


def findings(run: RunContents, probed: ProbeResult | None = None) -> list[Finding]:
    """What the rules find in what was read."""
    case = Case(run, probed)
    found = [finding for rule in read_rules() if (finding := _apply(rule, case))]
    if len(found) > 1:  # something says why
        found = [finding for finding in found if finding.name != "no-progress"]
    return sorted(found, key=lambda finding: -finding.weight)


def _apply(rule: Rule, case: Case) -> Finding | None:
    with np.errstate(invalid="ignore"):
        symptom = rule.find(case, rule.thresholds)
    if symptom is None:
        return None
    seen = symptom.seeds if rule.always else symptom.seeds & ~case.learnt
    share = seen.mean()
    if not seen.any() or share < rule.share:
        return None
    with np.errstate(invalid="ignore"):  # None of a rule that compares seeds with each other
        symptom = rule.find(case.only(seen), rule.thresholds) or symptom
    seeds = [seed for seed, has in zip(case.run.seeds, seen, strict=True) if has]
    tries = tuple(attempt for attempt in rule.tries if fits(attempt, case.run))
    link, weight = f"{SITE}#{rule.name}", rule.weight * (0.5 + 0.5 * share)
    return Finding(rule.name, rule.title, rule.means, symptom.evidence, seeds, symptom.update, tries, link, weight)


def probe_run(directory: Path, env: Any = None) -> ProbeResult:
    """Look at a run's environment, with its best seed's policy if a checkpoint is there. Raises as `diagnose`."""
    record = read_record(directory, env)
    trained = None
    if any((directory / "checkpoints").glob("[0-9]*")):
        snapshot, states = load_all(record)
        best = seed_index(record, snapshot, "best")
        trained = jax.tree.map(lambda x: x[best], states)
    return probe(record.config, trained)


def in_short(found: list[Finding], directory: Path, env: str = "") -> list[str]:
    """Two lines at most, for the end of a run; none if nothing was found. `env` is named if it is the user's code."""
    if not found:
        return []
    titles = "; ".join(f"{finding.title.lower()} ({finding.evidence})" for finding in found[:2])
    command = f"purejaxppo diagnose {shlex.quote(str(directory))} {probe_flags(env)}"
    return [f"diagnosis: {titles}", f"what to try: {command}"]


def probe_flags(env: str) -> str:
    """What makes the command look at an environment, which is named if it is the user's code."""
    return f"--probe{env_again(env)}"


def in_words(found: list[Finding], run: RunContents) -> Iterable[str]:
    """Lines for a terminal."""
    what = f"{run.algo} on {run.env}, {plural(len(run.seeds), 'seed')}, {run.env_steps:,} steps each"
    if not found:
        yield f"{what}: no rule finds anything wrong."
        return
    yield f"{what}: {plural(len(found), 'finding')}{', worst first' if found[1:] else ''}."
    for i, finding in enumerate(found, 1):
        yield f"\n{i}. {finding.title} ({finding.where(len(run.seeds))})"
        yield f"   {finding.means}"
        yield f"   evidence: {finding.evidence}"
        for attempt in finding.tries:
            yield f"   try: {attempt}"
        yield f"   {finding.link}"
