"""`purejaxppo --print-completion SHELL`."""

import contextlib
import importlib
import io
from collections.abc import Mapping
from typing import Annotated, Any, Union

import tyro

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.cli.flags import Group, flags_class, grouped
from purejaxppo.cli.settings import NoOptions, RunOptions, groups_of
from purejaxppo.cli.sweep import SweepOptions
from purejaxppo.cli.tune import TuneOptions
from purejaxppo.errors import UsageError

SHELLS = ("bash", "zsh", "fish")


def completion(commands: Mapping[str, str], shell: str = "") -> str:
    """A script that completes the commands and all algorithms' flags. Raises: UsageError: none for that shell."""
    if shell not in SHELLS:
        raise UsageError(f"--print-completion {shell!r:.80} must name a shell: {', '.join(SHELLS)}.")
    every: dict[str, Group] = groups_of(RunOptions(), NoOptions())
    seen = {field.name for group in every.values() for field in group.fields}
    for algorithm in ALGORITHMS.values():
        every.setdefault(algorithm.__name__, group := Group(algorithm(), seen))
        seen = seen | {field.name for field in group.fields}
    kinds: dict[str, Any] = {"run": grouped(every), "sweep": grouped({**every, "sweep": Group(SweepOptions())})}
    kinds["tune"] = grouped({**every, "tune": Group(TuneOptions())})
    for name in commands.keys() - kinds.keys():
        kinds[name] = flags_class(Group(importlib.import_module(f"purejaxppo.cli.{name}").main.options))
    either: Any = Union[  # noqa: UP007
        tuple(Annotated[kinds[name], tyro.conf.subcommand(name, description=about)] for name, about in commands.items())
    ]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        args = ["--tyro-print-completion", shell]
        tyro.cli(either, prog="purejaxppo", args=args, config=(tyro.conf.OmitArgPrefixes,))
    if not printed.getvalue():
        raise UsageError(f"this version of tyro completes nothing for {shell}; pip install -U tyro.")
    return printed.getvalue()
