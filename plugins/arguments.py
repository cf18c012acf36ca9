"""Arguments of public functions, checked against the annotations of their parameters: `checked` is
for a function, `checked_fields` for a dataclass."""

import inspect
import reprlib
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from lmcast.plugins.annotations import Kind, Refused, kind
from lmcast.plugins.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
SHOWN = 80  # characters of a wrong value that a message shows


class ArgumentError(InputError):
    """An argument of a type, or in a range, that the function does not take."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that raises ArgumentError before it begins, where an argument is not what
    its parameter's annotation accepts.

    Numbers of numpy become Python's, arrays and other sequences lists or tuples, and texts where a
    Path is annotated one. `Any` and parameters without annotation take anything.
    """
    signature = inspect.signature(function)
    kinds: dict[str, Kind] = {}

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python says what is missing or not known
        if not kinds:
            kinds.update({name: kind(p.annotation) for name, p in signature.parameters.items()})
        for name, value in bound.arguments.items():
            try:
                bound.arguments[name] = kinds[name].take(value)
            except Refused:
                raise ArgumentError(
                    f"{name} is {shown(value)}; accepted: {kinds[name].accepted}"
                ) from None
        return function(*bound.args, **bound.kwargs)

    return wrapper


def checked_fields(cls: type[T]) -> type[T]:
    """Return a dataclass that checks its fields as `checked` does arguments."""
    setattr(cls, "__init__", checked(vars(cls)["__init__"]))  # noqa: B010 (types see no method)
    return cls


def shown(value: object) -> str:
    """Return a value in one short line; any value has one."""
    try:
        text = " ".join(reprlib.repr(value).split())
    except ValueError:  # an integer of thousands of digits
        return f"an {type(value).__name__} of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
