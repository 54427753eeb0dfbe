"""The command: `purejaxppo report DIR... --out report.html`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from purejaxppo.cli.command import exit_code, parse_flags
from purejaxppo.report.page import write_report


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """What is compared."""

    directories: Annotated[
        tuple[Path, ...], tyro.conf.arg(help="run directories", metavar="DIR..."), tyro.conf.Positional
    ]
    out: Annotated[Path, tyro.conf.arg(help="the page, one self-contained .html file")] = Path("report.html")


def main(argv: list[str]) -> int:
    """Write the report, and return the exit code, see `exit_code`."""

    def command() -> None:
        options = parse_flags(ReportOptions, argv, "purejaxppo report", "Compare runs on one page of HTML.")
        write_report(list(options.directories), options.out)
        print(options.out)

    return exit_code(command)
