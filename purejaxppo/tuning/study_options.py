"""What a study is, beside the settings that it varies."""

import dataclasses
import importlib.util
from typing import Any

import jax

from purejaxppo.config import Config
from purejaxppo.consistency import fixed_numbers
from purejaxppo.errors import UsageError
from purejaxppo.fields import check_fields, static
from purejaxppo.parallel.runs import best_vmap_size
from purejaxppo.presets import with_settings
from purejaxppo.stages import parse_stages
from purejaxppo.sweeps.axes import refuse_overruled, traced
from purejaxppo.tuning.rungs import PRUNERS, Rungs
from purejaxppo.tuning.space import Space, combinations

METHODS = ("search", "pbt")
SAMPLERS = ("tpe", "random", "cmaes", "sobol")


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """How many trials, how they are drawn, and when they stop."""

    method: str = static(
        "search", "search for constant settings, or pbt: a population whose settings change", choices=METHODS
    )
    trials: int = static(64, "settings that are tried at most; in pbt, members", interval="[1, 1e5]")
    seeds_per_trial: int = static(4, "seeds of each trial; its score is their mean return", interval="[1, 1e5]")
    budget: int = static(
        100_000_000,
        "environment steps of all training, the final runs' too, and of the search's evaluations",
        interval="[1, 1e15]",
    )
    sampler: str = static("tpe", "what draws settings, of Optuna's", choices=SAMPLERS)
    pruner: str = static(
        "halving",
        "which trials stop early: all but the best 1 in --halving-factor, or those below the median",
        choices=PRUNERS,
    )
    rungs: int | None = static(
        None,
        "times that a trial is judged, the last at its end; not for --pruner none",
        interval="[1, 100]",
        usual="3, in pbt 10",
    )
    halving_factor: int = static(
        2, "of --pruner halving: one in so many goes on from each rung; rungs are so far apart", interval="[2, 100]"
    )
    places: int | None = static(
        None,
        "trials under way at once, but in pbt; the sampler learns when all have come to a rung",
        interval="[1, 1e5]",
        usual="16, on CPUs 4 or what one program trains",
    )

    def check(self) -> None:
        """Raises: UsageError: a value that cannot be, or a package is missing."""
        check_fields(self)
        need = {"tpe": (), "random": (), "cmaes": ("cmaes",), "sobol": ("scipy",)}[self.sampler]
        for package in ("optuna", *need):
            if importlib.util.find_spec(package) is None:
                raise UsageError(f"tune needs the package {package}; pip install 'purejaxppo[tune]'.")

    @property
    def rung_count(self) -> int:
        """How often a trial is judged."""
        return self.rungs or (10 if self.method == "pbt" else 3)

    def final_steps(self, config: Config, space: Space, seeds: int) -> int:
        """What the final runs train for at most: the best settings and the study's own, on so many seeds each."""
        widest = max(with_settings(config, own).env_steps for own in combinations(config, space))
        return seeds * (widest + config.env_steps)

    def ladder(self, config: Config, space: Space, reserved: int) -> Rungs:
        """The rungs of the study.

        Args:
            reserved: steps of the budget that are for the final runs.

        Raises:
            UsageError: the rungs do not fit the updates, or the budget does not fit them.
        """
        widest = self.widest_update(config, space)
        pruner = "median" if self.method == "pbt" else self.pruner  # whose rungs are evenly spaced
        rungs = Rungs.of(pruner, self.rung_count, self.halving_factor, config.total_steps, widest)
        first, whole = (self.seeds_per_trial * rungs.env_steps(k, widest) for k in (1, len(rungs.steps)))
        if self.method == "pbt":
            check_population(config, space, self, reserved)
        if self.budget - reserved < whole:
            raise UsageError(
                f"budget = {self.budget:,} is too small: one trial of {self.seeds_per_trial} seeds takes {first:,} "
                f"steps to its first rung and {whole:,} to its last, and the final runs take {reserved:,}; raise "
                "--budget, or lower --total-steps, --seeds-per-trial or --num-seeds."
            )
        return rungs

    @staticmethod
    def widest_update(config: Config, space: Space) -> int:
        """The most steps per seed and update that a trial has."""
        return max(with_settings(config, own).steps_per_update for own in combinations(config, space))

    def lot_size(self, config: Config, devices: list[jax.Device]) -> int:
        """Trials that one program trains: on a CPU as many as keep its cores busy, elsewhere all places."""
        at_once = best_vmap_size(config.on_host, devices)
        most = self.trials if self.method == "pbt" else min(self.places or 16, self.trials)
        return most if at_once is None else max(1, min(most, -(-at_once * len(devices) // self.seeds_per_trial)))

    def places_of(self, lot_size: int) -> int:
        """Trials under way at once, where one program trains so many."""
        return self.places or max(4, lot_size)

    def search_seeds(self, seeds: list[int]) -> list[int]:
        """The seeds of every trial: none of `seeds`, which the best settings are judged by."""
        first = max(seeds) + 1
        if first + self.seeds_per_trial > 2**32:
            raise UsageError(f"seed: those of the trials come after {first - 1:,} and must be below 2³²; lower --seed.")
        return list(range(first, first + self.seeds_per_trial))


def check_population(config: Config, space: Space, options: StudyOptions, reserved: int) -> None:
    """Raises: UsageError: a static setting in the space, one member alone, or a budget that is too small for all."""
    for name in space:
        if not traced(config, name) or name in fixed_numbers(config.algo):
            why = "cannot change" if traced(config, name) else "is static: it cannot change"
            raise UsageError(f"space: {name} {why} while a run learns; take it out, or leave --method at search.")
    members, seeds = options.trials, options.seeds_per_trial
    if members < 2:
        raise UsageError(f"trials = {members}: a population has at least 2 members; pass --trials 16, say.")
    if options.budget - reserved < (need := members * seeds * config.env_steps):
        raise UsageError(
            f"budget = {options.budget:,} is too small: {members} members of {seeds} seeds take {need:,} steps to "
            f"their last rung, and the final runs {reserved:,}; raise --budget, or lower --trials or --total-steps."
        )


def check_unused(options: StudyOptions, config: Config, space: Space) -> None:
    """Raises: UsageError: a choice that would do nothing. One at its default cannot be told from one left out."""
    reasons = {
        ("pbt", ""): (("pruner", "halving_factor", "places"), "no member stops early and all are trained at once"),
        ("search", "none"): (("rungs", "halving_factor"), "each trial is trained to its end"),
        ("search", "median"): (("halving_factor",), "trials below the median stop"),
    }
    pruner = "" if options.method == "pbt" else options.pruner
    names, why = reasons.get((options.method, pruner), ((), ""))
    cause = f"pruner = {pruner!r}" if pruner else f"method = {options.method!r}"
    for name in names:
        if (value := getattr(options, name)) != getattr(StudyOptions, name):
            raise UsageError(f"{name} = {value!r} would do nothing with {cause}, where {why}; leave it out.")
    staged = {name for stage in parse_stages(config.stages) for name in stage.numbers}
    if options.method == "pbt" and staged:
        raise UsageError("stages would do nothing with method = 'pbt', which finds them; leave them out.")
    for name in staged & space.keys():
        raise UsageError(f"space: {name} is set by stages, so that what is drawn does not stay; take it out of one.")
    statics = combinations(config, space)
    refuse_overruled([with_settings(config, own) for own in statics], statics)


def check_study(config: Config) -> None:
    """Raises: UsageError: a config that no study can be of."""
    config.check()
    if config.on_host:
        raise UsageError(
            f"env = {config.env_name!r} is stepped on the host, where trials cannot share a program; use sweep instead."
        )


def as_dict(options: StudyOptions) -> dict[str, Any]:
    """The options alone, without what a subclass adds."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(StudyOptions)}
