"""A study from its beginning, or from where it was interrupted, to its result."""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purejaxppo.config import Config
from purejaxppo.errors import UsageError, plural
from purejaxppo.experiment.experiment import seed_list
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.progress import ProgressLine, plain_console
from purejaxppo.experiment.signals import Signals, Stopped
from purejaxppo.rundir.files import TUNE, read_toml
from purejaxppo.rundir.lock import lock, new_directory
from purejaxppo.rundir.record import resume_command
from purejaxppo.rundir.summary import Summary
from purejaxppo.statistics import return_text
from purejaxppo.sweeps.axes import Settings, traced
from purejaxppo.tuning.final import judge
from purejaxppo.tuning.journal import Journal
from purejaxppo.tuning.population import inherited, scheduled
from purejaxppo.tuning.search import Search, Trial
from purejaxppo.tuning.study import Study, plan_study, read_study, same_study
from purejaxppo.tuning.study_file import StudyFile
from purejaxppo.tuning.study_options import StudyOptions
from purejaxppo.tuning.study_results import trials_table, write_final, write_results
from purejaxppo.tuning.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class TuneResult:
    """What came of a study."""

    config: Config  # with the best settings
    settings: Settings  # these alone, as far as they were searched; of `pbt` the last
    summary: Summary  # of their final run, on seeds that no trial had
    defaults: Summary  # of the settings that the study began with, on the same seeds
    trials: dict[str, np.ndarray]  # a row per trial, as trials.csv
    env_steps: int  # that the search took, evaluations included
    final_env_steps: int  # that the final runs trained for, all seeds
    out: Path | None  # the directory; None: nothing was kept


def tune(
    config: Config,
    space: Mapping[str, Any] | str | Path | None = None,
    budget: float = StudyOptions.budget,
    *,
    seeds: int | Sequence[int] = 8,
    first_seed: int = 0,
    out: str | Path | None = None,
    devices: int | Sequence[jax.Device] | None = None,
    options: HostOptions | Mapping[str, Any] | None = None,
    debug: bool = False,
    quiet: bool = True,
    progress: ProgressLine | None = None,
    resume_or_start: bool = False,
    **study: Any,
) -> TuneResult:
    """Search for settings, and train the best that was found on seeds that had no part in the choice.

    The settings of `config` are trained on the same seeds, so that one sees what the search was worth. Trials that
    differ in numbers are trained as one program. The study is the same wherever it is interrupted.

    Args:
        config: all settings that are not searched; `total_steps` is the length of a whole trial, `eval_episodes` are
            played at each rung.
        space: setting ↦ `{"low": …, "high": …, "scale": "linear" | "log" | "one-minus-log"}`, or `{"choices": […]}`, or
            a list of choices; or the path of a TOML file of such tables. None: the algorithm's default space.
        budget: environment steps of all training, the final runs' too, and of the search's evaluations.
        seeds: of the final runs: how many, from `first_seed` on, or which. The trials have the seeds after them.
        out: the directory, which must be new or empty. None: nothing is kept.
        devices: how many, or which; None is all.
        options: `HostOptions` of the final runs.
        debug: of the final runs, see `run_experiment`.
        quiet: print warnings only.
        resume_or_start: if `out` holds this study already, go on with it.
        study: the other fields of `StudyOptions`: `method`, `trials`, `seeds_per_trial`, `sampler`, `pruner`, `rungs`,
            `halving_factor`, `places`.

    Raises:
        UsageError: the study cannot work, or no trial got a finite score.
        OSError: a file cannot be written.
        Stopped: SIGTERM or SIGINT, a KeyboardInterrupt; what was trained is saved.
    """
    progress = progress or ProgressLine(plain_console(), quiet)
    known = {field.name for field in dataclasses.fields(StudyOptions)} - {"budget"}
    for unknown in study.keys() - known:
        raise UsageError(
            f"{unknown!r:.80} is not an argument of tune; beside its own there are {', '.join(sorted(known))}."
        )
    chosen = StudyOptions(budget=int(budget) if float(budget).is_integer() else budget, **study)  # type: ignore[arg-type]
    given = read_toml(Path(space)) if isinstance(space, str | Path) else space
    final = HostOptions.of(options)
    if resume_or_start and out is None:
        raise UsageError("resume_or_start needs a directory to look into; pass out=DIR.")
    directory = Path(out or "")
    wanted, here = plan_study(config, given, chosen, seed_list(seeds, first_seed), directory, devices, final)
    if resume_or_start and (directory / TUNE).exists():
        again = config.env, config.policy_network, config.critic_network, config.optimizer
        there, here = read_study(directory, progress, devices, *again)
        same_study(there, wanted)
        with lock(there.record.directory):
            return run_study(there, here, progress, debug)
    with ExitStack() as stack:
        where = out if out is not None else stack.enter_context(tempfile.TemporaryDirectory(prefix="purejaxppo-"))
        directory = stack.enter_context(new_directory(Path(where)))
        new = dataclasses.replace(wanted, record=wanted.record._replace(directory=directory))
        new.write()
        result = run_study(new, here, progress, debug)
        return result if out is not None else dataclasses.replace(result, out=None)


def run_study(study: Study, devices: list[jax.Device], progress: ProgressLine, debug: bool = False) -> TuneResult:
    """Train what is not trained yet, then the best settings on seeds of their own, and write the results."""
    record, out = study.record, study.record.directory
    search = run_search(study, devices, progress)
    best = search.best
    if best is None:
        trials = plural(len(search.trials), "trial")
        raise UsageError(f"none of {trials} got a finite score; check the environment, and lower the learning rates.")
    if best.rung < len(search.rungs.steps):
        progress.warn(
            f"the budget ended before any trial did: the best came to {search.rungs.steps[best.rung - 1]:,} steps"
        )
    progress.show(trials_table(search))
    progress.say(f"training trial {best.number}, and what the study began with, on seeds that no trial had")
    config = scheduled(record.config, best, search.rungs)
    tuned, defaults, steps = judge(record, config, devices, progress, debug)
    columns = write_results(out, search, config, record, progress.warn)
    write_final(out, tuned, defaults)
    return TuneResult(config, best.settings, tuned, defaults, columns, search.env_steps, steps, out)


def run_search(study: Study, devices: list[jax.Device], progress: ProgressLine) -> Search:
    """All trials. Raises: as `tune`."""
    record, journal = study.record, Journal(study.record.directory)
    journal.read()
    search = journal.replay(study.search, progress.warn)
    first = study.options.seeds_per_trial * search.rungs.env_steps(1, record.config.steps_per_update)
    fit = search.options.budget // first
    if fit < study.options.trials:
        progress.say(f"the budget is enough for the first rung of {fit} of {study.options.trials} trials, at most")
    if journal.entries:
        progress.say(f"going on after lot {len(journal.entries):,}, {search.env_steps:,} steps")
    file = StudyFile(record.directory, f"{record.config.algo_name} on {record.config.env_name}")
    again = resume_command("tune", record.directory, record.config.env)
    seeds = study.options.search_seeds(record.seeds)
    numbers = tuple(name for name in study.space if traced(record.config, name))  # in which trials differ
    # the file is written while the next lot trains: some 0.4 s of database for each
    with Signals(progress.tick) as signals, progress, ThreadPoolExecutor(1, "writes-study") as writer:
        trainer = Trainer(seeds, numbers, study.lot_size, devices, record, progress, signals)
        while (lot := search.next_lot()) is not None:
            kept = f"{plural(len(journal.entries), 'lot')} kept; {again} goes on"
            trainer.way_out = kept if journal.entries else "nothing was trained yet: begin anew"
            written = writer.submit(file.update, search)
            journal.forget(search)
            sources = [search.sources(trial) for trial in lot.trials]
            before = [inherited(journal.states[own], journal.states[parent]) for own, parent in sources if lot.rung]
            progress.say(_of_lot(lot.trials, lot.rung, search))
            configs = [trial.config for trial in lot.trials]
            done, until = (search.rungs.updates(k, configs[0].steps_per_update) for k in (lot.rung, lot.rung + 1))
            trained = trainer.train(lot.trials[0].static, configs, done, until, before or None)
            try:
                if why := written.result():
                    progress.warn(why)
            finally:  # what others read may be out of order; what was trained counts
                journal.add(search, lot, trained.returns, trained.evaluation_steps, trained.states)
            if signals.received:
                raise Stopped(signals.received, f"{again} goes on")
        if why := file.update(search):
            progress.warn(why)
        journal.forget(search)
    return search


def _of_lot(trials: list[Trial], rung: int, search: Search) -> str:
    """A line of progress."""
    numbers = ", ".join(str(trial.number) for trial in trials)
    where = f"rung {rung + 1} of {len(search.rungs.steps)}, {search.rungs.steps[rung]:,} steps"
    best = f"; best so far {return_text(search.best.score)}" if search.best else ""
    spent = f"{search.env_steps / search.options.budget:.0%} of the budget"
    return f"{spent}{best}: trials {numbers} to {where}"
