"""The command: `purejaxppo export DIR --seed best --out policy.onnx`."""

import dataclasses
from pathlib import Path

from purejaxppo.cli.command import start_jax
from purejaxppo.cli.flags import Command
from purejaxppo.cli.settings import PolicyOptions
from purejaxppo.fields import static
from purejaxppo.policy.export import OBSERVATIONS, check_name, export_policy
from purejaxppo.policy.load import load


@dataclasses.dataclass(frozen=True)
class ExportOptions(PolicyOptions):
    """Which policy, and where to."""

    out: Path = static(Path("policy.onnx"), "file: .onnx for ONNX Runtime, .jax for jax.export", metavar="FILE")


def export(options: ExportOptions) -> None:
    """Write the file, and say what it is."""
    check_name(options.out)
    start_jax()
    trained = load(options.directory, options.seed, options.checkpoint, options.env)
    difference = export_policy(trained, options.out)
    print(
        f"{options.out}: seed {trained.seed} after {trained.env_steps:,} steps; largest difference from the policy "
        f"{difference:.2g} over {OBSERVATIONS:,} observations"
    )


main = Command("export", ExportOptions, "Write a trained policy as one file.", export)
