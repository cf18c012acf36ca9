"""Progress of long jobs on standard error: a bar on a terminal, lines everywhere else."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, Timer
from typing import TYPE_CHECKING

from lmcast.exporter.interrupts import Signals
from lmcast.plugins.errors import escaped

if TYPE_CHECKING:
    from rich.console import Console

Step = Callable[[int], None]
# Before a stage is named in a line: what is over sooner, and most of what is refused, says nothing.
PATIENCE = 10.0  # seconds
PARTS = 10  # lines of a stage, at most


class Progress:
    """Receives stages and warnings; this one prints nothing."""

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Step]:
        """Enclose a stage; it yields a function to call with numbers of bytes or steps done."""
        yield lambda done: None

    def warn(self, message: str) -> None:
        """Warn the user of something; the job goes on."""

    def say(self, message: str) -> None:
        """Announce the cost of a long stage before it begins."""


silent = Progress()


def standard_error() -> "Console":
    """Return it as rich's console; a reader that is gone is a BrokenPipeError."""
    from rich.console import Console

    class Stream(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich ends the process with 1, a check that failed

    return Stream(stderr=True)


class Terminal(Progress):
    """Shows the stages on standard error: a bar of rich's where a total is known.

    Where that is no terminal, or one that is to have no codes (TERM=dumb, NO_COLOR), in lines.
    """

    def __init__(self) -> None:
        self.console = standard_error()
        # Not console.is_terminal: FORCE_COLOR asks a log for colours, not for a moving bar.
        moves = self.console.file.isatty() and not self.console.is_dumb_terminal
        self.draws = moves and not self.console.no_color

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Step]:
        if not self.draws:
            with Lines(self.say, name, total).shown() as step:
                yield step
            return
        with bar(self.console, name, total) as step:
            yield step

    def warn(self, message: str) -> None:
        self.console.print(
            f"warning: {escaped(message)}",
            style="yellow",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def say(self, message: str) -> None:
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bar(console: "Console", name: str, total: int | None) -> Iterator[Step]:
    """Draw a stage in place, and remove it at its end."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as Bar

    columns = [SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()]
    if total:
        columns += [BarColumn(), DownloadColumn()]
    # The cursor, which is hidden meanwhile, comes back before a signal ends the process.
    with Signals(), Bar(*columns, console=console, transient=True) as drawn:
        task = drawn.add_task(name, total=total)
        yield lambda done: drawn.advance(task, done)


class Lines:
    """A stage in lines: its name once it has taken a while, then each tenth of it."""

    def __init__(self, say: Callable[[str], None], name: str, total: int | None):
        self._say, self._name, self._total = say, name, total
        self._done, self._part, self._started, self._named = 0, 0, time.monotonic(), False
        self._lock = Lock()  # steps may come from several threads, and the name from a timer

    @contextmanager
    def shown(self) -> Iterator[Step]:
        timer = Timer(PATIENCE, self._announce)
        timer.daemon = True
        timer.start()
        try:
            yield self._step
        finally:
            timer.cancel()

    def _announce(self) -> None:
        with self._lock:
            if not self._named:
                self._say(f"{self._name} ...")
                self._named = True

    def _step(self, done: int) -> None:
        if time.monotonic() - self._started >= PATIENCE:
            self._announce()
        with self._lock:
            self._done += done
            part = PARTS * self._done // self._total if self._total else 0
            if self._part < part < PARTS and self._named:
                seconds = time.monotonic() - self._started
                self._say(f"{self._name}: {100 * part // PARTS} % after {seconds:.0f} s")
                self._part = part
