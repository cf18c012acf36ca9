"""Progress of long jobs, shown on terminals only, and only after a while."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Step = Callable[[int], None]


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


class Terminal(Progress):
    """Shows the stages on standard error with rich: a bar where a total is known."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Step]:
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
        # Piped output stays silent: rich draws on terminals only.
        with Bar(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        ) as bar:
            task = bar.add_task(name, total=total)
            yield lambda done: bar.advance(task, done)

    def warn(self, message: str) -> None:
        self.console.print(
            f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True
        )

    def say(self, message: str) -> None:
        if self.console.is_terminal:
            self.console.print(message, markup=False, highlight=False, soft_wrap=True)
