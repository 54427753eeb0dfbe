"""What a person sees while a run lasts."""

import sys
import time
from collections.abc import Iterable

import numpy as np
from rich import progress as bars
from rich.console import Console, RenderableType
from rich.text import Text

from purejaxppo.errors import plural
from purejaxppo.parallel.hosts import group
from purejaxppo.statistics import FEWEST, decimals, interval_text, iqm, return_text


def plain_console() -> Console:
    """Paths, settings and names of environments are shown as they are: `[red]` and `:x:` stand for nothing else."""
    return Console(highlight=False, markup=False, emoji=False)


class _Bar(bars.Progress):
    """The stages, and under them what is known of the one under way: beside them, it would not fit."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(self.note)


class _Left(bars.TimeRemainingColumn):
    """The time left, where it can be known."""

    def render(self, task: bars.Task) -> Text:
        known = task.total is not None and not task.finished and task.time_remaining is not None
        return super().render(task) + " left" if known else Text()


SILENT_SECONDS = 30.0  # after which a stage that has nothing to tell says so, where there is no bar


class ProgressLine:
    """A live bar on a terminal, a plain line every few seconds elsewhere, nothing if quiet."""

    def __init__(self, console: Console, quiet: bool = False, every_seconds: float = 5.0) -> None:
        self._leads = group().leads  # of several processes, one speaks for all
        self._console, self._quiet, self._every = console, quiet or not self._leads, every_seconds
        self._bar: _Bar | None = None
        self._task: bars.TaskID | None = None
        self._total, self._start, self._stage, self._first = 0, 0, "", True
        self._began = self._printed = time.monotonic()

    def __enter__(self) -> "ProgressLine":
        if self._console.is_terminal and not self._quiet:
            columns = ("{task.description}", bars.BarColumn(20), bars.TaskProgressColumn("{task.percentage:>3.0f}%"))
            self._bar = _Bar(*columns, bars.TimeElapsedColumn(), "elapsed", _Left(), console=self._console)
            self._bar.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._bar:
            if kind is None:
                self._finish_stage()
            self._bar.stop()
            self._bar = self._task = None  # it may be entered again, for the next batch of a sweep

    def say(self, text: str) -> None:
        """Something worth a line of its own."""
        if not self._quiet:
            self._console.print(text, markup=False, emoji=False, soft_wrap=True)

    def show(self, text: RenderableType) -> None:
        """A table."""
        if not self._quiet:
            self._console.print(text)

    def warn(self, text: str) -> None:
        """Something that must be known, even if quiet."""
        if self._leads:
            print(f"warning: {text}", file=sys.stderr)

    def stage(self, name: str, done: int = 0, total: int = 0) -> None:
        """What is going on now, with its own clock; `done` of `total` environment steps were made before."""
        self._began = self._printed = time.monotonic()
        self._start, self._total, self._stage, self._first = done, total, name, True
        if not self._bar:
            self.say(name)
            return
        self._finish_stage()
        self._task = self._bar.add_task(name, total=total or None, completed=done)

    def tick(self) -> None:
        """To be called while something lasts: now and then it says for how long already, where no bar shows it."""
        now = time.monotonic()
        if not self._bar and now - self._printed >= SILENT_SECONDS:
            self._printed = now
            self.say(f"{self._stage} for {now - self._began:.0f} s")

    def _finish_stage(self) -> None:
        """A bar without a known end has reached it."""
        if self._bar and self._task is not None and not self._bar.tasks[self._task].total:
            self._bar.update(self._task, total=1, completed=1)

    def advance(self, steps: int, returns: np.ndarray, alive: int, each: str = "seed") -> None:
        """So many environment steps are done, of all seeds together; `returns` [seeds] are the last ones known.

        `each` is what they are called: where several settings are trained together, they are runs.
        """
        now, seeds = time.monotonic(), returns.size
        first, self._first = self._first, False  # chunk: of one update, whose speed says little of those that follow
        rate = (steps - self._start) / max(now - self._began, 1e-9)
        known = returns[np.isfinite(returns)]
        score = "no episode yet"
        if known.size:
            middle, (low, high) = iqm(known), np.quantile(known, [0.25, 0.75])
            digits = decimals(middle, low, high)
            score = f"return {return_text(middle, digits)}"
            score += f" (quartiles {interval_text(low, high, digits)})" if known.size >= FEWEST else ""
        if alive < seeds:
            score += f" · {seeds - alive} of {plural(seeds, each)} failed"
        speed = f"{steps:,} steps{f' of all {plural(seeds, each)}' if seeds > 1 else ''} · {rate:,.0f} steps/s"
        if self._bar and self._task is not None:
            self._bar.note = f"{speed}\n{score}"
            self._bar.update(self._task, completed=steps)
        elif not self._quiet and (now - self._printed > self._every or steps == self._total):
            self._printed = now
            told = f"{steps / self._total:4.0%} · {speed} · {score}"
            left = (self._total - steps) / max(rate, 1e-9)
            self.say(told if first else f"{told} · {left:.0f} s left")
