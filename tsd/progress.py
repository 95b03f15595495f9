"""Progress display of a stage: name, completed share, remaining time."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

QUIET_SECONDS = 10.0  # between two lines on output that is not a terminal


class Step:
    """A stage in progress. `advance` counts work finished since the last call."""

    def __init__(self, total: float, show: Callable[["Step"], None]) -> None:
        self.total = total
        self.done = 0.0
        self.skipped = 0.0
        self.note = ""
        self.started = time.monotonic()
        self._paced = self.started  # start of the rate measurement
        self._show = show

    def skip(self, amount: float) -> None:
        """Count work that an earlier start has finished. It does not affect the rate."""
        self.skipped += amount
        self._show(self)

    def advance(self, amount: float, note: str = "") -> None:
        """Count work finished now. note: text to show, if not empty."""
        self.done += amount
        self.note = note or self.note
        self._show(self)

    def begin(self) -> None:
        """Start measuring the rate now: time before was setup."""
        if self.done <= 0:
            self._paced = time.monotonic()

    @property
    def share(self) -> float:
        """Completed share of the stage, 0 to 1."""
        return min(1.0, (self.done + self.skipped) / self.total) if self.total else 1.0

    @property
    def rate(self) -> float:
        """Units finished per second, since the measurement started."""
        return self.done / max(time.monotonic() - self._paced, 1e-6)

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds left at the current rate; None before anything is finished."""
        if self.done <= 0:
            return None
        return max(0.0, self.total - self.done - self.skipped) / self.rate


class Reporter:
    """Shows stages on a console: a live bar on a terminal, occasional lines elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        # Bound to the current stream, so that output of libraries can be redirected meanwhile.
        self.console = console or Console(file=sys.stdout, highlight=False)

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, soft_wrap=True)

    @contextmanager
    def stage(self, title: str, total: float, unit: str) -> Iterator[Step]:
        """Show a stage while it runs, and its duration at the end. An empty unit shows a percentage."""
        if self.console.is_terminal:
            with self._bar(title, total, unit) as step:
                yield step
        else:
            self.say(f"{escape(title)} …")
            step = Step(total, self._lines(title, unit))
            yield step
        took = clock(time.monotonic() - step.started)
        count = f"{step.done + step.skipped:,.0f} {unit}" if unit else step.note
        again = f", {step.skipped:,.0f} of them from before" if step.skipped and unit else ""
        self.say(f"[green]✓[/] {escape(title):<32} {escape(count)}{again} in {took}")

    @contextmanager
    def _bar(self, title: str, total: float, unit: str) -> Iterator[Step]:
        """Show a live progress bar on a terminal inside this context."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<32}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]} {task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(title, total=1.0, count="", left="", note="")

            def show(step: Step) -> None:
                bar.update(task, completed=step.share, count=_count(step, unit), left=_left(step), note=step.note)

            yield Step(total, show)

    def _lines(self, title: str, unit: str) -> Callable[[Step], None]:
        shown = time.monotonic()

        def show(step: Step) -> None:
            nonlocal shown
            if time.monotonic() - shown >= QUIET_SECONDS:
                shown = time.monotonic()
                elapsed = clock(shown - step.started)
                said = [f"{_count(step, unit)} after {elapsed}", _left(step), step.note]
                self.say(escape(f"  {title}: {', '.join(part for part in said if part)}"))

        return show


def clock(seconds: float) -> str:
    """Format a duration: 4.2 s, 42 s, 1 min 05 s, 2 h 03 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _count(step: Step, unit: str) -> str:
    if not unit:
        return f"{step.share:.0%}"
    return f"{step.done + step.skipped:,.0f}/{step.total:,.0f} {unit}"


def _left(step: Step) -> str:
    left = step.seconds_left
    return f"about {clock(left)} left" if left is not None else ""
