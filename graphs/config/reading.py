"""The record of an architecture, and the reading of a config.json into its typed Config."""

import dataclasses
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.config.inert import INERT, USUAL
from lmcast.graphs.weights.bind import Table
from lmcast.plugins.errors import InputError


class ConfigError(InputError):
    """A config.json that no definition reads in full."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number in a config, both included."""

    low: float
    high: float


# 2**24: above any dimension of any model; 4096 layers likewise. A larger number is a damaged file.
Size = Annotated[int, Range(1, 1 << 24)]
Layers = Annotated[int, Range(1, 4096)]
Count = Annotated[int, Range(0, 1 << 24)]
Experts = Annotated[int, Range(1, 4096)]  # of one layer, or chosen by one token
Positive = Annotated[float, Range(1e-30, 1e30)]


@dataclass(frozen=True, kw_only=True)
class Arch:
    """One architecture: how its config is read, its model built, its weights found.

    `tidy` turns legacy spellings of a raw config into the Config's own; `weights` says where our
    modules and parameters come from. `beside` are modules that checkpoints hold beside the text
    model, or finds them by a config and the names of tensors: known, and left out.
    `spare` are modules and parameters of a layer that checkpoints also store where a layer of ours
    has none: left out too.
    """

    name: str  # the model_type
    config: type
    build: Callable[[Any], Decoder]
    weights: Table | Callable[[Any], Table]
    tidy: Callable[[dict[str, Any]], dict[str, Any]] = dict
    beside: tuple[str, ...] | Callable[[Any, Collection[str]], tuple[str, ...]] = ()
    spare: tuple[str, ...] = ()

    def table(self, config: Any) -> Table:
        """Return where our modules and parameters come from, for one config."""
        return self.weights(config) if callable(self.weights) else self.weights

    def modules_beside(self, config: Any, tensors: Collection[str]) -> tuple[str, ...]:
        """Return the modules among these tensors that are known and left out."""
        return self.beside(config, tensors) if callable(self.beside) else self.beside


def read_config(
    arch: Arch, raw: Mapping[str, Any], inert: Collection[str] = (), within: str = ""
) -> Any:
    """Return arch.config from a raw config.json, or raise ConfigError naming the key.

    A key that the Config does not have must be in INERT or `inert`, or be null, false or empty.
    `within` is the path of `raw` in config.json: '' for all of it, else as 'text_config.'.
    """
    keys = {key: value for key, value in raw.items() if f"{within}{key}" not in inert}
    at = f"config.json: {within}"
    try:
        return parse(arch.config, arch.tidy(keys), at, inert)
    except ConfigError as error:
        message = str(error)  # of tidy, which does not know where its keys lie
        message = message if at in message else message.replace("config.json: ", at, 1)
        raise ConfigError(f"{arch.name}: {message}") from None


T = TypeVar("T")


def parse(cls: type[T], raw: Mapping[str, Any], at: str, inert: Collection[str] = ()) -> T:
    """Return the dataclass `cls` from a mapping; `at` begins every message, as 'config.json: '."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    refuse_unread(raw, fields.keys(), at, inert)
    values = {}
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if name not in raw or (raw[name] is None and not _allows_none(hints[name])):
            if required:
                raise ConfigError(f"{at}{name} is missing; this architecture needs it")
            continue
        values[name] = _convert(hints[name], raw[name], f"{at}{name}", inert)
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{at}{error}") from None


def refuse_unread(
    raw: Mapping[str, Any], known: Collection[str], at: str, inert: Collection[str]
) -> None:
    """Raise ConfigError where `raw` sets a key that is neither known nor without effect."""
    path = at.rpartition(": ")[2]
    unread = sorted(
        key
        for key, value in raw.items()
        if key not in known
        and key not in INERT
        and f"{path}{key}" not in inert
        and not (key in USUAL and value is USUAL[key])
        and not (key not in USUAL and (value is None or value is False or value in ("", [], {})))
    )
    if unread:
        raise ConfigError(
            f"{at.removesuffix(path)}sets"
            f" {', '.join(f'{path}{k} = {raw[k]!r:.80}' for k in unread)}, which nothing reads;"
            f" pass {' '.join(f'--inert {path}{k}' for k in unread)} only if that changes no result"
        )


def _allows_none(hint: Any) -> bool:
    return hint is None or type(None) in typing.get_args(hint)


def _convert(hint: Any, value: Any, at: str, inert: Collection[str]) -> Any:
    """Return `value` as `hint` says, or raise ConfigError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
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
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
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
