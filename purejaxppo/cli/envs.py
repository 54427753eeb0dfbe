"""`purejaxppo envs`: the environments' names."""

from rich.console import Console

from purejaxppo.envs.registry import SUITES, env_names
from purejaxppo.errors import UsageError


def list_envs(console: Console) -> None:
    """Every environment's name, a line each; a suite that is not installed is one line."""
    for suite in SUITES:
        prefix = "" if suite == "gymnax" else f"{suite}/"
        try:
            console.print("\n".join(prefix + name for name in env_names(suite)), soft_wrap=True)
        except UsageError as missing:
            console.print(f"{prefix}…: {missing}", soft_wrap=True, markup=False)
