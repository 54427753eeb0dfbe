"""What all commands share: flags from a dataclass, errors in one line, exit codes."""

import contextlib
import difflib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, TypeVar

import tyro

from purejaxppo.errors import HostEnvironmentError, UsageError
from purejaxppo.experiment.signals import Stopped

Options = TypeVar("Options")


def exit_code(command: Callable[[], None]) -> int:
    """0; 2 for what cannot be done; 1 if the system refuses, as a full disk does, or an environment on the host fails;
    128 + n after signal n.

    What is not 0 is told in one line on stderr.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGTERM, signal.SIGINT) if in_main_thread else ()
    before = [(signum, signal.signal(signum, _terminate)) for signum in signals]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            command()
    except UsageError as error:
        return _tell(f"error: {error}", 2)
    except (OSError, HostEnvironmentError) as error:
        return _tell(f"error: {error}", 1)
    except Stopped as stop:
        return _tell(f"stopped: {stop}", stop.code)
    except KeyboardInterrupt:
        return _tell("stopped: nothing had to be saved", 130)
    finally:
        for signum, handler in before:
            signal.signal(signum, handler)
    return 0


def leave(code: int) -> None:
    """End the process. After a signal at once: a compilation under way need not be waited for.

    Where it failed, all is said, and threads that still write to a full disk have nothing to add.
    """
    if code:
        silent: Any = lambda *_: None  # noqa: E731
        sys.excepthook = sys.unraisablehook = threading.excepthook = silent
    sys.stdout.flush()
    sys.stderr.flush()
    if code > 128:
        os._exit(code)
    sys.exit(code)


def _terminate(signum: int, frame: FrameType | None) -> None:
    """Where no run is under way. An exception might be lost here, in a callback of the garbage collector, say."""
    os._exit(_tell("stopped: nothing had to be saved", 128 + signum))


def _tell(text: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(" ".join(text.split()), file=sys.stderr)
    return code


def parse_flags(
    kind: Callable[..., Options], argv: Sequence[str], prog: str, about: str, default: Any = None
) -> Options:
    """tyro's parsing, its boxed errors turned into one line.

    Raises:
        UsageError: a value of the wrong type, or one that is missing.
        SystemExit: after `--help`.
    """
    boxed = io.StringIO()
    chosen = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(boxed):
            return tyro.cli(
                kind, prog=prog, description=about, args=argv, config=(tyro.conf.OmitArgPrefixes,), **chosen
            )
    except SystemExit as stop:
        if not stop.code:
            raise
    _, *lines = (line.strip(" │╭╮╰╯─┃") for line in boxed.getvalue().splitlines())
    text = " ".join(line for line in lines if line)
    for aside in ("Argument helptext:", "For full helptext"):
        text = text.partition(aside)[0]
    raise UsageError(f"{text.strip().rstrip('.')}; --help shows what each flag takes.")


def flag_name(token: str) -> str:
    """`--no-some_flag=3` → `some-flag`; empty if the token is no flag."""
    flag = token.partition("=")[0].replace("_", "-")
    return flag.removeprefix("--").removeprefix("no-") if flag.startswith("--") else ""


def closest_flag(name: str, known: set[str]) -> str:
    """What was meant by a flag that is none."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean --{close[0]}?" if close else "--help shows all."
