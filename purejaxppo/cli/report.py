"""The command: `purejaxppo report DIR... --out report.html`."""

import dataclasses
from pathlib import Path

from purejaxppo.cli.command import exit_code
from purejaxppo.cli.flags import parse_flags
from purejaxppo.fields import static
from purejaxppo.report.page import write_report


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """What is compared."""

    directories: tuple[Path, ...] = static(
        dataclasses.MISSING, "run directories, or directories of runs, as a sweep's", metavar="DIR", positional=True
    )
    out: Path = static(Path("report.html"), "the page, one self-contained .html file", metavar="FILE")


def main(argv: list[str]) -> int:
    """Write the report, and return the exit code, see `exit_code`."""

    def command() -> None:
        options = parse_flags(ReportOptions, argv, "purejaxppo report", "Compare runs on one page of HTML.")
        write_report(list(options.directories), options.out)
        print(options.out)

    return exit_code(command)
