"""Reading a config.json into a typed Config: a dataclass whose fields are the keys."""

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, TypeVar

from lmcast.graphs.config.inert import INERT, NONE, Inert
from lmcast.plugins.annotations import Range
from lmcast.plugins.errors import InputError


class ConfigError(InputError):
    """A config.json that no definition reads in full."""


class UnreadKeys(ConfigError):
    """Keys that nothing reads, and that may change results: `keys` has their paths and values.

    file: the file's name in messages, as 'config.json: '.
    """

    def __init__(self, file: str, keys: Mapping[str, Any]):
        self.keys = dict(keys)
        listed = ", ".join(f"{path} = {value!r:.80}" for path, value in keys.items())
        super().__init__(
            f"{file}sets {listed}, which nothing reads; pass --inert {','.join(keys)} to ignore it,"
            " only where that changes no result"
        )


# 2**24: above any dimension of any model; 4096 layers likewise. A larger number is a damaged file.
Size = Annotated[int, Range(1, 1 << 24)]
Layers = Annotated[int, Range(1, 4096)]
Count = Annotated[int, Range(0, 1 << 24)]
Experts = Annotated[int, Range(1, 4096)]  # of one layer, or chosen by one token
Positive = Annotated[float, Range(1e-30, 1e30)]
EXACT = 1 << 53  # floats hold every whole number up to here; one beyond is no number of a model

T = TypeVar("T")
NOT_NULL = "not null"
# What may be left out, but not be null: Hugging Face's code tells the two apart, and fails.
OrAbsent = Annotated[T | None, NOT_NULL]


def parse(cls: type[T], raw: Mapping[str, Any], at: str, inert: Inert = NONE) -> T:
    """Return the dataclass `cls` from a mapping; `at` begins every message, as 'config.json: '.

    Raises ConfigError for a key that is no field and may change something (see refuse_unread), and
    for a value that is not of its field's type.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    refuse_unread(raw, fields.keys(), at, inert)
    values = {}
    for name, field in fields.items():
        if name not in raw:
            if field.default is field.default_factory is dataclasses.MISSING:
                raise ConfigError(f"{at}{name} is missing; this architecture needs it")
            continue
        values[name] = _convert(hints[name], raw[name], f"{at}{name}", inert)
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{at}{error}") from None


def refuse_unread(raw: Mapping[str, Any], known: Collection[str], at: str, inert: Inert) -> None:
    """Raise UnreadKeys where `raw` sets a key that is neither known nor without effect.

    A key of INERT or `inert` is without effect at a value of the type given there, a key of `inert`
    also at null; any other key at null, false and what is empty.
    """
    path = at.rpartition(": ")[2]
    unread = []
    for key, value in raw.items():
        if key in known:
            continue
        if f"{path}{key}" in inert:
            if value is not None:
                _convert(inert[f"{path}{key}"], value, f"{at}{key}", inert)
        elif key in INERT:
            if not _fits(INERT[key], value):
                unread.append(key)
        elif not (value is None or value is False or value in ("", [], {})):
            unread.append(key)
    if unread:
        keys = {f"{path}{key}": raw[key] for key in sorted(unread)}
        raise UnreadKeys(at.removesuffix(path), keys)


def without(raw: Mapping[str, Any], inert: Collection[str], path: str = "") -> dict[str, Any]:
    """Return `raw` without the keys, of any depth, whose paths are in `inert`.

    path: that of `raw` itself, as 'text_config.'.
    """
    return {
        key: without(value, inert, f"{path}{key}.") if isinstance(value, Mapping) else value
        for key, value in raw.items()
        if f"{path}{key}" not in inert
    }


def _fits(hint: Any, value: Any) -> bool:
    try:
        _convert(hint, value, "", NONE)
    except ConfigError:
        return False
    return True


def _allows_none(hint: Any) -> bool:
    return hint is None or type(None) in typing.get_args(hint)


def _convert(hint: Any, value: Any, at: str, inert: Inert) -> Any:
    """Return `value` as `hint` says, or raise ConfigError."""
    if hint is Any:
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated and args[1] == NOT_NULL:
        if value is None:
            raise ConfigError(f"{at} is None; leave it out, or give a value")
        return _convert(args[0], value, at, inert)
    if origin is Annotated:
        value, bounds = _convert(args[0], value, at, inert), args[1]
        if not bounds.low <= value <= bounds.high:
            raise ConfigError(f"{at} is {value}; accepted: {bounds.low:g} to {bounds.high:g}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and _allows_none(hint):
            return None
        errors = []
        for option in (a for a in args if a is not type(None)):
            try:
                return _convert(option, value, at, inert)
            except ConfigError as error:
                errors.append(error)
        raise errors[0]
    if origin is Literal:
        # bool is an int: True must not pass for 1.
        if not any(value == arg and type(value) is type(arg) for arg in args):
            raise ConfigError(f"{at} is {value!r:.80}; implemented: {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{at} is {value!r:.80}; accepted: a list")
        return tuple(_convert(args[0], v, f"{at}[{i}]", inert) for i, v in enumerate(value))
    if dataclasses.is_dataclass(hint):
        if dataclasses.is_dataclass(value):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{at} is {value!r:.80}; accepted: an object")
        return parse(typing.cast(type, hint), value, f"{at}.", inert)
    if hint is float and type(value) is int and abs(value) <= EXACT:
        return float(value)
    if type(value) is not hint or (hint is float and value - value != 0):
        accepted = {
            int: "an integer",
            float: "a finite number",
            bool: "true or false",
            str: "a string",
        }
        raise ConfigError(f"{at} is {value!r:.80}; accepted: {accepted.get(hint, hint)}")
    return value
