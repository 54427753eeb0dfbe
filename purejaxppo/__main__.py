"""The command `purejaxppo`, which `python -m purejaxppo` is as well: the first word says which."""

import importlib
import sys

from purejaxppo.cli.command import leave

COMMANDS = ("run", "sweep", "evaluate", "render", "report", "export")


def main() -> None:
    """Run one of the commands, and leave with its exit code."""
    name, *argv = sys.argv[1:] or [""]
    if name not in COMMANDS:
        print(f"usage: purejaxppo {{{','.join(COMMANDS)}}} ...", file=sys.stderr)
        leave(2)
    leave(importlib.import_module(f"purejaxppo.cli.{name}").main(argv))


if __name__ == "__main__":
    main()
