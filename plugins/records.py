"""JSON read into dataclasses: every field of its type and within its bounds, and no other field.

`read` is for the files that lmcast itself writes, which are as closed as their declarations. A
config.json, whose keys are others' to choose, is read by `graphs/config/reading.py`, with `convert`
for its values.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from lmcast.plugins.annotations import Range
from lmcast.plugins.errors import InputError


class RecordError(InputError):
    """A value that is not as declared; the message begins with its place, not with a file."""


@dataclass(frozen=True)
class Pattern:
    """What a text must match, and the same in words."""

    regex: str
    words: str


@dataclass(frozen=True)
class NotNull:
    """Says that null is another thing than a field left out, and refused."""


MOST = 1 << 53  # numbers of JSON are exact up to here, in any reader
Count = Annotated[int, Range(0, MOST)]
Positive = Annotated[int, Range(1, MOST)]
Nats = Annotated[float, Range(0.0, 1e9)]  # a divergence; far above any of a vocabulary in fp32
Axis = Annotated[int, Range(0, 1 << 32)]  # above any of a state; 0: a convolution of one tap
Name = Annotated[str, Pattern(r"[^\0-\x1f\x7f]+", "a text of printable characters")]
Sha256 = Annotated[str, Pattern("[0-9a-f]{64}", "64 digits of 0-9 and a-f")]
# Relative, with forward slashes, and below the directory that it is meant in.
FilePath = Annotated[
    str,
    Pattern(r"(?!\.{1,2}(/|$))[^/\0]+(/(?!\.{1,2}(/|$))[^/\0]+)*", "a relative path inside"),
]

T = TypeVar("T")


def read(cls: type[T], raw: Any, at: str = "") -> T:
    """Return the dataclass `cls` of a JSON object; raises RecordError for anything but its fields.

    Types of fields: int, float, bool, str, None, Literal, unions of these, tuple, Mapping[str, ...]
    and dataclasses; Mapping[str, Any] is any object. at: the place of the object, as 'graph.'.
    """
    if not isinstance(raw, dict):
        raise RecordError(f"{at.removesuffix('.') or 'it'} is {raw!r:.80}; accepted: an object")
    declared = fields_of(typing.cast(Any, cls))
    if unknown := sorted(raw.keys() - declared.keys()):
        raise RecordError(f"{at}{unknown[0]!s:.80} is unknown; accepted: {', '.join(declared)}")
    values = {}
    for name, (hint, needed) in declared.items():
        if name in raw:
            values[name] = convert(hint, raw[name], f"{at}{name}")
        elif needed:
            raise RecordError(f"{at}{name} is missing")
    try:
        return cls(**values)
    except RecordError as error:
        raise RecordError(f"{at}{error}") from None


@cache
def fields_of(cls: Any) -> dict[str, tuple[Any, bool]]:
    """Return the type of every field, and whether it has no default."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {
        field.name: (
            hints[field.name],
            field.default is field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(cls)
    }


@dataclass(frozen=True)
class Rules:
    """How values are read where files differ.

    nested: (dataclass, value, its place with a dot) -> the dataclass; raises InputError.
    named: the word before what a Literal lists.
    """

    nested: Callable[[Any, Any, str], Any] = read
    named: str = "accepted"


OURS = Rules()


def convert(hint: Any, value: Any, at: str, rules: Rules = OURS) -> Any:
    """Return a value as its type says; raises RecordError that begins with `at`."""
    if hint is Any:
        return value
    if hint is None:
        hint = type(None)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _bounded(args[1], convert(args[0], value, at, rules), at)
    if origin in (typing.Union, types.UnionType):
        return _one_of(args, value, at, rules)
    if origin is Literal:
        # bool is an int: True must not pass for 1.
        if not any(value == arg and type(value) is type(arg) for arg in args):
            listed = ", ".join(map(repr, args))
            raise RecordError(f"{at} is {value!r:.80}; {rules.named}: {listed}")
        return value
    if origin is tuple:
        return _items(args, value, at, rules)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise RecordError(f"{at} is {value!r:.80}; accepted: an object")
        return {k: convert(args[1], held, f"{at}.{k:.80}", rules) for k, held in value.items()}
    if dataclasses.is_dataclass(hint):
        return rules.nested(hint, value, f"{at}.")
    return _plain(hint, value, at)


def _plain(hint: Any, value: Any, at: str) -> Any:
    if hint is float and type(value) is int and abs(value) <= MOST:
        return float(value)
    finite = hint is not float or type(value) is not float or value - value == 0
    if type(value) is not hint or not finite:
        accepted = {
            int: "an integer", float: "a finite number", bool: "true or false", str: "a text",
            dict: "an object", list: "a list", type(None): "null",
        }  # fmt: skip
        raise RecordError(f"{at} is {value!r:.80}; accepted: {accepted[hint]}")
    return value


def _bounded(bounds: Range | Pattern | NotNull, value: Any, at: str) -> Any:
    if isinstance(bounds, NotNull):
        if value is None:
            raise RecordError(f"{at} is None; leave it out, or give a value")
    elif isinstance(bounds, Pattern):
        if not re.fullmatch(bounds.regex, value):
            raise RecordError(f"{at} is {value!r:.80}; accepted: {bounds.words}")
    elif not bounds.low <= value <= bounds.high:
        raise RecordError(f"{at} is {value}; accepted: {bounds.low:.16g} to {bounds.high:.16g}")
    return value


def _one_of(options: tuple[Any, ...], value: Any, at: str, rules: Rules) -> Any:
    if value is None and type(None) in options:
        return None
    errors = []
    for option in (o for o in options if o is not type(None)):
        try:
            return convert(option, value, at, rules)
        except InputError as error:
            errors.append(error)
    raise errors[0]


def _items(args: tuple[Any, ...], value: Any, at: str, rules: Rules) -> tuple[Any, ...]:
    """Return a tuple[X, ...] or a tuple of given types, of a list."""
    if not isinstance(value, list | tuple):
        raise RecordError(f"{at} is {value!r:.80}; accepted: a list")
    if args[-1] is Ellipsis:
        args = args[:1] * len(value)
    if len(args) != len(value):
        raise RecordError(f"{at} is {value!r:.80}; accepted: a list of {len(args)}")
    return tuple(
        convert(a, v, f"{at}[{i}]", rules) for i, (a, v) in enumerate(zip(args, value, strict=True))
    )
