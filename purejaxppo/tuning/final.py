"""The end of a study: its best settings beside those that it began with, on seeds that no trial had."""

import dataclasses

import jax

from purejaxppo.config import Config
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.progress import ProgressLine
from purejaxppo.presets import settings_of
from purejaxppo.rundir.record import RunRecord
from purejaxppo.rundir.summary import Summary, failed_summary, read_summary
from purejaxppo.sweeps.definition import Sweep
from purejaxppo.sweeps.execution import plan_sweep, run_sweep

BEST, DEFAULTS = "best", "defaults"  # the run directories


def judge(
    record: RunRecord, best: Config, devices: list[jax.Device], progress: ProgressLine, debug: bool = False
) -> tuple[Summary, Summary, int]:
    """Train the best settings and the study's own on the seeds of its record, as one program if only numbers differ.

    Returns:
        What came of the best, and of the study's own: the same where it has found nothing better. And the environment
        steps that they trained for, all seeds.

    Raises:
        UsageError: the best settings have failed.
        OSError, Stopped: as `run_experiment`.
    """
    out, seeds, ours, usual = record.directory, record.seeds, settings_of(best), settings_of(record.config)
    names = [name for name, value in ours.items() if value != usual[name]]
    runs = {BEST: best, DEFAULTS: record.config} if names else {BEST: best}
    settings = [{name: settings_of(config)[name] for name in names or ["gamma"]} for config in runs.values()]
    sweep = Sweep(record, settings, called=tuple(runs))
    options = HostOptions.of(record.options)
    chosen = max((options.place(config, count, devices) for config, count in sweep.programs), key=len)
    sweep = dataclasses.replace(sweep, record=record._replace(devices=len(chosen)))
    _, failed = run_sweep(sweep, plan_sweep(sweep, chosen, progress), chosen, progress, debug)
    if not (tuned := read_summary(out / BEST, seeds)):
        raise failed[0]
    defaults = tuned
    if names:
        why = str(failed.get(1, ""))
        defaults = read_summary(out / DEFAULTS, seeds) or failed_summary(record.config, seeds, why)
    trained = [tuned, defaults] if names else [tuned]
    return tuned, defaults, sum(x["env_steps"] for x in trained) * len(seeds)
