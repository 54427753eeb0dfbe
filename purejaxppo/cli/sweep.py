"""The command line: flags, or a TOML file, → one sweep. (In Python, `purejaxppo.sweep` is the function.)"""

import dataclasses
import os
import warnings
from contextlib import ExitStack
from pathlib import Path

import jax
import numpy as np

from purejaxppo.cli.command import exit_code, start_jax
from purejaxppo.cli.flags import flag_name, value_of, with_file
from purejaxppo.cli.settings import DETECTED, GO_ON, NEW_DIRECTORY, PLACE, RunOptions, parse_resume, parse_settings
from purejaxppo.config import Config
from purejaxppo.errors import FailedSettingsError, UsageError, plural
from purejaxppo.experiment.experiment import same_run
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.progress import ProgressLine, plain_console
from purejaxppo.fields import check_fields, static
from purejaxppo.parallel.devices import choose_devices
from purejaxppo.parallel.places import find_place
from purejaxppo.rundir.files import SWEEP, to_json
from purejaxppo.rundir.lock import lock, lock_shared, new_directory
from purejaxppo.rundir.record import resume_command
from purejaxppo.rundir.summary import Summary
from purejaxppo.sweeps.axes import Settings, grid, parse_axis, parse_sampler
from purejaxppo.sweeps.definition import Sweep, begin_sweep, read_sweep
from purejaxppo.sweeps.execution import keep_sizes, plan_sweep, run_sweep
from purejaxppo.sweeps.results import best_first, command_of, plan_table, results_table, write_results
from purejaxppo.sweeps.workers import Worker, divided, write_plan

_PROG = "purejaxppo sweep"
_TABLES = ("grid", "sample")  # of a TOML file
_JOINING = {"join", "env", "devices", "debug", "quiet"}  # all that a worker may say of a sweep that is there already
_ABOUT = "Train one algorithm on many settings × many seeds; those that differ in numbers as one program."


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """What is swept. All combinations of the grids' values, with each draw of the samples."""

    grid: tuple[str, ...] = static(
        (), "a setting and its values, sizes as 64x64; may be repeated", metavar="FIELD=A,B,C", append=True
    )
    random: int = static(0, "so many settings are drawn, each --sample field anew, from --seed", interval="[0, 100000]")
    sample: tuple[str, ...] = static(
        (),
        "uniform:low,high, loguniform:low,high, randint:low,high or choice:a,b,c; repeat it for more settings",
        metavar="FIELD=DISTRIBUTION:A,B",
        append=True,
    )

    at_once: int | None = static(
        None,
        "settings that one program trains, at most: what a worker takes at a time",
        interval="[1, 1e6]",
        usual="as many as fit into memory; with --join, of 32 equal parts one",
    )
    join: str | None = static(
        None, "be a worker of the sweep in this directory, which the first one begins", metavar="DIR"
    )

    def settings(self, config: Config, seed: int) -> list[Settings]:
        """Raises: UsageError."""
        check_fields(self)
        axes = [parse_axis(config, text) for text in self.grid]
        samplers = [parse_sampler(config, text) for text in self.sample]
        names = [name for name, _ in (*axes, *samplers)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise UsageError(f"{twice} is swept twice; give all of its values in one --grid or --sample.")
        if bool(self.random) != bool(samplers):
            raise UsageError(f"random = {self.random} with {len(samplers)} --sample; pass --random N with --samples.")
        rng = np.random.default_rng(seed)
        draws = [{name: draw(rng) for name, draw in samplers} for _ in range(self.random)] or [{}]
        once = list({repr(drawn): drawn for drawn in draws}.values())
        found = [own | drawn for own in grid(dict(axes), len(once)) for drawn in once]
        if len(once) < len(draws):
            warnings.warn(f"of {self.random:,} draws {len(once):,} differ, and each is trained once", stacklevel=2)
        return found


@dataclasses.dataclass(frozen=True)
class SweepRunOptions(RunOptions):
    """What is said of a run, as a sweep means it."""

    out: str | None = static(None, NEW_DIRECTORY.format("sweep"), metavar="DIR", usual="runs/sweep-ENV-ALGO-TIME")
    resume: str | None = static(None, GO_ON.format("sweep"), metavar="DIR")
    distributed: str | None = static(
        None,
        "this is worker I of N of one sweep; off: it has a sweep of its own; see the guide Sweeps on many machines",
        metavar=PLACE,
        usual=DETECTED,
    )


Task = tuple[Sweep, list[jax.Device], ProgressLine, bool]  # what there is to be done; whether it is to be debugged


def main(argv: list[str]) -> int:
    """Sweep, and return the exit code, see `exit_code`."""

    def command() -> None:
        with ExitStack() as stack:
            shared, given = _shared(argv), {flag_name(token) for token in argv} - {""}
            joins = shared is not None and (shared / SWEEP).exists() and given <= _JOINING
            words = [x.replace("--join", "--resume", 1) if flag_name(x) == "join" and joins else x for x in argv]
            task = (_resumed if value_of(words, "resume") else _begun)(words, shared, stack)
            sweep, devices, progress, debug = task
            if shared:
                stack.enter_context(lock_shared(shared))
                summaries, failed = Worker(*task).work()
            else:
                steps = plan_sweep(sweep, devices, progress)
                keep_sizes(sweep, steps)
                progress.show(plan_table(sweep, steps, len(devices)))
                summaries, failed = run_sweep(sweep, steps, devices, progress, debug)
                write_results(sweep, summaries)
        _tell(sweep, summaries, failed, progress)

    return exit_code(command)


def _resumed(argv: list[str], shared: Path | None, stack: ExitStack) -> Task:
    """One that was interrupted, or that other workers have, too; else it is held by `stack`."""
    again = parse_resume(argv, _PROG, "sweep", ("total_steps",))
    start_jax()
    progress, out = ProgressLine(plain_console(), again.quiet), Path(again.resume)
    sweep, devices = read_sweep(out, progress, again.devices, again.mesh, again.env)
    if not shared:
        stack.enter_context(lock(out))
    return divided(sweep) if shared else sweep, devices, progress, again.debug


def _begun(argv: list[str], shared: Path | None, stack: ExitStack) -> Task:
    """A new one; or one that is there already, with --resume-or-start or several workers, of whom the first writes it.

    That of one process is held by `stack`.
    """
    words = with_file(argv, _TABLES)
    config, options, host, chosen = parse_settings(words, _PROG, _ABOUT, SweepOptions(), SweepRunOptions)
    if chosen.join and (options.out or options.resume_or_start):
        raise UsageError("--join DIR is the sweep's directory, begun or not; leave out --out and --resume-or-start.")
    settings = chosen.settings(config, options.seed)
    start_jax()
    out = shared or Path(options.directory("sweep-"))
    progress = ProgressLine(plain_console(), options.quiet)
    there = not shared and options.resume_or_start and (out / SWEEP).exists()
    if not there:
        devices = choose_devices(options.devices)
        sweep, devices = begin_sweep(config, settings, options.seeds, out, devices, host, chosen.at_once)
        if shared:
            there = not write_plan(sweep := divided(sweep))
        else:
            stack.enter_context(new_directory(out))
            sweep.write()
    if there:
        sweep, devices = read_sweep(out, progress, options.devices, env=config.env)
        _same_sweep(sweep, config, options, host, settings, chosen.at_once)
        if shared:
            sweep = divided(sweep)
        else:
            stack.enter_context(lock(out))
    if not there and (idle := {flag_name(token).replace("-", "_") for token in argv} & {*settings[0]}):
        progress.warn(f"{' and '.join(sorted(idle))}: the axis counts, not the flag")
    return sweep, devices, progress, options.debug


def _shared(argv: list[str]) -> Path | None:
    """The directory of a sweep that has several workers: of --join, or that of one process of several. None: of one.

    Raises:
        UsageError: this is one process of several, and there is no directory.
    """
    if join := value_of(argv, "join"):
        return Path(join)
    if "--help" in argv:
        return None
    words = with_file(argv, _TABLES)
    if not (place := find_place(value_of(words, "distributed") or None, "--join DIR, which asks nobody")):
        return None
    own = os.environ.get("JAX_LOCAL_DEVICE_IDS") or place.local_device
    if own is not None:
        jax.config.update("jax_cuda_visible_devices", str(own))  # as `jax.distributed` would, which is not asked here
    out = value_of(argv, "resume") or value_of(words, "out")
    if not out:
        raise UsageError(f"{place.processes} processes share a sweep's directory, and there is none; pass --out DIR.")
    return Path(out)


def _same_sweep(
    sweep: Sweep, config: Config, options: RunOptions, host: HostOptions, settings: list[Settings], at_once: int | None
) -> None:
    """Raises: UsageError: a directory holds another sweep than this."""
    same_run(sweep.record, config, options.seeds, host)
    out = str(sweep.record.directory)
    if to_json(sweep.settings) != to_json(settings):
        raise UsageError(f"out = {out!r} holds a sweep of other settings; choose another --out.")
    if at_once not in (None, sweep.at_once):
        raise UsageError(f"at_once = {at_once} cannot change: {out!r} has {sweep.at_once}; leave it out.")


def _tell(sweep: Sweep, summaries: list[Summary], failed: dict[int, Exception], progress: ProgressLine) -> None:
    """What came of it. Raises: FailedSettingsError."""
    out = sweep.record.directory
    progress.show(results_table(sweep, summaries))
    best = command_of(sweep, best_first(summaries)[0])
    progress.say(f"files in {out}; the best settings, on other seeds:\n{best}")
    if failed:
        first = min(failed)
        raise FailedSettingsError(
            f"{len(failed)} of {plural(len(sweep.settings), 'setting')} have failed, {sweep.names[first]} "
            f"first ({failed[first]}); {resume_command('sweep', out, sweep.record.config.env)} tries them again."
        )
