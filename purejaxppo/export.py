"""The command: `python -m purejaxppo.export DIR --seed best --out policy.onnx`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from purejaxppo.command import exit_code, leave, parse_flags
from purejaxppo.experiment.export import OBSERVATIONS, check_name, export_policy
from purejaxppo.experiment.trained import load


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Which policy, and where to."""

    directory: Annotated[Path, tyro.conf.arg(help="a run's directory", metavar="DIR"), tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.arg(help="file to write: .onnx for ONNX Runtime, .jax for jax.export")]
    seed: Annotated[str, tyro.conf.arg(help="a seed's number, or the best by evaluation", metavar="best|K")] = "best"
    checkpoint: Annotated[
        str, tyro.conf.arg(help="the environment steps of one that was kept, or the last", metavar="last|STEPS")
    ] = "last"
    env: Annotated[
        str | None, tyro.conf.arg(help="needed again where it is module:Class: a file is not trusted to run code")
    ] = None


def main(argv: list[str]) -> int:
    """Export, and return the exit code, see `exit_code`."""

    def command() -> None:
        options = parse_flags(ExportOptions, argv, "purejaxppo.export", "Write a trained policy as one file.")
        check_name(options.out)
        trained = load(options.directory, options.seed, options.checkpoint, options.env)
        difference = export_policy(trained, options.out)
        print(
            f"{options.out}: seed {trained.seed} after {trained.env_steps:,} steps; largest difference from the policy "
            f"{difference:.2g} over {OBSERVATIONS:,} observations"
        )

    return exit_code(command)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
