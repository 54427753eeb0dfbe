"""The command line: flags, or a TOML file, → one sweep. (In Python, `purejaxppo.sweep` is the function.)"""

import dataclasses
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from purejaxppo.cli.command import exit_code, start_jax
from purejaxppo.cli.flags import value_of, with_file
from purejaxppo.cli.settings import parse_resume, parse_settings
from purejaxppo.config import Config
from purejaxppo.errors import FailedSettingsError, UsageError, plural
from purejaxppo.experiment.experiment import same_run
from purejaxppo.experiment.progress import ProgressLine, plain_console
from purejaxppo.fields import static
from purejaxppo.parallel.devices import choose_devices
from purejaxppo.rundir.files import SWEEP, to_json
from purejaxppo.rundir.lock import lock, new_directory
from purejaxppo.sweeps.axes import Settings, grid, parse_axis, parse_sampler
from purejaxppo.sweeps.execution import begin_sweep, plan_sweep, read_sweep, run_sweep
from purejaxppo.sweeps.results import best_first, command_of, plan_table, results_table, write_results
from purejaxppo.sweeps.results_figure import draw

_PROG = "purejaxppo sweep"
_ABOUT = "Train one algorithm on many settings × many seeds; those that differ in numbers as one program."


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """What is swept. All combinations of the grids' values, with each draw of the samples."""

    grid: tuple[str, ...] = static((), "a setting and its values; may be repeated", metavar="FIELD=A,B,C", append=True)
    random: int = static(0, "so many settings are drawn, each --sample field anew, from --seed", interval="[0, 100000]")
    sample: tuple[str, ...] = static(
        (),
        "uniform:low,high, loguniform:low,high, randint:low,high or choice:a,b,c; repeat it for more settings",
        metavar="FIELD=DISTRIBUTION:A,B",
        append=True,
    )

    def settings(self, config: Config, seed: int) -> list[Settings]:
        """Raises: UsageError."""
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
        return [own | drawn for own in grid(dict(axes)) for drawn in once]


def main(argv: list[str]) -> int:
    """Sweep, and return the exit code, see `exit_code`."""
    console = plain_console()

    def command() -> None:
        with ExitStack() as stack:
            if value_of(argv, "resume"):
                again = parse_resume(argv, _PROG)
                if again.total_steps is not None:
                    raise UsageError("--total-steps cannot be changed on --resume of a sweep; resume single runs.")
                start_jax()
                progress, out, debug = ProgressLine(console, again.quiet), Path(again.resume), again.debug
                sweep, devices = read_sweep(out, progress, again.devices, again.mesh, again.env)
                stack.enter_context(lock(out))
            else:
                given = with_file(argv, tables=("grid", "sample"))
                config, options, host, chosen = parse_settings(given, _PROG, _ABOUT, SweepOptions())
                settings = chosen.settings(config, options.seed)
                start_jax()
                stamp = time.strftime("%Y%m%d-%H%M%S")
                out = Path(options.out or f"runs/sweep-{options.env.replace('/', '-')}-{options.algo}-{stamp}")
                progress, debug = ProgressLine(console, options.quiet), options.debug
                devices = choose_devices(options.devices)
                if options.resume_or_start and (out / SWEEP).exists():
                    sweep, devices = read_sweep(out, progress, options.devices, env=config.env)
                    same_run(sweep.record, config, options.seeds)
                    if to_json(sweep.settings) != to_json(settings):
                        raise UsageError(f"out = {str(out)!r} holds a sweep of other settings; choose another --out.")
                    stack.enter_context(lock(out))
                else:
                    sweep, devices = begin_sweep(config, settings, options.seeds, out, devices, host)
                    stack.enter_context(new_directory(out))
                    sweep.write()
            steps = plan_sweep(sweep, devices, progress)
            progress.show(plan_table(sweep, steps, len(devices)))
            summaries, failed = run_sweep(sweep, steps, devices, progress, debug)
        write_results(out / "results.csv", sweep, summaries)
        title = f"{summaries[0]['algo']} on {summaries[0]['env']}, {plural(len(sweep.record.seeds), 'seed')}"
        draw(out / "results.png", title, sweep.settings, summaries)
        progress.show(results_table(sweep, summaries))
        best = command_of(sweep, best_first(summaries)[0])
        progress.say(f"files in {out}; the best settings, on other seeds:\n{best}")
        if failed:
            first = min(failed)
            raise FailedSettingsError(
                f"{len(failed)} of {plural(len(sweep.settings), 'setting')} have failed, {sweep.names[first]} "
                f"first ({failed[first]}); --resume {out} tries them again."
            )

    return exit_code(command)
