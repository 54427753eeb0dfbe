"""A study's course: what is trained next, given all scores so far.

It depends on nothing else. So a study that was interrupted is brought back by telling it the scores that it had before,
and no state of a sampler need be kept.
"""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from purejaxppo.config import Config
from purejaxppo.presets import with_settings
from purejaxppo.sweeps.axes import Settings, traced
from purejaxppo.sweeps.plan import batches
from purejaxppo.tuning.rungs import Rungs
from purejaxppo.tuning.space import Dimension, Space, label_of, settings_at
from purejaxppo.tuning.study_options import StudyOptions

RUNNING, STOPPED, FINISHED, FAILED = "running", "stopped", "finished", "failed"


@dataclasses.dataclass
class Trial:
    """Settings that are tried."""

    number: int
    settings: Settings
    config: Config
    static: str  # of its settings: trials of which it is equal share a program
    asked: Any  # optuna's own Trial
    status: str = RUNNING
    scores: list[float] = dataclasses.field(default_factory=list)  # at each rung: mean return over seeds
    env_steps: int = 0  # of all seeds, evaluations included
    own: "Trial | None" = None  # in a population: the same member in the generation before
    parent: "Trial | None" = None  # likewise: whose networks it goes on with, which is `own` if it was good enough

    @property
    def rung(self) -> int:
        """The next."""
        return len(self.scores)

    @property
    def score(self) -> float:
        """The last, NaN before the first rung."""
        return self.scores[-1] if self.scores else math.nan


class Lot(NamedTuple):
    """Trials that are trained together, as one program, to a rung."""

    trials: list[Trial]
    rung: int


class Search:
    """Trials, drawn by Optuna's sampler and stopped at rungs, within a budget of environment steps."""

    def __init__(
        self, config: Config, space: Space, options: StudyOptions, rungs: Rungs, lot_size: int, seed: int
    ) -> None:
        import optuna

        self.config, self.space, self.options, self.rungs = config, space, options, rungs
        self.lot_size, self.seed = lot_size, seed
        with quiet_optuna():
            sampler = _sampler(options, seed)
            self._tpe = sampler if options.sampler == "tpe" else None
            # it is given what TPE has drawn; a population begins at random
            drawn_by = optuna.samplers.RandomSampler(seed=seed) if self._tpe else sampler
            self.study = optuna.create_study(direction="maximize", sampler=drawn_by)
        self._scored: Any = None  # the study as TPE sees it, see `_as_scored`
        self._over: dict[int, Any] = {}  # trials in it that have ended
        self.trials: list[Trial] = []
        self.env_steps = 0  # of all trials
        self._distributions = {x.parameter(name): _distribution(x) for name, x in space.items()}
        self._statics = [name for name in space if not traced(config, name)]
        self._waiting: list[Lot] = []
        self._trained: list[Trial] = []  # of the wave under way, not judged yet
        self._dearest = 0  # evaluation of a trial so far, in steps

    @property
    def best(self) -> Trial | None:
        """Of the trials that came furthest, the one with the highest score; None if none has one."""
        scored = [trial for trial in self.trials if math.isfinite(trial.score)]
        return max(scored, key=lambda trial: (trial.rung, trial.score, -trial.number), default=None)

    def sources(self, trial: Trial) -> tuple[int, int]:
        """The trials whose states a trial goes on from: episodes and key from the first, all else from the second."""
        own, parent = trial.own or trial, trial.parent or trial
        return own.number, parent.number

    @property
    def needed(self) -> set[int]:
        """The trials whose states are still to be gone on from."""
        last = len(self.rungs.steps)
        return {trial.number for trial in self.trials if trial.status == RUNNING and 0 < trial.rung < last}

    def next_lot(self) -> Lot | None:
        """What is to be trained now; None when all trials have ended, or the budget is spent."""
        while True:
            while self._waiting:
                lot = self._waiting.pop(0)
                if affordable := self._affordable(lot.trials):
                    return Lot(affordable, lot.rung)
            self._judge()
            self._fill()
            running = [trial for trial in self.trials if trial.status == RUNNING]
            self._waiting = self._lots(self._affordable(sorted(running, key=_leading)))
            if not self._waiting:
                for trial in running:  # the budget is spent
                    self._end(trial, STOPPED if math.isfinite(trial.score) else FAILED)
                return None

    def tell(self, lot: Lot, scores: np.ndarray, evaluation_steps: np.ndarray) -> None:
        """What came of the lot that `next_lot` gave: mean returns over seeds, and steps of all seeds and episodes."""
        for trial, score, steps in zip(lot.trials, scores, evaluation_steps, strict=True):
            spent = self._training_steps(trial, trial.rung + 1) + int(steps)
            trial.env_steps += spent
            self.env_steps += spent
            trial.scores.append(float(score))
            self._dearest = max(self._dearest, int(steps))
            self._trained.append(trial)

    def _judge(self) -> None:
        """At the end of a wave: tell the study, in the order of the trials, and stop those that are to stop."""
        last = len(self.rungs.steps)
        trained, self._trained = sorted(self._trained, key=lambda trial: trial.number), []
        for trial in trained:
            rivals = {x.number: x.scores[trial.rung - 1] for x in self.trials if x.rung >= trial.rung}
            if math.isfinite(trial.score):
                trial.asked.report(trial.score, self.rungs.steps[trial.rung - 1])
            if not math.isfinite(trial.score):
                self._end(trial, FAILED)
            elif trial.rung == last:
                self._end(trial, FINISHED)
            elif not self.rungs.goes_on(trial.number, rivals):
                self._end(trial, STOPPED)

    def _end(self, trial: Trial, status: str) -> None:
        trial.status = status
        with quiet_optuna():
            self.study.tell(trial.asked, *outcome(trial))

    def _fill(self) -> None:
        """Give free places to new trials, as long as at least one trial can still be trained to its end.

        So many of them as one program trains have the same static settings.
        """
        if self._tpe:
            self._scored = self._as_scored()
        asked = 0
        while len(self.trials) < self.options.trials and self._place_is_free():
            fixed = {name: self.trials[-1].settings[name] for name in self._statics} if asked % self.lot_size else {}
            self._ask(fixed)
            asked += 1

    def _place_is_free(self) -> bool:
        widest, last = self.options.widest_update(self.config, self.space), len(self.rungs.steps)
        first, whole = (
            self.options.seeds_per_trial * self.rungs.env_steps(k, widest) + self._dearest for k in (1, last)
        )
        running = [trial for trial in self.trials if trial.status == RUNNING]
        reserve = 0 if any(trial.status == FINISHED for trial in self.trials) else whole - first
        if leader := self._leader:
            reserve = self._to_the_end(leader) - self._cost(leader)
        need = sum(map(self._cost, running)) + first + reserve
        places = self.options.places_of(self.lot_size)
        return len(running) < places and self.env_steps + need <= self.options.budget

    def _ask(self, fixed: Settings) -> None:
        drawn = {self.space[name].parameter(name): self.space[name].drawn(x) for name, x in fixed.items()}
        with quiet_optuna():
            for study in (self._scored, self.study) if self._scored else (self.study,):
                if drawn:
                    study.enqueue_trial(drawn)
                asked = study.ask(self._distributions)
                drawn = asked.params
        settings = settings_at(self.space, asked.params)
        static = repr([settings[name] for name in self._statics])
        config = with_settings(self.config, settings)
        self.trials.append(Trial(asked.number, settings, config, static, asked))

    def _as_scored(self) -> Any:
        """The study, but trials under way that have come to a rung are there as if they had ended at it.

        TPE takes all trials under way for bad ones, as it does not know them. Of these it would be the best so far.
        """
        import optuna

        with quiet_optuna():
            study = optuna.create_study(direction="maximize", sampler=self._tpe)
            for trial in self.trials:
                shown = self._over.get(trial.number) or self._shown(trial)
                if trial.status != RUNNING:
                    self._over[trial.number] = shown
                study.add_trial(shown)
        return study

    def _shown(self, trial: Trial) -> Any:
        from optuna.trial import TrialState, create_trial

        value, state = outcome(trial)
        known = dict(zip(self.rungs.steps, trial.scores, strict=False))
        if trial.status == FAILED:  # which TPE would ignore, and ask for more; pruned without a score is the worst
            state, known = TrialState.PRUNED, {}
        about = {"params": trial.asked.params, "distributions": trial.asked.distributions}
        return create_trial(state=state, value=value, intermediate_values=known, **about)

    def _lots(self, trials: list[Trial]) -> list[Lot]:
        together: dict[tuple[int, str], list[Trial]] = {}
        for trial in trials:
            together.setdefault((trial.rung, trial.static), []).append(trial)
        return [Lot(own, rung) for (rung, _), members in together.items() for own in batches(members, self.lot_size)]

    def _affordable(self, trials: list[Trial]) -> list[Trial]:
        """Those of them that the rest of the budget is enough for, the first before others.

        As long as none has come to its end, so much is left as takes the leading one there.
        """
        left, chosen, leader = self.options.budget - self.env_steps, [], self._leader
        reserve = self._to_the_end(leader) if leader else 0
        for trial in trials:
            cost = self._cost(trial)
            if trial is leader:
                reserve -= cost
            if cost + reserve <= left:
                left -= cost
                chosen.append(trial)
        return chosen

    @property
    def _leader(self) -> Trial | None:
        """The trial that is to come to its end whatever the others cost; None once one has."""
        if any(trial.status == FINISHED for trial in self.trials):
            return None
        return min((trial for trial in self.trials if trial.status == RUNNING), key=_leading, default=None)

    def _to_the_end(self, trial: Trial) -> int:
        """Steps from where a trial is to its last rung, evaluations as `_cost` counts them."""
        last = len(self.rungs.steps)
        return self._training_steps(trial, last) + self._dearest * (last - trial.rung)

    def _cost(self, trial: Trial) -> int:
        """Steps to its next rung; of the evaluation there, as many as the dearest so far took."""
        return self._training_steps(trial, trial.rung + 1) + self._dearest

    def _training_steps(self, trial: Trial, rung: int) -> int:
        """From where it is to a rung, counted from 1, all seeds."""
        each = trial.config.steps_per_update
        steps = self.rungs.env_steps(rung, each) - self.rungs.env_steps(trial.rung, each)
        return self.options.seeds_per_trial * steps


def outcome(trial: Trial) -> tuple[float | None, Any]:
    """The value and the state that Optuna is told; under way, a trial that has come to a rung is as if it had ended."""
    from optuna.trial import TrialState

    states = {FINISHED: TrialState.COMPLETE, FAILED: TrialState.FAIL}
    state = states.get(trial.status, TrialState.PRUNED if trial.scores else TrialState.RUNNING)
    return trial.score if trial.status == FINISHED else None, state


def _leading(trial: Trial) -> tuple[float, float, int]:
    """A key that sorts trials by how far they are, then by how good."""
    return -trial.rung, -trial.score if math.isfinite(trial.score) else math.inf, trial.number


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if dimension.choices:
        return CategoricalDistribution([*map(label_of, dimension.choices)])
    low, high = dimension.bounds
    return FloatDistribution(low, high, log=dimension.scale != "linear")


def _sampler(options: StudyOptions, seed: int) -> Any:
    from optuna import samplers

    if options.sampler == "tpe":
        return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    if options.sampler == "random":
        return samplers.RandomSampler(seed=seed)
    if options.sampler == "cmaes":
        pruned = options.pruner != "none"
        return samplers.CmaEsSampler(seed=seed, consider_pruned_trials=pruned, warn_independent_sampling=False)
    return samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna without its log lines, and without warnings of what it calls experimental."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
