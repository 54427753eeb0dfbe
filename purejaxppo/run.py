"""The command line: flags → one experiment."""

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from purejaxppo.envs import env_names
from purejaxppo.experiment.devices import choose_devices, use_cpu_cores
from purejaxppo.experiment.loop import Summary, run_experiment
from purejaxppo.experiment.progress import ProgressLine
from purejaxppo.flags import parse
from purejaxppo.types import UsageError


def main(argv: list[str]) -> int:
    """Run, and return the exit code: 0, 2 for what cannot be done, told in one line on stderr, 130 after Ctrl-C."""
    console = Console(highlight=False)
    try:
        use_cpu_cores()
        if "--list-envs" in argv:
            console.print("\n".join(env_names()))
            return 0
        config, options = parse(argv)
        options.check()
        config.check()
        seeds = list(range(options.seed, options.seed + options.num_seeds))
        stamp = time.strftime("%Y%m%d-%H%M%S")
        out = Path(options.out or f"runs/{options.env.replace('/', '-')}-{options.algo}-seed{options.seed}-{stamp}")
        progress = ProgressLine(console, config.env_steps * len(seeds), options.quiet)
        summary = run_experiment(
            config, seeds, out, choose_devices(options.devices), progress, options.log_interval, options.final_episodes
        )
    except UsageError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is written so far stays in the run directory", file=sys.stderr)
        return 130
    if not options.quiet:
        console.print(table(summary, seeds, out))
    return 0


def table(summary: Summary, seeds: list[int], out: Path) -> Table:
    """What came of a run."""
    evaluation = summary["eval_return"]
    rows = Table(title=f"{summary['algo']} on {summary['env']}", show_header=False, title_justify="left")
    interval = f"95% interval {evaluation['ci_low']:.1f} … {evaluation['ci_high']:.1f}"
    rows.add_row("final return", f"IQM {evaluation['iqm']:.1f}, {interval}, mean {evaluation['mean']:.1f}")
    shown = [f"{seed}: {score:.1f}" for seed, score in zip(seeds, evaluation["per_seed"], strict=True)]
    rows.add_row(
        "per seed", "  ".join(shown[:16]) + (f"  … {len(shown) - 16} more in summary.json" if shown[16:] else "")
    )
    rows.add_row("steps", f"{summary['env_steps']:,} per seed, {summary['num_seeds']} seeds")
    rows.add_row("steps per second", f"{summary['steps_per_second']:,.0f}, all seeds, on {summary['device']}")
    rows.add_row("seconds", f"{summary['compile_seconds']:.1f} compiling, {summary['run_seconds']:.1f} running")
    rows.add_row("files", str(out))
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
