"""The command line: flags → one experiment."""

import importlib.util
import math
import shlex
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.cli.command import exit_code, start_jax
from purejaxppo.cli.flags import value_of, with_file
from purejaxppo.cli.settings import NoOptions, ResumeOptions, RunOptions, parse_resume, parse_settings
from purejaxppo.diagnosis.diagnose import diagnose, in_short
from purejaxppo.envs.gymnax import CLASSIC_CONTROL
from purejaxppo.errors import UsageError, plural
from purejaxppo.experiment.experiment import ExperimentResult, resume_experiment, run_experiment
from purejaxppo.experiment.options import MeshShape
from purejaxppo.experiment.progress import ProgressLine, plain_console
from purejaxppo.parallel.hosts import group
from purejaxppo.parallel.joining import join
from purejaxppo.parallel.machine import jax_settings
from purejaxppo.parallel.places import find_place
from purejaxppo.presets import preset_of
from purejaxppo.rundir.record import read_config, versions
from purejaxppo.rundir.summary import Summary
from purejaxppo.statistics import decimals, interval_text, return_text
from purejaxppo.types import traits_of

_PROG = "purejaxppo run"


def main(argv: list[str]) -> int:
    """Run, and return the exit code, see `exit_code`."""

    def command() -> None:
        progress, result = (resume_run if value_of(argv, "resume") else start_run)(argv)
        out = Path(result.out or "")
        progress.show(table(result.summary, out))
        for line in in_short(diagnose(out), out, result.config.env_name) if group().leads else ():
            progress.say(line)

    return exit_code(command)


def is_alone(argv: list[str]) -> bool:
    """Whether this is one small run, for which one thread is best; or goes on with one that had one thread.

    Asked before JAX starts, so of the flags, or of the record of the run that goes on, and not of a `Config`.
    """
    given = partial(value_of, argv)
    if given("mesh") or given("devices", "1") != "1":
        return False
    if directory := given("resume"):
        return _recorded(directory).get("threads") == 1
    algo, env = given("algo", "ppo"), given("env", "CartPole-v1")
    usual = {**traits_of(ALGORITHMS.get(algo)).published, **preset_of(algo, env)}.get("num_envs", 1)
    envs = given("num-envs", str(usual))
    small = env in CLASSIC_CONTROL and envs.isdecimal() and int(envs) <= 16
    return small and given("num-seeds") == "1" and given("seed-mode", "vmap") == "vmap" and not given("devices")


def start_run(argv: list[str]) -> tuple[ProgressLine, ExperimentResult]:
    """A new run."""
    argv = with_file(argv)
    about = "Train one algorithm on many seeds, as one compiled program."
    config, options, host, _ = parse_settings(argv, _PROG, about, NoOptions())
    kinds = {"--resume-or-start": options.resume_or_start, "--init-from": bool(host.init_from), "--mesh": host.mesh}
    meshes = [host.mesh, _recorded_mesh(options.out) if options.resume_or_start else ""]
    _start(argv, options, meshes, kinds, config.env)
    out = Path(options.out or group().told(options.directory(after=f"-seed{options.seed}")))
    progress = ProgressLine(plain_console(), options.quiet)
    how: Any = {"devices": options.devices, "options": host, "debug": options.debug, "progress": progress}
    how["resume_or_start"] = options.resume_or_start
    return progress, run_experiment(config, options.num_seeds, out, first_seed=options.seed, **how)


def resume_run(argv: list[str]) -> tuple[ProgressLine, ExperimentResult]:
    """A run that was interrupted, or that is to go on for longer."""
    options = parse_resume(argv, _PROG)
    meshes = [_recorded_mesh(options.resume) if options.mesh is None else options.mesh]
    _start(argv, options, meshes, {"--resume": True, "--mesh": options.mesh or ""}, options.env)
    if not Path(options.resume).is_dir():
        raise UsageError(f"resume = {options.resume!r} is no directory; give that of a run.")
    progress = ProgressLine(plain_console(), options.quiet)
    how: Any = {"devices": options.devices, "mesh": options.mesh, "debug": options.debug, "progress": progress}
    return progress, resume_experiment(options.resume, options.total_steps, env=options.env, **how)


def _start(
    argv: list[str], options: RunOptions | ResumeOptions, meshes: Iterable[str], about: Mapping[str, object], env: Any
) -> None:
    """Start JAX; where this is one of several processes, together with them, for one of these meshes.

    What they do in which order depends on `about`, which must be the same in all; as must versions and JAX's settings.
    """
    place = find_place(options.distributed)
    share_runs = any(MeshShape.parse(mesh).devices_per_run > 1 for mesh in meshes)

    def join_others() -> None:
        if place:
            progress = ProgressLine(plain_console(), options.quiet)
            common = {**about, "--devices": options.devices or "", **versions(env), **jax_settings()}
            join(place, {name: str(value) for name, value in common.items()}, share_runs, progress.say)

    start_jax(is_alone(argv), join_others)


def _recorded_mesh(directory: str | None) -> str:
    try:
        mesh = _recorded(directory)["options"]["mesh"]
        return mesh if isinstance(mesh, str) and MeshShape.parse(mesh) else ""
    except (KeyError, TypeError, UsageError):
        return ""


def _recorded(directory: str | None) -> dict[str, Any]:
    """What config.json says, as far as it can be read: what is wrong with it is told by who reads the whole."""
    try:
        return read_config(Path(directory or "") / "config.json")
    except UsageError:
        return {}


def table(summary: Summary, out: Path) -> Table:
    """What came of a run."""
    evaluation = summary["eval_return"]
    rows = Table(title=f"{summary['algo']} on {summary['env']}", show_header=False, title_justify="left")
    digits = decimals(evaluation["per_seed"])
    interval = interval_text(evaluation["ci_low"], evaluation["ci_high"], digits)
    interval = "" if interval == "–" else f"95% interval {interval}, "
    middle, mean, *each = (
        return_text(x, digits) for x in (evaluation["iqm"], evaluation["mean"], *evaluation["per_seed"])
    )
    rows.add_row("final return", f"IQM {middle}, {interval}mean {mean}" if summary["num_seeds"] > 1 else mean)
    shown = [f"{seed}: {score}" for seed, score in zip(summary["seeds"], each, strict=True)]
    lines = ["  ".join(shown[i : min(i + 4, 16)]) for i in range(0, min(len(shown), 16), 4)]  # no number is torn
    lines += [f"… {len(shown) - 16} more in summary.json"] if shown[16:] else []
    rows.add_row("per seed", "\n".join(lines))
    if (rate := summary.get("success_rate", math.nan)) == rate:
        rows.add_row("success rate", return_text(rate))
    for failed in summary["failed_seeds"][:8]:
        what = f"{failed['cause']} not finite in update {failed['update']:,}; frozen"
        rows.add_row("failed seed", f"{failed['seed']}: {what}")
    rows.add_row("steps", f"{summary['env_steps']:,} per seed, {plural(summary['num_seeds'], 'seed')}")
    together = "one seed" if summary["num_seeds"] == 1 else f"all {summary['num_seeds']:,} seeds"
    rows.add_row("steps per second", f"{summary['steps_per_second']:,.0f} of {together} on {summary['device']}")
    parts = f"{summary['training_seconds']:.1f} training, {summary['evaluation_seconds']:.1f} evaluating"
    parts = f"{summary['compile_seconds']:.1f} compiling, {parts}, {summary['saving_seconds']:.1f} saving"
    rows.add_row("seconds", parts)
    rows.add_row("files", str(out))
    if (out / "tensorboard").is_dir():
        viewer = "" if importlib.util.find_spec("tensorboard") else " (pip install tensorboard)"
        rows.add_row("TensorBoard", f"tensorboard --logdir {shlex.quote(str(out / 'tensorboard'))}{viewer}")
    return rows
