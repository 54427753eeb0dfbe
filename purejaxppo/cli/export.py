"""The command: `purejaxppo export DIR --seed best --out policy.onnx`."""

import dataclasses
from pathlib import Path

from purejaxppo.cli.command import exit_code, start_jax
from purejaxppo.cli.flags import parse_flags
from purejaxppo.cli.settings import PolicyOptions
from purejaxppo.experiment.failures import host_environments
from purejaxppo.fields import static
from purejaxppo.policy.export import OBSERVATIONS, check_name, export_policy
from purejaxppo.policy.load import load


@dataclasses.dataclass(frozen=True)
class ExportOptions(PolicyOptions):
    """Which policy, and where to."""

    out: Path = static(
        Path("policy.onnx"), "file to write: .onnx for ONNX Runtime, .jax for jax.export", metavar="FILE"
    )


def main(argv: list[str]) -> int:
    """Export, and return the exit code, see `exit_code`."""

    def command() -> None:
        options = parse_flags(ExportOptions, argv, "purejaxppo export", "Write a trained policy as one file.")
        check_name(options.out)
        start_jax()
        trained = load(options.directory, options.seed, options.checkpoint, options.env)
        with host_environments(trained.config.environment, [trained.seed], lambda _: "mend the environment"):
            difference = export_policy(trained, options.out)
        print(
            f"{options.out}: seed {trained.seed} after {trained.env_steps:,} steps; largest difference from the policy "
            f"{difference:.2g} over {OBSERVATIONS:,} observations"
        )

    return exit_code(command)
