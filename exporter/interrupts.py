"""Signals that end a job: as an exception where there is something to put in order, never within
an import.

Imports must not be interrupted by an exception: extension modules lose it and report another error
(onnxruntime: 'initialization failed'), and what is imported by halves can crash when the process
ends.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = 130  # exit status: 128 + SIGINT, as shells report it
IMPORTS = "<frozen importlib._bootstrap>"  # code that is on the stack while a module is imported
AGAIN = 0.02  # seconds until a signal that came within an import is looked at once more


def importing(frame: FrameType | None) -> bool:
    """Say whether a frame is within an import."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORTS:
            return True
        frame = frame.f_back
    return False


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle SIGINT for a command: leave at once within an import, else raise."""
    if importing(frame):
        leave()
    raise KeyboardInterrupt


def say() -> None:
    """Write the one line of an interrupted command; on a terminal, behind its ^C."""
    with suppress(OSError):
        os.write(2, b"\ninterrupted\n" if os.isatty(2) else b"interrupted\n")


def leave() -> NoReturn:
    """End the process without running down what it has imported: threads of libraries still run."""
    say()
    os._exit(INTERRUPTED)


class Signals:
    """In the main thread, makes termination an exception, and can put it off for a moment."""

    def __init__(self) -> None:
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        self._holding = False
        self._pending: int | None = None

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                # A program that handles or ignores a signal knows what it wants.
                if signal.getsignal(number) in (
                    signal.SIG_DFL, signal.default_int_handler, interrupt,
                ):  # fmt: skip
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._holding:
            self._pending = number
        elif importing(frame):
            later = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
            later.daemon = True
            later.start()
        else:
            self._raise(number)

    def _raise(self, number: int) -> NoReturn:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)  # the status that a shell reports for the signal

    @contextmanager
    def held(self) -> Iterator[None]:
        """Signals that arrive in the block act at its end."""
        outer, self._holding = self._holding, True
        try:
            yield
        finally:
            self._holding = outer
            if self._pending is not None and not outer:
                number, self._pending = self._pending, None
                self._raise(number)
