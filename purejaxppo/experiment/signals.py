"""SIGTERM and SIGINT: the first asks, the second ends the process."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from types import FrameType
from typing import Any

from purejaxppo.parallel.hosts import group


class Stopped(KeyboardInterrupt):
    """A run that SIGTERM or SIGINT ended; `code` is the exit code, 128 + the signal's number."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.code = 128 + signum


class Signals:
    """While entered, `received` is the first signal that came (0 is none), to this process or to one that it trains
    together with; a second one to this process ends it at once.

    But in an interactive session, where it would take everything else along: there it is a KeyboardInterrupt. Only the
    main thread may handle signals; elsewhere nothing changes. `tick` is called while one waits, some 20 times a second.
    """

    def __init__(self, tick: Callable[[], Any] = lambda: None) -> None:
        self._own, self._tick = 0, tick
        self._before: dict[int, Any] = {}
        self._waiting = ThreadPoolExecutor(1, "waits-for-devices")

    @property
    def received(self) -> int:
        return self._own or group().signal

    def wait(
        self, work: Callable[[], Any], patience: float = math.inf, left: str = "nothing more had to be saved"
    ) -> Any:
        """`work()` in another thread: handlers run only between two steps of the main thread's own Python code.

        Raises:
            Stopped: a signal came, and it took `patience` seconds more; `left` says what becomes of it.
        """
        from purejaxppo.parallel.machine import for_other_thread  # and JAX, for which the command line does not wait

        future = self._waiting.submit(for_other_thread(work))
        ends = math.inf
        while not wait([future], timeout=0.05).done:
            self._tick()
            if self.received:
                ends = min(ends, time.monotonic() + patience)
            if time.monotonic() >= ends:
                raise Stopped(self.received, left)
        return future.result()

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._own and (hasattr(sys, "ps1") or "ipykernel" in sys.modules):
            raise KeyboardInterrupt
        if self._own:
            os._exit(128 + signum)
        self._own = signum
        group().report_signal(signum)

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            if handler is not None:  # one of another language's
                signal.signal(signum, handler)
        self._waiting.shutdown(wait=False)
