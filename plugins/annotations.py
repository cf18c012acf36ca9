"""What annotations of parameters and fields accept: ranges of numbers, words, paths, collections.

`kind` has an entry for each form of annotation; one that has none there fails at the first call.
"""

import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Annotated, Any, Literal


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)  # hashed by identity: a table is none
class OneOf:
    """The only values accepted: those of a collection, or the keys of a table, as they are when the
    function is called."""

    values: Collection[Any]


Count = Annotated[int, Range(1, 1 << 31)]  # of what is bounded elsewhere, by contexts and texts
Rows = Annotated[int, Range(1, 1 << 16)]
Threads = Annotated[int, Range(1, 1 << 16)]
Runs = Annotated[int, Range(1, 10_000)]
Seed = Annotated[int, Range(0, (1 << 63) - 1)]  # what torch and numpy take both


class Refused(Exception):
    """A value is not of a kind."""


@dataclass(frozen=True)
class Kind:
    """What an annotation accepts, in words, and a function that returns a value as it is passed on,
    or raises Refused."""

    accepted: str
    take: Callable[[Any], Any]


def kind(hint: Any) -> Kind:
    """Return what an annotation accepts."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, inspect.Parameter.empty):
        return Kind("anything", lambda value: value)
    if hint in PLAIN:
        return PLAIN[hint]
    if origin is Annotated:
        return reduce(limited, args[1:], kind(args[0]))
    if origin in (typing.Union, types.UnionType):
        return either([kind(option) for option in without_text(args)])
    if origin is Literal:
        return among(args)
    if origin is tuple and args[1:] != (...,):
        return each([kind(item) for item in args])
    if origin in COLLECTIONS:
        return several(kind(args[0]), *COLLECTIONS[origin])
    if origin is Mapping:
        return mapping(kind(args[0]), args[1])
    if origin is Callable:
        return Kind("a function", partial(require, callable))
    if origin is os.PathLike:
        return PATH
    assert isinstance(hint, type), f"{hint} is no annotation that arguments are checked against"
    return instance(hint)


def require(holds: Callable[[Any], bool], value: Any) -> Any:
    """Return a value of which something holds; raises Refused."""
    if not holds(value):
        raise Refused
    return value


def integer(value: Any) -> int:
    """Return an integer of Python's or of numpy's; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise Refused
    return int(value)


def number(value: Any) -> float:
    """Return a finite number; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise Refused
    try:
        found = float(value)
    except OverflowError:
        raise Refused from None
    return require(math.isfinite, found)


def path(value: Any) -> Any:
    """Return a path as it is given: a text or os.PathLike that may name a file."""
    if not isinstance(value, str | os.PathLike):
        raise Refused
    name = os.fspath(value)
    if not isinstance(name, str) or not name or "\0" in name:
        raise Refused
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair
        raise Refused from None
    return value


PATH = Kind("a path", path)
PLAIN: dict[Any, Kind] = {
    None: Kind("None", partial(require, lambda value: value is None)),
    type(None): Kind("None", partial(require, lambda value: value is None)),
    str: Kind("a text", partial(require, lambda value: isinstance(value, str))),
    bool: Kind("True or False", partial(require, lambda value: isinstance(value, bool))),
    int: Kind("an integer", integer),
    float: Kind("a finite number", number),
    Path: Kind("a path", lambda value: Path(path(value))),
}


# Of an annotation: what is taken, and what that becomes.
COLLECTIONS: dict[Any, tuple[Any, Callable[[Any], Any]]] = {
    tuple: (Sequence, tuple),
    Sequence: (Sequence, list),
    Collection: (Collection, tuple),
    frozenset: (Set, frozenset),
}


def limited(of: Kind, limit: object) -> Kind:
    """Return a kind with a limit: a Range, a OneOf, or its words alone."""
    if isinstance(limit, str):
        return Kind(limit, of.take)
    if isinstance(limit, OneOf):
        return among(limit.values)
    assert isinstance(limit, Range)

    def take(value: Any) -> Any:
        found = of.take(value)
        return require(lambda found: limit.low <= found <= limit.high, found)

    low, high = (f"{x:g}" if isinstance(x, float) else str(x) for x in (limit.low, limit.high))
    return Kind(f"{of.accepted} from {low} to {high}", take)


def without_text(options: Sequence[Any]) -> list[Any]:
    """Return the options of a union; where paths are among them, texts are paths."""
    has_paths = any(typing.get_origin(option) is os.PathLike for option in options)
    return [option for option in options if not (has_paths and option is str)]


def either(options: Sequence[Kind]) -> Kind:
    """Return the kind of values that are of one of several."""

    def take(value: Any) -> Any:
        for option in options:
            try:
                return option.take(value)
            except Refused:
                continue
        raise Refused

    *others, last = [option.accepted for option in options]
    return Kind(f"{', '.join(others)} or {last}" if others else last, take)


def among(values: Collection[Any]) -> Kind:
    """Return the kind of these values alone; True is not 1."""

    def take(value: Any) -> Any:
        for accepted in values:
            if type(value) is type(accepted) and value == accepted:
                return accepted
        raise Refused

    return Kind(", ".join(map(str, values)), take)


def several(of: Kind, base: Any, made: Callable[[Any], Any]) -> Kind:
    """Return the kind of collections whose items are of a kind; a text is none, nor are bytes."""

    def take(value: Any) -> Any:
        if hasattr(value, "tolist"):  # an array, or a scalar of one
            value = value.tolist()
        if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, base):
            raise Refused
        return made([of.take(item) for item in value])

    return Kind(f"a list, each item {of.accepted}", take)


def each(of: Sequence[Kind]) -> Kind:
    """Return the kind of lists with one item of each kind, in their order."""

    def take(value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != len(of):
            raise Refused
        return tuple(kind.take(item) for kind, item in zip(of, value, strict=True))

    return Kind(f"{len(of)} items: {', '.join(kind.accepted for kind in of)}", take)


def mapping(key: Kind, hint: Any) -> Kind:
    """Return the kind of mappings; one of anything is passed on as it is."""
    of = kind(hint)

    def take(value: Any) -> Any:
        require(lambda value: isinstance(value, Mapping), value)
        found = {key.take(k): of.take(v) for k, v in value.items()}
        return value if hint is Any else found

    return Kind(f"a mapping from {key.accepted} to {of.accepted}", take)


def instance(cls: type) -> Kind:
    """Return the kind of objects of a class, or that have what a Protocol names."""
    if not getattr(cls, "_is_protocol", False):
        return Kind(f"a {cls.__name__}", partial(require, lambda value: isinstance(value, cls)))
    members = [name for name in vars(cls) if not name.startswith("_")]
    return Kind(
        f"an object with {', '.join(members)}",
        partial(require, lambda value: all(hasattr(value, name) for name in members)),
    )
