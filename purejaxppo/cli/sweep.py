"""The command line: flags, or a TOML file, → one sweep. (In Python, `purejaxppo.sweep` is the function.)"""

import dataclasses
import time
import tomllib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console

from purejaxppo.cli.command import exit_code
from purejaxppo.cli.flags import parse_resume, parse_with, value_of
from purejaxppo.config import Config
from purejaxppo.errors import UsageError, plural
from purejaxppo.experiment.progress import ProgressLine
from purejaxppo.parallel.devices import choose_devices, use_cpu_cores
from purejaxppo.sweeps.axes import Settings, grid, parse_axis, parse_sampler
from purejaxppo.sweeps.execution import begin_sweep, plan_sweep, read_sweep, run_sweep
from purejaxppo.sweeps.results import best_first, command_of, plan_table, results_table, write_results
from purejaxppo.sweeps.results_figure import draw

_PROG = "purejaxppo sweep"


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """What is swept. All combinations of the grids' values, with each draw of the samples."""

    grid: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="FIELD=A,B,C", help="a setting and its values; repeat it for more settings"),
    ] = ()
    random: Annotated[int, tyro.conf.arg(help="so many settings are drawn, each --sample field anew, from --seed")] = 0
    sample: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(
            metavar="FIELD=DISTRIBUTION:A,B",
            help="uniform:low,high, loguniform:low,high, randint:low,high or choice:a,b,c; repeat it for more settings",
        ),
    ] = ()
    file: Annotated[
        str | None,
        tyro.conf.arg(help="TOML: flags as keys, and tables [grid] and [sample]; flags given here count more"),
    ] = None

    def settings(self, config: Config, seed: int) -> list[Settings]:
        """Raises: UsageError."""
        axes = [parse_axis(config, text) for text in self.grid]
        samplers = [parse_sampler(config, text) for text in self.sample]
        names = [name for name, _ in (*axes, *samplers)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise UsageError(f"{twice} is swept twice; give all of its values in one --grid or --sample.")
        if self.random < 0 or bool(self.random) != bool(samplers):
            raise UsageError(
                f"random = {self.random} with {len(samplers)} --sample: pass --random N, and --sample for each field."
            )
        rng = np.random.default_rng(seed)
        draws = [{name: draw(rng) for name, draw in samplers} for _ in range(self.random)] or [{}]
        once = list({repr(drawn): drawn for drawn in draws}.values())
        return [own | drawn for own in grid(dict(axes)) for drawn in once]


def main(argv: list[str]) -> int:
    """Sweep, and return the exit code, see `exit_code`."""
    console = Console(highlight=False)

    def command() -> None:
        use_cpu_cores()
        if value_of(argv, "resume", ""):
            again = parse_resume(argv, _PROG)
            if again.total_steps is not None:
                raise UsageError("--total-steps cannot be changed on --resume of a sweep; resume its runs one by one.")
            progress, out, debug = ProgressLine(console, again.quiet), Path(again.resume), again.debug
            sweep, devices = read_sweep(out, progress, again.devices, again.mesh, again.env)
        else:
            file = value_of(argv, "file", "")
            about = "Train one algorithm on many settings × many seeds; those that differ in numbers as one program."
            config, options, host, chosen = parse_with(
                [*(flags_of(Path(file)) if file else ()), *argv], _PROG, about, SweepOptions()
            )
            options.check()
            settings = chosen.settings(config, options.seed)
            stamp = time.strftime("%Y%m%d-%H%M%S")
            out = Path(options.out or f"runs/sweep-{options.env.replace('/', '-')}-{options.algo}-{stamp}")
            progress, debug = ProgressLine(console, options.quiet), options.debug
            seeds = list(range(options.seed, options.seed + options.num_seeds))
            sweep, devices = begin_sweep(config, settings, seeds, out, choose_devices(options.devices), host)
        steps = plan_sweep(sweep, devices, progress)
        progress.show(plan_table(sweep, steps, len(devices)))
        summaries = run_sweep(sweep, steps, devices, progress, debug)
        write_results(out / "results.csv", sweep, summaries)
        title = f"{summaries[0]['algo']} on {summaries[0]['env']}, {plural(len(sweep.record.seeds), 'seed')}"
        draw(out / "results.png", title, sweep.settings, summaries)
        progress.show(results_table(sweep, summaries))
        progress.say(
            f"files in {out}; the best settings, on other seeds:\n{command_of(sweep, best_first(summaries)[0])}"
        )

    return exit_code(command)


def flags_of(path: Path) -> list[str]:
    """A TOML file as the flags that say the same.

    Raises:
        UsageError: it cannot be read, or holds what no flag takes.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"file = {str(path)!r} cannot be read ({error.strerror or error}); pass another.") from error
    except ValueError as error:
        raise UsageError(f"{path} is not TOML ({error!s:.80}); see --help for what it holds.") from error
    flags: list[str] = []
    for name, value in content.items():
        if isinstance(value, dict):
            if name not in ("grid", "sample"):
                raise UsageError(f"{path}: [{name}] is none of its tables; there are [grid] and [sample].")
            flags += [
                x for field, values in value.items() for x in (f"--{name}", f"{field}={_axis(path, field, values)}")
            ]
        elif isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return [f"--{flag[2:].replace('_', '-')}" if flag.startswith("--") else flag for flag in flags]


def _axis(path: Path, field: str, values: Any) -> str:
    """`a,b,c` of a list, the items of lists in it separated by spaces; a distribution is a string already."""
    if isinstance(values, str):
        return values
    if not isinstance(values, list):
        raise UsageError(f"{path}: {field} = {values!r:.80} must be a list of values, or a distribution as a string.")
    return ",".join(" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values)
