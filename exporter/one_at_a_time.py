"""What traces or runs modules of torch, one call at a time in a process."""

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
# While torch.export traces, it replaces what nn.Module does when called, and keeps what it has
# traced in variables of the process: modules that another thread calls meanwhile get into the
# trace. Reentrant: some of the functions call others.
_LOCK = RLock()


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that waits for calls in other threads, of all that are marked so."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with _LOCK:
            return function(*args, **kwargs)

    return wrapper
