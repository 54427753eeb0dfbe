"""`purejaxppo envs [WORD]`: the environments' names."""

import dataclasses

from purejaxppo.cli.flags import Command
from purejaxppo.envs.registry import SUITES, env_names, known_names
from purejaxppo.errors import UsageError
from purejaxppo.fields import static
from purejaxppo.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class EnvsOptions:
    """Which environments are listed."""

    word: str = static("", "list only names with this in them, in any case", positional=True, metavar="[WORD]")


def listing(word: str) -> str:
    """A line for each environment, with the algorithms that have a preset for it. Raises: UsageError: there is none."""
    presets: dict[str, list[str]] = {}
    for algo, env in PRESETS:
        presets.setdefault(env, []).append(algo)
    lines, missing = [], []
    for suite in SUITES:
        prefix, why = "" if suite == "gymnax" else f"{suite}/", f"pip install 'purejaxppo[{suite}]'"
        try:
            names = [prefix + name for name in env_names(suite)]
        except UsageError as error:
            names, why = [], why if "is not installed" in str(error) else str(error)
        found = [name for name in names if word.lower() in name.lower()]
        absent = [prefix + name for name in known_names(suite) if word.lower() in f"{prefix}{name}".lower()]
        absent = [name for name in absent if name not in names]
        lines += [f"{suite} ({len(found):,})"] * bool(found)
        lines += [f"  {x:40}preset: {', '.join(presets[x])}" if x in presets else f"  {x}" for x in found]
        missing += [f"  {', '.join([*absent[:3], *['…'] * bool(absent[3:])])}: {why}"] * bool(absent)
    if not lines and not missing:
        raise UsageError(f"no environment has {word!r:.80} in its name; purejaxppo envs lists all.")
    return "\n".join([*lines, *["not installed"] * bool(missing), *missing])


ABOUT = "List the environments, and which have presets."
main = Command("envs", EnvsOptions, ABOUT, lambda options: print(listing(options.word)))
