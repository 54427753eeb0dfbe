"""`purejaxppo presets [ENV]`: the settings that come with an algorithm and an environment."""

import dataclasses
import shlex

from purejaxppo.cli.flags import Command
from purejaxppo.errors import UsageError
from purejaxppo.fields import static
from purejaxppo.presets import PRESETS, SOURCES, as_flags


@dataclasses.dataclass(frozen=True)
class PresetsOptions:
    """Which presets are listed."""

    env: str = static("", "list only those of environments with this in their name", metavar="[ENV]", positional=True)


def list_presets(options: PresetsOptions) -> None:
    """Raises: UsageError: there is none."""
    chosen = [key for key in PRESETS if options.env.lower() in key[1].lower()]
    if not chosen:
        raise UsageError(f"no preset for {options.env!r:.40}; settings are then as the algorithm's source has them.")
    for algo, env in sorted(chosen, key=lambda key: key[1].lower()):
        print(f"--algo {algo} --env {env}  ({SOURCES[algo, env]})\n    {shlex.join(as_flags(PRESETS[algo, env]))}")


ABOUT = "List the presets: settings, as flags, that --algo and --env bring along, and where they are from."
main = Command("presets", PresetsOptions, ABOUT, list_presets)
