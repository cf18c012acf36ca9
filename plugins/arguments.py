"""Arguments of public functions, checked against the annotations of their parameters: `checked` is
for a function, `checked_fields` for a dataclass."""

import inspect
import reprlib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from lmcast.plugins.annotations import Kind, Refused, kind
from lmcast.plugins.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
SHOWN = 80  # characters of a wrong value that a message shows


class ArgumentError(InputError, TypeError):
    """An argument of a type, in a range or of a name that the function does not take, or none where
    it needs one. A TypeError too, which is what Python raises for most of these."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that raises ArgumentError before it begins, where an argument is not what
    its parameter's annotation accepts, and where arguments do not fit the parameters.

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
            called = function.__qualname__.removesuffix(".__init__")
            raise ArgumentError(f"{called}: {_misfit(signature, args, kwargs)}") from None
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


def _misfit(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return how arguments do not fit a signature, and what is accepted, what is like it first."""
    own = [p for p in signature.parameters.values() if p.name in ("self", "cls")]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    parameters = {
        name: parameter for name, parameter in signature.parameters.items()
        if parameter not in own and parameter.kind is not parameter.VAR_KEYWORD
    }  # fmt: skip
    args = args[len(own) :]
    by_place = [n for n, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]
    placed = by_place[: len(args)]
    for word in kwargs:
        if word not in parameters and not takes_any:
            close = get_close_matches(word, parameters)
            names = [*close, *(name for name in parameters if name not in close)]
            return f"there is no parameter {shown(word)}; accepted: {', '.join(names)}"
        if word in placed:
            return f"{word} is given twice, by its place and by name; accepted: one of the two"
    if surplus := args[len(by_place) :]:
        named = [name for name in parameters if name not in by_place]
        rest = f", and by name: {', '.join(named)}" if named else ""
        places = ", ".join(by_place) or "nothing"
        return f"{shown(surplus[0])} is one too many; accepted by place: {places}{rest}"
    missing = [
        name for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in kwargs and name not in placed
    ]  # fmt: skip
    return f"{', '.join(missing)} is missing; accepted: {', '.join(parameters)}"


def shown(value: object) -> str:
    """Return a value in one short line; any value has one."""
    try:
        text = " ".join(reprlib.repr(value).split())
    except ValueError:  # an integer of thousands of digits
        return f"an {type(value).__name__} of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
