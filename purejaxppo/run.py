"""`python -m purejaxppo.run`: train one algorithm on many seeds; the same as `purejaxppo run`."""

import sys

from purejaxppo.cli.command import run_process
from purejaxppo.cli.run import main

if __name__ == "__main__":
    run_process(main, sys.argv[1:])
