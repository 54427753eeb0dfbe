"""The command line: flags, or a TOML file, → one study. (In Python, `purejaxppo.tune` is the function.)"""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from purejaxppo.cli.command import exit_code, start_jax
from purejaxppo.cli.flags import value_of, with_file
from purejaxppo.cli.settings import GO_ON, NEW_DIRECTORY, RunOptions, parse_resume, parse_settings
from purejaxppo.experiment.progress import ProgressLine, plain_console
from purejaxppo.fields import static
from purejaxppo.rundir.files import read_toml
from purejaxppo.rundir.lock import lock
from purejaxppo.sweeps.results import run_command
from purejaxppo.tuning.default_spaces import ABBREVIATIONS, SPACES
from purejaxppo.tuning.space import as_toml, default_space, parse_space
from purejaxppo.tuning.study import read_study
from purejaxppo.tuning.study_options import StudyOptions, as_dict
from purejaxppo.tuning.study_results import final_table
from purejaxppo.tuning.tune import TuneResult, run_study, tune

WITHOUT = ("distributed",)  # a study is one process
_PROG = "purejaxppo tune"
_ABOUT = "Search for the settings of one algorithm, and train the best on seeds that had no part in the choice."


@dataclasses.dataclass(frozen=True)
class TuneOptions(StudyOptions):
    """What is searched, and how. --num-seeds, --seed and the host's flags are those of the final runs."""

    space: str | None = static(None, "TOML file of ranges and choices", metavar="FILE", usual="the algorithm's own")
    show_space: bool = static(False, "print the space, as a file that --space takes, and end")


@dataclasses.dataclass(frozen=True)
class TuneRunOptions(RunOptions):
    """What is said of a run, as a study means it."""

    seed: int = static(0, "the first seed of the final runs; trials have those after them", interval="[0, 4294967295]")
    num_seeds: int = static(8, "seeds of each of the final runs, trained as one program", interval="[1, 1e6]")
    out: str | None = static(None, NEW_DIRECTORY.format("study"), metavar="DIR", usual="runs/tune-ENV-ALGO-TIME")
    resume: str | None = static(None, GO_ON.format("study"), metavar="DIR")


def main(argv: list[str]) -> int:
    """Tune, and return the exit code, see `exit_code`."""

    def command() -> None:
        if value_of(argv, "resume"):
            again = parse_resume(argv, _PROG, "study", (*WITHOUT, "total_steps", "mesh"))
            start_jax()
            progress, out = ProgressLine(plain_console(), again.quiet), Path(again.resume)
            study, devices = read_study(out, progress, again.devices, again.env)
            with lock(out):
                result = run_study(study, devices, progress, again.debug)
            _show(result, progress, study.record.options.get("init_from", ""))
            return
        config, run, host, own = parse_settings(with_file(argv), _PROG, _ABOUT, TuneOptions(), TuneRunOptions, WITHOUT)
        space = read_toml(Path(own.space)) if own.space else default_space(config)
        if own.show_space:
            sources = {} if own.space else {name: x["source"] for name, x in SPACES[config.algo_name].items()}
            print(as_toml(parse_space(config, space), sources, "" if own.space else ABBREVIATIONS))
            return
        start_jax()
        out = Path(run.directory("tune-"))
        progress = ProgressLine(plain_console(), run.quiet)
        how: Any = {"out": out, "devices": run.devices, "options": host, "progress": progress}
        how |= {"seeds": run.seeds, "resume_or_start": run.resume_or_start, "debug": run.debug}
        _show(tune(config, space, **how, **as_dict(own)), progress, host.init_from)

    return exit_code(command)


def _show(result: TuneResult, progress: ProgressLine, begun_from: str) -> None:
    seeds = result.summary["seeds"]
    progress.show(final_table(result.summary, result.defaults, result.env_steps, result.final_env_steps))
    if result.defaults is result.summary:
        progress.say("the search has found nothing better than the settings that it began with")
    command = run_command(result.config, len(seeds), seeds[0], begun_from)
    progress.say(f"files in {result.out}; these settings again:\n{command}")
    config = shlex.quote(str(Path(result.out or "") / "best.toml"))
    progress.say(f"or: purejaxppo run --config {config}")
