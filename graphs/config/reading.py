"""Reading a config.json into a typed Config: a dataclass whose fields are the keys."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Annotated, Any, TypeVar, cast

from lmcast.graphs.config.inert import INERT, NONE, Inert
from lmcast.plugins.annotations import Range
from lmcast.plugins.errors import InputError
from lmcast.plugins.records import NotNull, RecordError, Rules, convert, fields_of


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

T = TypeVar("T")
# What may be left out, but not be null: Hugging Face's code tells the two apart, and fails.
OrAbsent = Annotated[T | None, NotNull()]


def parse(cls: type[T], raw: Mapping[str, Any], at: str, inert: Inert = NONE) -> T:
    """Return the dataclass `cls` from a mapping; `at` begins every message, as 'config.json: '.

    Raises ConfigError for a key that is no field and may change something (see refuse_unread), and
    for a value that is not of its field's type.
    """
    declared = fields_of(cast(Any, cls))
    refuse_unread(raw, declared.keys(), at, inert)
    values = {}
    for name, (hint, needed) in declared.items():
        if name in raw:
            values[name] = _convert(hint, raw[name], f"{at}{name}", inert)
        elif needed:
            raise ConfigError(f"{at}{name} is missing; this architecture needs it")
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


def _convert(hint: Any, value: Any, at: str, inert: Inert) -> Any:
    """Return `value` as `hint` says, or raise ConfigError."""

    def nested(cls: Any, held: Any, place: str) -> Any:
        if dataclasses.is_dataclass(held):
            return held
        if not isinstance(held, Mapping):
            raise ConfigError(f"{place[:-1]} is {held!r:.80}; accepted: an object")
        return parse(cls, held, place, inert)

    try:
        return convert(hint, value, at, Rules(nested, "implemented"))
    except RecordError as error:
        raise ConfigError(str(error)) from None
