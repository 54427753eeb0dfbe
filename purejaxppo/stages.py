"""Numbers that change during a run, at environment steps that are given: `20480 learning_rate=1e-4 gamma=0.999`."""

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from purejaxppo.errors import UsageError
from purejaxppo.fields import check_field, did_you_mean, is_number, whole_number

# read before the first update, or part of the policy; and of the algorithms, which others than ours may read later
FIXED_OF_CONFIG = ("observation_clip", "desired_kl", "log_std_init")
FIXED = (*FIXED_OF_CONFIG, "kl_coef", "initial_std", "initial_sigma")
MOST_STAGES = 1000


class Stage(NamedTuple):
    """From an environment step of each seed on, these numbers hold."""

    step: int
    numbers: dict[str, float]


def parse_stages(texts: Sequence[str]) -> list[Stage]:
    """Raises: UsageError: one is not `STEP field=value …`."""
    found = []
    for text in texts:
        try:
            step, *changes = text.split()
            numbers = {name.replace("-", "_"): float(x) for name, x in (change.split("=") for change in changes)}
            found.append(Stage(whole_number(step), numbers))
        except (AttributeError, ValueError) as error:
            raise UsageError(
                f"stages: {text!r:.80} is not STEP field=value …; pass '20480 learning_rate=1e-4', say."
            ) from error
    return found


def check_stages(texts: Any, owners: Sequence[Any], fixed: Collection[str]) -> None:
    """Hold stages against the fields of the config and the algorithm, their `owners`, but those that are `fixed`.

    Raises: UsageError.
    """
    if not isinstance(texts, tuple):
        raise UsageError(f"stages = {texts!r:.80} must be a tuple of texts, 'STEP field=value …' each.")
    if len(texts) > MOST_STAGES:
        raise UsageError(f"stages: {len(texts):,} are more than {MOST_STAGES:,}; leave some out.")
    stages = parse_stages(texts)
    fields = {field.name: (field, owner) for owner in owners for field in dataclasses.fields(owner)}
    numbers = [name for name, (field, _) in fields.items() if is_number(field) and name not in fixed]
    for before, stage in zip([None, *stages], stages, strict=False):
        if stage.step < 0 or (before and stage.step <= before.step):
            raise UsageError(
                f"stages: step {stage.step:,} must be ≥ 0 and come after the one before; put them in order."
            )
        if not stage.numbers:
            raise UsageError(f"stages: nothing changes at step {stage.step:,}; take it out.")
        for name, value in stage.numbers.items():
            if name not in numbers:
                hint = did_you_mean(name, numbers) or f"there are: {', '.join(numbers)}."
                raise UsageError(f"stages: {name!r:.40} is no number that can change during a run; {hint}")
            if math.isnan(value):
                raise UsageError(f"stages: {name} = nan is no number; take it out.")
            field, owner = fields[name]
            check_field(field, value, getattr(owner, name))
