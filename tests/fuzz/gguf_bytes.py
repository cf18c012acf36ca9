"""GGUF files taken apart and put together again, by the format's description, for edits between."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STRING, ARRAY = 8, 9
WIDEST = 4096  # bytes of an alignment that is kept; what claims more has no such gaps
CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass
class Key:
    """kind: the number of its type, of the items of an array `items`; value: a list then."""

    name: bytes
    kind: int
    value: Any
    items: int | None = None


@dataclass
class Tensor:
    name: bytes
    shape: list[int]  # the fastest axis first, as in the file
    kind: int
    offset: int


@dataclass
class File:
    """A whole file. counts: the tensors and keys that it claims, None: those that it has."""

    version: int
    keys: list[Key] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    data: bytes = b""
    alignment: int = 32
    counts: tuple[int, int] | None = None


def parse(whole: bytes) -> File:
    """Return the parts of a file that is whole; raises struct.error or KeyError for others."""
    at = 4

    def number(code: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from("<" + code, whole, at)
        at += struct.calcsize("<" + code)
        return value

    def text() -> bytes:
        nonlocal at
        size = number("Q")
        at += size
        return whole[at - size : at]

    def value(kind: int) -> Any:
        return text() if kind == STRING else number(CODES[kind])

    file = File(number("I"))
    tensors, keys = number("Q"), number("Q")
    for _ in range(min(keys, 1000)):
        name, kind = text(), number("I")
        if kind == ARRAY:
            items, count = number("I"), number("Q")
            if count > len(whole):
                raise KeyError(count)
            file.keys.append(Key(name, kind, [value(items) for _ in range(count)], items))
        else:
            file.keys.append(Key(name, kind, value(kind)))
    for _ in range(min(tensors, 1000)):
        name = text()
        shape = [number("Q") for _ in range(min(number("I"), 8))]
        file.tensors.append(Tensor(name, shape, number("I"), number("Q")))
    said = next((k.value for k in file.keys if k.name == b"general.alignment"), 32)
    file.alignment = said if type(said) is int and 0 < said <= WIDEST else 32
    file.data = whole[-(-at // file.alignment) * file.alignment :]
    return file


def whole(file: File) -> bytes:
    """Return the bytes of a file; raises struct.error for numbers that their types do not hold."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    def packed(kind: int, value: Any) -> bytes:
        return text(value) if kind == STRING else struct.pack("<" + CODES[kind], value)

    counts = file.counts or (len(file.tensors), len(file.keys))
    out = [b"GGUF", struct.pack("<IQQ", file.version, *counts)]
    for key in file.keys:
        out += [text(key.name), struct.pack("<I", key.kind)]
        if key.items is None:
            out.append(packed(key.kind, key.value))
        else:
            out.append(struct.pack("<IQ", key.items, len(key.value)))
            out += [packed(key.items, item) for item in key.value]
    for tensor in file.tensors:
        axes = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        out += [text(tensor.name), axes, struct.pack("<IQ", tensor.kind, tensor.offset)]
    head = b"".join(out)
    return head + bytes(-len(head) % file.alignment) + file.data


def rewrite(path: Path, change: Callable[[File], None]) -> None:
    """Change a file; one that is damaged, or becomes what no file can be, stays as it is."""
    try:
        file = parse(path.read_bytes())
        change(file)
        path.write_bytes(whole(file))
    except (struct.error, OverflowError, ZeroDivisionError) as error:
        raise ValueError(str(error)) from error
