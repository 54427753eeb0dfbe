"""The rules that a probe of the environment alone can see, as in `symptoms.py`."""

from purejaxppo.diagnosis.case import Case, Symptom, span
from purejaxppo.diagnosis.symptoms import Limits, seen


def actions_do_nothing(case: Case, at: Limits) -> Symptom | None:
    if case.probe is None or case.probe.actions_matter is not False:
        return None
    if case.probe.action_effect > 0 or case.probe.one_valid_action > at["one_valid"]:  # later on, or none was tried
        return None
    return seen(case.all(), "other actions in the same states gave the same observations and rewards")


def reward_ignores_actions(case: Case, at: Limits) -> Symptom | None:
    if case.probe is None or case.probe.actions_matter is False or not case.probe.action_effect < at["share"]:
        return None
    effect = 100 * case.probe.action_effect
    return seen(case.all(), f"from the same states, actions account for {effect:.2g}% of the returns' deviation")


def observations_constant(case: Case, at: Limits) -> Symptom | None:
    if case.probe is None or case.probe.observation_std is None or (case.probe.observation_std > 1e-6).any():
        return None
    return seen(case.all(), "no entry of an observation ever changed")


def observation_scale(case: Case, at: Limits) -> Symptom | None:
    if case.probe is None or case.probe.observation_std is None or case.is_set("normalize_observations"):
        return None
    std = case.probe.observation_std[case.probe.observation_std > 1e-6]
    if not std.size or (std.max() < at["high"] and std.max() > at["low"]):
        return None
    return seen(case.all(), f"standard deviations of an observation's entries: {span(std)}")


def not_finite(case: Case, at: Limits) -> Symptom | None:
    if case.probe is None or not case.probe.not_finite:
        return None
    return seen(case.all(), f"{case.probe.not_finite} of the probe held NaN or infinity")


def not_reproducible(case: Case, at: Limits) -> Symptom | None:
    if case.probe is None or case.probe.reproducible is not False:
        return None
    return seen(case.all(), "the same key, state and action gave another step")


def actions_at_bounds(case: Case, at: Limits) -> Symptom | None:
    if case.probe is None or case.probe.at_bounds is None or case.probe.at_bounds < at["share"]:
        return None
    return seen(case.all(), f"{case.probe.at_bounds:.0%} of the trained policy's actions lie at or beyond a bound")
