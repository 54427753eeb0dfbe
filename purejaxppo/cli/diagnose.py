"""The command: `purejaxppo diagnose DIR [--probe]`."""

import dataclasses
from pathlib import Path

from purejaxppo.cli.command import start_jax
from purejaxppo.cli.flags import Command
from purejaxppo.cli.settings import ENV_AGAIN
from purejaxppo.diagnosis.diagnose import findings, in_words, probe_flags, probe_run
from purejaxppo.fields import static
from purejaxppo.rundir.contents import read_contents


@dataclasses.dataclass(frozen=True)
class DiagnoseOptions:
    """Which run, and how thoroughly."""

    directory: Path = static(dataclasses.MISSING, "the run's directory", metavar="DIR", positional=True)
    probe: bool = static(False, "look at the environment itself, too: act in it for a few hundred steps")
    env: str | None = static(None, ENV_AGAIN)


def print_diagnosis(options: DiagnoseOptions) -> None:
    """Say what is probably wrong. Raises: UsageError."""
    run, probed = read_contents(options.directory), None
    if options.probe:
        start_jax()
        probed = probe_run(options.directory, options.env)
    print("\n".join(in_words(findings(run, probed), run)))
    if probed is None:
        print(f"\nOnly the log was read; {probe_flags(run.env)} looks at the environment, too.")


main = Command("diagnose", DiagnoseOptions, "Say what is probably wrong with a run, and what to try.", print_diagnosis)
