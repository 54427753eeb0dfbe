"""study.db: the study as an SQLite file, which Optuna and its dashboard open.

It is written for others to read: a study that is resumed brings the file up to date, and takes nothing from it.
"""

import math
from pathlib import Path
from typing import Any

from purejaxppo.errors import UsageError, reason
from purejaxppo.tuning.search import RUNNING, Search, Trial, outcome, quiet_optuna

NAME = "study.db"


class StudyFile:
    """The file, held open."""

    def __init__(self, directory: Path, name: str) -> None:
        """Raises: UsageError: there is a file that is no study."""
        import optuna
        from sqlalchemy.engine import URL

        self.path = directory / NAME
        url = URL.create("sqlite", database=str(self.path.absolute())).render_as_string()
        try:
            with quiet_optuna():
                self.study = optuna.create_study(
                    storage=url, study_name=name, direction="maximize", load_if_exists=True
                )
            self.study.get_trials(deepcopy=False)  # they can be read
        except Exception as error:  # of SQLAlchemy, Alembic and Optuna
            if "database is locked" in str(error):
                raise UsageError(
                    f"{self.path} is locked by another process, which writes it; close that one."
                ) from error
            raise self._refused(reason(error)) from error
        self._settled: set[int] = set()  # trials that have ended and are written

    def update(self, search: Search) -> str:
        """Write what is new of each trial; returns why that cannot be done now, if so: the next call tries again.

        Raises:
            UsageError: the file holds other trials.
        """
        from optuna.trial import TrialState, create_trial

        try:
            with quiet_optuna():
                for trial in search.trials[len(self.study.get_trials(deepcopy=False)) :]:
                    about = {"params": trial.asked.params, "distributions": trial.asked.distributions}
                    self.study.add_trial(create_trial(state=TrialState.RUNNING, **about))
                there = self.study.get_trials(deepcopy=False)
                for trial in search.trials:
                    if trial.number not in self._settled:
                        self._write(trial, there[trial.number], search.rungs.steps)
        except UsageError:
            raise
        except Exception as error:  # locked by who reads it, say
            return f"{self.path} is not up to date ({reason(error):.200}); training goes on"
        return ""

    def _write(self, trial: Trial, there: Any, rungs: tuple[int, ...]) -> None:
        from optuna.trial import Trial as Handle

        if there.params != trial.asked.params:
            raise self._refused(f"its trial {trial.number} has other settings")
        handle = Handle(self.study, there._trial_id)
        for step, score in zip(rungs, trial.scores, strict=False):
            if math.isfinite(score) and step not in there.intermediate_values:
                handle.report(score, step)
        if trial.status == RUNNING:
            return
        if not there.state.is_finished():
            handle.set_user_attr("env_steps", trial.env_steps)
            self.study.tell(trial.number, *outcome(trial))
        self._settled.add(trial.number)

    def _refused(self, why: str) -> UsageError:
        return UsageError(f"{self.path} is not this study's file ({why:.200}); move it away, and it is written anew.")
