"""JSON as a checkpoint may use it: what Python reads beyond the standard is refused."""

import json
import math
import re
from pathlib import Path
from typing import Any

from lmcast.exporter.checkpoint.errors import CheckpointError

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# Opening brackets: each costs up to 100 bytes of memory, so that 100 MB of "[]," would cost 3 GB.
MOST_CONTAINERS = 4_000_000
VALUE_CONTAINERS = 1_000_000  # of a prompt or an option


class _RefusedError(ValueError):
    """Something that the JSON standard leaves open and we do not accept."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(f"the key {key!r} occurs twice")
            seen.add(key)
    return result


def _constant(text: str) -> dict[str, str]:
    if text == "Infinity":  # transformers 4 writes what 5 writes so: the bounds of Mamba's steps
        return {"__float__": text}
    raise _RefusedError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedError(f"the number {text} is too large")
    return value


def parse_value(text: str) -> Any:
    """Return the JSON value of a prompt or an option.

    Raises ValueError for what is none, for too many lists and objects, and for duplicate keys, of
    which one would count in silence; RecursionError for deep nesting.
    """
    if text.count("[") + text.count("{") > VALUE_CONTAINERS:
        raise _RefusedError(f"it holds more than {VALUE_CONTAINERS} lists and objects")
    return json.loads(text, object_pairs_hook=_unique)


def parse_object(data: bytes, shown: Path) -> dict[str, Any]:
    """Return the JSON object that `data` holds in UTF-8; errors name `shown`.

    Raises CheckpointError for anything else, duplicate keys, NaN, -Infinity, lone surrogates and
    nesting beyond Python's recursion limit.
    """
    if data.count(b"[") + data.count(b"{") > MOST_CONTAINERS:
        raise CheckpointError(f"{shown}: holds more than {MOST_CONTAINERS} lists and objects")
    try:
        text = data.decode()
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite
        )
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # fails on half a surrogate pair
    except UnicodeError:
        raise CheckpointError(f"{shown}: is not UTF-8 text") from None
    except RecursionError:
        raise CheckpointError(f"{shown}: is nested too deeply") from None
    except (_RefusedError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{shown}: is not valid JSON: {error}") from None
    except ValueError:  # of int(), beyond Python's limit against slow conversions
        raise CheckpointError(f"{shown}: holds a number of thousands of digits") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{shown}: holds a {type(value).__name__}; a JSON object is needed")
    return value
