"""What all commands share as processes: exit codes, errors in one line, signals, output that cannot fail.

Nothing here imports JAX before a command needs it.
"""

import codecs
import contextlib
import errno
import io
import os
import re
import signal
import sys
import threading
import unicodedata
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from purejaxppo.errors import FailedSettingsError, HostEnvironmentError, UsageError, reason
from purejaxppo.experiment.signals import Stopped

_PLAIN = {  # what Unicode's own decompositions do not say in ASCII
    **dict.fromkeys("·–—−─━", "-"),
    **dict.fromkeys("│┃‖", "|"),
    **dict.fromkeys("╭╮╰╯", "+"),
    **{letter: unicodedata.name(letter).rpartition(" ")[2].lower() for letter in "αβγδεθπστ"},
    **{"λ": "lambda", "×": "x", "→": "->", "↦": "->", "≤": "<=", "≥": ">=", "±": "+-", "√": "sqrt", "∞": "inf"},
}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # of Gymnasium's warnings, wherever they go


def exit_code(command: Callable[[], None]) -> int:
    """0; 2 for what cannot be done; 1 if the system refuses, as a full disk does, an environment on the host fails, or
    some settings of a sweep have failed; 128 + n after signal n.

    What is not 0 is told in one line on stderr.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print("warning:", _COLOUR.sub("", str(message)), file=sys.stderr)
            command()
    except SystemExit as done:  # after --help
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except UsageError as error:
        return _tell(f"error: {error}", 2)
    except (OSError, HostEnvironmentError, FailedSettingsError) as error:
        return _tell(f"error: {error}", 1)
    except Stopped as stop:
        return _tell(f"stopped: {stop}", stop.code)
    except KeyboardInterrupt:
        return _tell("stopped: nothing had to be saved", 130)
    except BaseException as error:
        if others := joined():  # the others shall not wait for a process with an error of ours
            if isinstance(error, RuntimeError):  # JAX's, of a program that several processes have together
                others.await_loss()
            others.begin_to_leave()
            others.leave(reason(error), 1)
        raise
    if others := joined():
        others.leave("", 0)
    return 0


def start_jax(alone: bool = False, join: Callable[[], None] = lambda: None) -> None:
    """Give JAX the CPU's cores, see `use_cpu_cores`, and start it, after `join`, which may make it one of several.

    Raises:
        UsageError: it cannot, or not compile.
    """
    import jax

    from purejaxppo.parallel.devices import choose_devices, use_cpu_cores

    use_cpu_cores(alone)
    if jax.config.values["jax_disable_jit"]:
        raise UsageError("JAX_DISABLE_JIT is set, and all of training is one compiled program; unset it.")
    join()
    choose_devices(None)


def joined() -> Any:
    """The processes that this one trains together with, see `parallel.hosts`; None if it is by itself."""
    hosts = sys.modules.get("purejaxppo.parallel.hosts")
    return hosts.group() if hosts and hosts.group().count > 1 else None


def run_process(main: Callable[[list[str]], int], argv: list[str]) -> NoReturn:
    """Run a command as this process, and end it with the command's exit code.

    Called as a function instead, a command leaves signals and output as it finds them.
    """
    sys.stdout, sys.stderr = _tolerant(sys.stdout), _tolerant(sys.stderr)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _terminate)
    code = main(argv)
    sys.stdout.flush()
    if _Tolerant.lost and not code:
        code = _tell(f"error: output could not be written ({os.strerror(_Tolerant.lost)})", 1)
    if code:  # all is said, and threads that still write to a full disk have nothing to add
        silent: Any = lambda *_: None  # noqa: E731
        sys.excepthook = sys.unraisablehook = threading.excepthook = silent
    sys.stderr.flush()
    if code > 128 or joined():
        os._exit(code)  # a compilation under way need not be waited for, nor what JAX does for processes that stay
    sys.exit(code)


def _terminate(signum: int, frame: FrameType | None) -> None:
    """Where no run is under way. An exception might be lost here, in a callback of the garbage collector, say.

    The line goes to the process's own stderr: while flags are parsed, `sys.stderr` is another, whose text is dropped.
    """
    with contextlib.suppress(OSError, ValueError):  # closed
        if sys.__stderr__ is not None:
            os.write(sys.__stderr__.fileno(), b"stopped: nothing had to be saved\n")
    if others := joined():
        others.leave("nothing had to be saved", 128 + signum)
    os._exit(128 + signum)


def _tell(text: str, code: int) -> int:
    others = joined()
    if others:
        others.begin_to_leave()
    with contextlib.suppress(OSError):
        print(" ".join(text.split()), file=sys.stderr, flush=True)
    if others:
        others.leave(text.partition(": ")[2], code)
    return code


class _Tolerant(io.FileIO):
    """A file whose reader may leave, as `head` does, or whose disk may be full: a run does not end for its output."""

    lost = 0  # errno of what could not be written

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno != errno.EPIPE:
                _Tolerant.lost = error.errno or errno.EIO
            return len(data)


def _tolerant(stream: Any) -> Any:
    """A stream that takes all text: what its encoding lacks in ASCII, what nobody reads not at all."""
    if stream is None:  # the process was started with it closed
        return open(os.devnull, "w", encoding="utf-8")
    file = getattr(stream, "buffer", None)
    if not isinstance(file, io.BufferedWriter | io.FileIO):  # a notebook's, say
        return stream
    stream.flush()
    raw = io.BufferedWriter(_Tolerant(stream.fileno(), "w", closefd=False))
    by_line = stream.line_buffering or isinstance(file, io.FileIO)  # PYTHONUNBUFFERED
    return io.TextIOWrapper(raw, stream.encoding, "purejaxppo.plain", line_buffering=by_line)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error

    def ascii_of(letter: str) -> str:
        return _PLAIN.get(letter) or unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode() or "?"

    return "".join(map(ascii_of, error.object[error.start : error.end])), error.end


codecs.register_error("purejaxppo.plain", _plain)
