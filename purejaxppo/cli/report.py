"""The command: `purejaxppo report DIR... --out report.html`."""

import dataclasses
from pathlib import Path

from purejaxppo.cli.flags import Command
from purejaxppo.fields import static
from purejaxppo.report.page import write_report


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """What is compared."""

    directories: tuple[Path, ...] = static(
        dataclasses.MISSING, "run directories, or directories of runs, as a sweep's", metavar="DIR", positional=True
    )
    out: Path = static(Path("report.html"), "the page, one self-contained .html file", metavar="FILE")


def report(options: ReportOptions) -> None:
    """Write the page, and say where."""
    write_report(list(options.directories), options.out)
    print(options.out)


main = Command("report", ReportOptions, "Compare runs on one page of HTML.", report)
