"""The command `purejaxppo`, which `python -m purejaxppo` is as well: the first word says which."""

import importlib
import os
import sys
from typing import NoReturn

from purejaxppo._version import __version__
from purejaxppo.cli.command import exit_code, run_process
from purejaxppo.errors import UsageError
from purejaxppo.parallel.places import expects_others

COMMANDS = {
    "run": "train one algorithm on many seeds, as one compiled program",
    "sweep": "train one algorithm on many settings × many seeds",
    "tune": "search for settings, and judge the best on seeds of their own",
    "evaluate": "evaluate what a run has learnt, here and in Gymnasium",
    "render": "film what a run has learnt, as .gif or .mp4",
    "report": "compare runs on one page of HTML",
    "diagnose": "say what is probably wrong with a run, and what to try",
    "export": "write a trained policy as one file, ONNX or jax.export",
    "envs": "list the environments",
    "presets": "list the settings that come with an algorithm and an environment",
}
OVERVIEW = f"""usage: purejaxppo COMMAND [OPTIONS]

Seven policy-gradient methods, CEM and CMA-ES, compiled end to end in JAX.

{chr(10).join(f"  {name:9} {about}" for name, about in COMMANDS.items())}

examples:
  purejaxppo run --algo trpo --env Pendulum-v1 --num-seeds 4 --out runs/pendulum
  purejaxppo run --resume runs/pendulum --total-steps 1e6
  purejaxppo sweep --algo trpo --grid max_kl=0.003,0.01,0.03
  purejaxppo tune --algo ppo --env Acrobot-v1 --total-steps 1e5 --trials 64
  purejaxppo render runs/pendulum --out pendulum.gif
  purejaxppo report runs/* --out report.html

purejaxppo COMMAND --help shows a command's flags, run --algo ALGO --env ENV --help those of an algorithm with their
defaults. --version; --print-completion bash|zsh|fish prints a script for the shell.
"""


def front(argv: list[str]) -> int:
    """Run one of the commands, and return its exit code."""
    name, *others = argv or ["--help"]
    if name == "run" and expects_others(others):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what C++ would log of a process that is lost, we say
    if name in COMMANDS:
        return int(importlib.import_module(f"purejaxppo.cli.{name}").main(others))
    return exit_code(lambda: print(_answer(name, others), end=""))


def _answer(name: str, others: list[str]) -> str:
    if name in ("-h", "--help"):
        return OVERVIEW
    if name == "--version":
        return f"purejaxppo {__version__}\n"
    if name == "--print-completion":
        from purejaxppo.cli.completion import completion

        return completion(COMMANDS, *others[:1])
    from purejaxppo.fields import did_you_mean

    hint = did_you_mean(name, COMMANDS) or f"there are: {', '.join(COMMANDS)}."
    raise UsageError(f"{name!r:.80} is not a command; {hint}")


def main() -> NoReturn:
    """This process is the command. Modules of the user's own are found where it is called, as by `python -m`."""
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    run_process(front, sys.argv[1:])


if __name__ == "__main__":
    main()
