"""What a person sees while a run lasts."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressLine:
    """A live bar on a terminal, a plain line every few seconds elsewhere, nothing if quiet."""

    def __init__(self, console: Console, total_steps: int, quiet: bool = False, every_seconds: float = 5.0) -> None:
        self._console, self._total, self._quiet, self._every = console, total_steps, quiet, every_seconds
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._began = self._printed = time.monotonic()

    def __enter__(self) -> "ProgressLine":
        if self._console.is_terminal and not self._quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            self._bar = Progress(
                *columns,
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Something worth a line of its own."""
        if not self._quiet:
            self._console.print(text)

    def stage(self, name: str) -> None:
        """What is going on now; time begins anew."""
        self._began = self._printed = time.monotonic()
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=name)
        else:
            self.say(name)

    def advance(self, steps: int, episode_return: float) -> None:
        """So many environment steps are done, of all seeds; `episode_return` is the IQM over them."""
        now = time.monotonic()
        rate = steps / max(now - self._began, 1e-9)
        note = f"{rate / 1e3:,.0f}k steps/s · return {episode_return:.1f}"
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=steps, note=note)
        elif not self._quiet and (now - self._printed > self._every or steps == self._total):
            self._printed = now
            left = (self._total - steps) / max(rate, 1e-9)
            self._console.print(f"{steps:,} of {self._total:,} steps · {note} · {left:.0f} s left")
