"""Edits of files: of bytes, of JSON, and of what a folder holds. Each has a short name."""

import hashlib
import json
import math
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Keys = tuple[str | int, ...]  # of nested JSON, outermost first
DEEP: Any = 0
for _ in range(400):
    DEEP = [DEEP]
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 0.5, -0.0, 1e308, math.nan, math.inf, 2**31, 2**63, 2**64, 10**30,
    10**400, "", "x", "\0", "\ud800", "é" * 200, "../x", "/etc/passwd", "x" * 100_000, [], {}, [1],
    [[]], {"x": 1}, {"": None}, DEEP,
)  # fmt: skip
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1)
HEAD = 4096  # bytes at the beginning of a file that are edited as often as all others
GOES_ON = 0.7  # how often what lies within a value is edited, not that
SPARSE = 1 << 40  # bytes of a file with nothing in it
HASHED = 1 << 30
EDITED = 64 << 20  # bytes: a larger file, which another edit has made, stays as it is


@dataclass(frozen=True)
class Edit:
    """One edit of a file: `change` of the bytes at its path, or of the path itself."""

    file: str
    about: str
    change: Callable[[Path], None]

    def __str__(self) -> str:
        return f"{self.file}: {self.about}"


def apply(edits: Any, folder: Path) -> None:
    """Make edits in a folder; one whose file an earlier one took away, or made a pipe, which would
    be waited for, does nothing."""
    for edit in edits:
        path = folder / edit.file
        try:
            if not path.is_fifo():
                edit.change(path)
        except (
            OSError,
            LookupError,
            ValueError,
            TypeError,
            AttributeError,
            MemoryError,
            struct.error,
        ):
            continue


def draw(folder: Path, chance: random.Random) -> Edit:
    """Return one edit of one file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = chance.choice(files)
    kinds = [of_bytes] * 6 + [of_json] * (10 if json_of(path) is not None else 0) + [of_path]
    return chance.choice(kinds)(path, str(path.relative_to(folder)), chance)


def digest(path: Path) -> str:
    """Return the sha256 of a file; raises OSError for a pipe, and for one that would take long."""
    if not path.is_file() or path.stat().st_size > HASHED:
        raise OSError(f"{path} is no file to hash")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_bytes(path: Path) -> bytes:
    if not path.is_file() or path.stat().st_size > EDITED:
        raise OSError(f"{path} is no file to edit")
    return path.read_bytes()


# JSON, also where it is a part of a file.


def json_of(path: Path) -> Any:
    """Return the JSON of a .json or .sig file, of a .jsonl file as a list of its lines, or in the
    header of a .safetensors file, else None."""
    try:
        data = file_bytes(path)
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in data.split(b"\n") if line]
        if path.suffix == ".safetensors":
            return json.loads(data[8 : 8 + struct.unpack_from("<Q", data)[0]])
        return json.loads(data) if path.suffix in (".json", ".sig") else None
    except (OSError, ValueError, struct.error, RecursionError):
        return None


def put_json(path: Path, value: Any, change: Callable[[str], str] = str) -> None:
    """Write JSON to where json_of reads it; change: of its text."""
    lines = value if path.suffix == ".jsonl" and isinstance(value, list) else [value]
    text = change("\n".join(map(json.dumps, lines))).encode(errors="surrogatepass")
    if path.suffix == ".safetensors":
        data = file_bytes(path)
        (size,) = struct.unpack_from("<Q", data)
        text = struct.pack("<Q", len(text)) + text + data[8 + size :]
    path.write_bytes(text)


def place(value: Any, chance: random.Random) -> Keys:
    """Return the keys of a value within one: those of a large object are as likely as others."""
    at: Keys = ()
    while isinstance(value, dict | list) and value and (not at or chance.random() < GOES_ON):
        key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
        at, value = (*at, key), value[key]
    return at


def places(value: Any, at: Keys = ()) -> Iterator[Keys]:
    """Yield the keys of all values within one; of a long list, of its first and last items."""
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list):
        items = [(i, value[i]) for i in sorted({*range(min(len(value), 4)), len(value) - 1} - {-1})]
    else:
        return
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


def of_json(path: Path, name: str, chance: random.Random) -> Edit:
    """Return an edit of a value, a key or an item."""
    value = json_of(path)
    keys = place(value, chance)
    how = chance.choice(["set", "set", "set", "delete", "rename", "twice", "copy", "near"])
    odd = chance.choice(ODD)
    other = place(value, chance)

    def change(target: Path) -> None:
        whole = json_of(target)
        if not keys:
            put_json(target, odd)
            return
        holder = _at(whole, keys[:-1])
        if how == "delete":
            del holder[keys[-1]]
        elif how == "rename":
            holder[f"{keys[-1]}x"] = holder.pop(keys[-1])
        elif how == "twice":
            holder["twice"] = holder[keys[-1]]
            put_json(target, whole, lambda text: text.replace('"twice"', json.dumps(keys[-1])))
            return
        elif how == "copy":
            holder[keys[-1]] = _at(whole, other)
        else:
            holder[keys[-1]] = odd if how == "set" else _near(holder[keys[-1]], chance_near)
        put_json(target, whole)

    chance_near = chance.random()
    dotted = ".".join(map(str, keys))
    about = {"set": f"= {odd!r:.60}", "copy": f"= {'.'.join(map(str, other))}"}.get(how, how)
    return Edit(name, f"{dotted} {about}", change)


def of_typed_json(path: Path, name: str, chance: random.Random) -> Edit:
    """Return an edit of a value into another of its type, as a reader of types takes it."""
    whole = json_of(path)
    keys = place(whole, chance)
    value = _at(whole, keys)
    others = [_at(whole, place(whole, chance)) for _ in range(9)]
    alike = [other for other in others if type(other) is type(value) and other != value]
    made = chance.choice([*variants(value, chance), *alike[:3]])

    def change(target: Path) -> None:
        if not keys:
            put_json(target, made)
            return
        found = json_of(target)
        _at(found, keys[:-1])[keys[-1]] = made
        put_json(target, found)

    return Edit(name, f"{'.'.join(map(str, keys))} = {made!r:.80}", change)


def variants(value: Any, chance: random.Random) -> list[Any]:
    """Return values of the type of one, near it, at the edges, or in another order."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1, 2 * value, value // 2, 0, 1, -1, 2**31, 2**53]
    if isinstance(value, float):
        return [value * 1.5, -value, 0.0, 1e-30, 1e30]
    if isinstance(value, str):
        return [_near(value, chance.random()), value.upper(), f"{value}x", value[:-1], ""]
    if isinstance(value, list):
        return [value[1:], value[:-1], value[::-1], value + value[-1:], []]
    if isinstance(value, dict):
        keys, values = list(value), list(value.values())
        lost = {key: value[key] for key in keys[1:]}
        return [dict(zip(keys, values[::-1], strict=True)), lost, {**value, "x": value}, {}]
    return [0, "", [], {}]


def _at(value: Any, keys: Keys) -> Any:
    for key in keys:
        value = value[key]
    return value


def _near(value: Any, share: float) -> Any:
    """Return a value of the same type that is a little another one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + (1 if share < 0.5 else -1)
    if isinstance(value, str) and value:
        at = int(share * len(value))
        return value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :]
    if isinstance(value, list):
        return value[1:] if share < 0.5 else [*value, *value[-1:]]
    return value


# Bytes.


def of_bytes(path: Path, name: str, chance: random.Random) -> Edit:
    """Return a flipped bit, a number written over others, or bytes that are gone or doubled."""
    size = path.stat().st_size
    at = chance.randrange(max(1, min(size, HEAD) if chance.random() < 0.5 else size))
    length = min(chance.choice([1, 2, 4, 8, 64, 4096]), max(1, size - at))
    number = struct.pack("<Q", chance.choice(NUMBERS))[: chance.choice([1, 2, 4, 8])]
    bit = 1 << chance.randrange(8)
    ways: Mapping[str, Callable[[bytes], bytes]] = {
        f"bit {bit} of byte {at}": lambda b: b[:at] + bytes([b[at] ^ bit]) + b[at + 1 :],
        f"byte {at} = {number.hex()}": lambda b: b[:at] + number + b[at + len(number) :],
        f"{length} bytes cut at {at}": lambda b: b[:at] + b[at + length :],
        f"{length} bytes twice at {at}": lambda b: b[: at + length] + b[at:],
        f"{length} zeros at {at}": lambda b: b[:at] + bytes(length) + b[at + length :],
        f"ends at {at}": lambda b: b[:at],
    }
    about = chance.choice(sorted(ways))
    return Edit(name, about, lambda target: _rewrite(target, ways[about]))


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(file_bytes(path)))


# Paths.


def of_path(path: Path, name: str, chance: random.Random) -> Edit:
    """Return a file that is gone, empty, huge, a folder, a pipe, a link, or another one."""
    others = sorted(other for other in path.parent.iterdir() if other.is_file() and other != path)
    other = chance.choice(others).name if others else path.name

    def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
        def change(target: Path) -> None:
            target.unlink()
            make(target)

        return change

    ways: Mapping[str, Callable[[Path], None]] = {
        "is gone": lambda target: target.unlink(),
        "is empty": lambda target: _rewrite(target, lambda _: b""),
        "is huge": lambda target: os.truncate(target, SPARSE),
        "is a folder": replaced(lambda target: target.mkdir()),
        "is a pipe": replaced(lambda target: os.mkfifo(target)),
        "links to itself": replaced(lambda target: target.symlink_to(target.name)),
        "links to /etc/passwd": replaced(lambda target: target.symlink_to("/etc/passwd")),
        f"is {other}": lambda target: shutil.copyfile(target.parent / other, target),
        "cannot be read": lambda target: target.chmod(0),
    }
    about = chance.choice(sorted(ways))
    return Edit(name, about, ways[about])
