"""`purejaxppo --print-completion SHELL`."""

import contextlib
import io
from collections.abc import Mapping
from typing import Annotated, Any, Union

import tyro

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.cli.envs import EnvsOptions
from purejaxppo.cli.evaluate import EvaluateOptions
from purejaxppo.cli.export import ExportOptions
from purejaxppo.cli.flags import Group, flags_class, grouped
from purejaxppo.cli.presets import PresetsOptions
from purejaxppo.cli.render import RenderOptions
from purejaxppo.cli.report import ReportOptions
from purejaxppo.cli.settings import NoOptions, groups_of
from purejaxppo.cli.sweep import SweepOptions
from purejaxppo.errors import UsageError

SHELLS = ("bash", "zsh")


def completion(commands: Mapping[str, str], shell: str = "") -> str:
    """A script that completes the commands and their flags, those of all algorithms.

    Raises:
        UsageError: there is none for that shell.
    """
    if shell not in SHELLS:
        raise UsageError(f"--print-completion {shell!r:.80} must name a shell: {', '.join(SHELLS)}.")
    every: dict[str, Group] = groups_of("ppo", "CartPole-v1", NoOptions())
    seen = {field.name for group in every.values() for field in group.fields}
    for algorithm in ALGORITHMS.values():
        every.setdefault(algorithm.__name__, group := Group(algorithm(), seen))
        seen = seen | {field.name for field in group.fields}
    kinds: dict[str, Any] = {"run": grouped(every), "sweep": grouped({**every, "sweep": Group(SweepOptions())})}
    others = (EvaluateOptions, RenderOptions, ReportOptions, ExportOptions, EnvsOptions, PresetsOptions)
    kinds |= {name: flags_class(Group(kind)) for name, kind in zip([*commands][2:], others, strict=True)}
    either: Any = Union[  # noqa: UP007
        tuple(Annotated[kind, tyro.conf.subcommand(name, description=commands[name])] for name, kind in kinds.items())
    ]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        args = ["--tyro-print-completion", shell]
        tyro.cli(either, prog="purejaxppo", args=args, config=(tyro.conf.OmitArgPrefixes,))
    return printed.getvalue()
