"""The command line: flags → one experiment."""

import importlib.util
import shlex
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from purejaxppo.cli.command import exit_code
from purejaxppo.cli.envs import list_envs
from purejaxppo.cli.flags import parse, parse_resume, value_of
from purejaxppo.envs.gymnax import CLASSIC_CONTROL
from purejaxppo.errors import UsageError, plural
from purejaxppo.experiment.experiment import resume_experiment, run_experiment
from purejaxppo.experiment.progress import ProgressLine
from purejaxppo.parallel.devices import use_cpu_cores
from purejaxppo.rundir.files import read_json
from purejaxppo.rundir.summary import Summary
from purejaxppo.statistics import interval_text


def main(argv: list[str]) -> int:
    """Run, and return the exit code, see `exit_code`."""
    console = Console(highlight=False)

    def command() -> None:
        use_cpu_cores(is_alone(argv))
        if "--list-envs" in argv:
            list_envs(console)
        elif value_of(argv, "resume", ""):
            resume_run(argv, console)
        else:
            start_run(argv, console)

    return exit_code(command)


def is_alone(argv: list[str]) -> bool:
    """Whether this is one small run, for which one thread is best; or goes on with one that had one thread.

    Asked before JAX starts, so of the flags, or of the record of the run that goes on, and not of a `Config`.
    """

    def given(flag: str, default: str = "") -> str:
        return value_of(argv, flag, default)

    if given("mesh") or given("devices", "1") != "1":
        return False
    if directory := given("resume"):
        try:
            return read_json(Path(directory) / "config.json").get("threads") == 1
        except UsageError:  # to be told by who reads the whole
            return False
    few = given("num-envs", "1").isdecimal() and int(given("num-envs", "1")) <= 16
    small = few and given("env", "CartPole-v1") in CLASSIC_CONTROL
    return small and given("num-seeds") == "1" and given("seed-mode", "vmap") == "vmap" and not given("devices")


def start_run(argv: list[str], console: Console) -> None:
    """A new run."""
    config, options, host = parse(argv)
    options.check()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    out = Path(options.out or f"runs/{options.env.replace('/', '-')}-{options.algo}-seed{options.seed}-{stamp}")
    result = run_experiment(
        config,
        options.num_seeds,
        out,
        first_seed=options.seed,
        devices=options.devices,
        options=host,
        debug=options.debug,
        progress=ProgressLine(console, options.quiet),
    )
    if not options.quiet:
        console.print(table(result.summary, out))


def resume_run(argv: list[str], console: Console) -> None:
    """A run that was interrupted, or that is to go on for longer."""
    options = parse_resume(argv)
    out = Path(options.resume)
    if not out.is_dir():
        raise UsageError(f"resume = {options.resume!r} is no directory; give that of a run.")
    result = resume_experiment(
        out,
        options.total_steps,
        env=options.env,
        devices=options.devices,
        mesh=options.mesh,
        debug=options.debug,
        progress=ProgressLine(console, options.quiet),
    )
    if not options.quiet:
        console.print(table(result.summary, out))


def table(summary: Summary, out: Path) -> Table:
    """What came of a run."""
    evaluation = summary["eval_return"]
    rows = Table(title=f"{summary['algo']} on {summary['env']}", show_header=False, title_justify="left")
    interval = interval_text(evaluation["ci_low"], evaluation["ci_high"])
    interval = "" if interval == "–" else f"95% interval {interval}, "
    rows.add_row("final return", f"IQM {evaluation['iqm']:.1f}, {interval}mean {evaluation['mean']:.1f}")
    shown = [f"{seed}: {score:.1f}" for seed, score in zip(summary["seeds"], evaluation["per_seed"], strict=True)]
    rows.add_row(
        "per seed", "  ".join(shown[:16]) + (f"  … {len(shown) - 16} more in summary.json" if shown[16:] else "")
    )
    for failed in summary["failed_seeds"][:8]:
        what = f"{failed['cause']} not finite in update {failed['update']:,}; frozen"
        rows.add_row("failed seed", f"{failed['seed']}: {what}")
    rows.add_row("steps", f"{summary['env_steps']:,} per seed, {plural(summary['num_seeds'], 'seed')}")
    rows.add_row("steps per second", f"{summary['steps_per_second']:,.0f}, all seeds, on {summary['device']}")
    parts = f"{summary['training_seconds']:.1f} training, {summary['evaluation_seconds']:.1f} evaluating"
    parts = f"{summary['compile_seconds']:.1f} compiling, {parts}, {summary['saving_seconds']:.1f} saving"
    rows.add_row("seconds", parts)
    rows.add_row("files", str(out))
    if (out / "tensorboard").is_dir():
        viewer = "" if importlib.util.find_spec("tensorboard") else " (pip install tensorboard)"
        rows.add_row("TensorBoard", f"tensorboard --logdir {shlex.quote(str(out / 'tensorboard'))}{viewer}")
    return rows
