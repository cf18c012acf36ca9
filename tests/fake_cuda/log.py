"""The log of a fake GPU: what it was asked for, in order."""

import ctypes
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Event:
    """A line of the log. Its kinds, and what `fields` has beside "stream":

    kernel    name, api ("runtime", or "driver" for our plugins), grid, block, shared (bytes)
    blas      name and, of products, m, n, k, batch
    copy      way (HtoD, DtoH, DtoD, HtoH), bytes
    fill      bytes
    host      a function on the host, in the stream's order
    graph     graph (its number), nodes: launched; events of its nodes follow
    wait      for (stream, device, event, copy): the host waits
    capture   captured (the graph's number), mode (0 global, 1 of the thread, 2 relaxed)
    allocate, free   bytes, in_use (bytes of the device, after it), api
    refused   bytes, in_use, api: an allocation that there was no memory for
    module, unload   machine code was loaded, or let go
    note      name

    Work in a stream that is being captured has "captured", the number of its graph: nothing ran.
    Work that a graph's launch ran has "graph". Streams are numbered as they were created, from 1;
    0 is the default stream.
    """

    kind: str
    fields: dict[str, Any]

    @property
    def symbol(self) -> str:
        """A kernel's whole name, with the arguments of its template; mangled where that is long."""
        return str(self.fields["name"])

    @property
    def name(self) -> str:
        """What a kernel or a product is called, without return type, arguments and our prefixes."""
        return short(self.symbol)

    @property
    def ran(self) -> bool:
        """Whether it ran, rather than being kept for a graph."""
        return "captured" not in self.fields

    @property
    def ours(self) -> bool:
        """Whether it is a launch by the driver, as our plugins make them."""
        return self.fields.get("api") == "driver"


def short(symbol: str) -> str:
    """Return a demangled name without what stands in brackets, and without its return type."""
    if symbol.startswith("_ZN"):  # too long for the demangler: its names up to the first template
        return "::".join(nested(symbol.removeprefix("_ZN")))
    text = symbol.replace("(anonymous namespace)", "").removesuffix(" const")
    while (less := re.sub(r"<[^<>()]*>|\([^<>()]*\)", "", text)) != text:
        text = less
    return re.sub(r":{3,}", "::", text).split(" ")[-1].removeprefix("onnxruntime::")


def nested(mangled: str) -> Iterator[str]:
    """Yield names of which each follows its length, as 7cutlass13device_kernel."""
    while found := re.match(r"\d+", mangled):
        length, start = int(found[0]), found.end()
        yield mangled[start : start + length]
        mangled = mangled[start + length :]


class Log:
    """Events in order."""

    def __init__(self, events: list[Event]):
        self.events = events

    @classmethod
    def read(cls, path: Path) -> "Log":
        lines = path.read_text().splitlines() if path.exists() else []
        fields = [json.loads(line) for line in lines]
        return cls([Event(one.pop("kind"), one) for one in fields])

    def of(self, *kinds: str) -> list[Event]:
        """Return the events of these kinds that ran."""
        return [event for event in self.events if event.kind in kinds and event.ran]

    def after(self, name: str) -> "Log":
        """Return what follows the note of this name, up to the next note."""
        (start,) = [
            i
            for i, event in enumerate(self.events)
            if event.kind == "note" and event.fields["name"] == name
        ]
        rest = self.events[start + 1 :]
        ends = [i for i, event in enumerate(rest) if event.kind == "note"]
        return Log(rest[: ends[0]] if ends else rest)

    @cached_property
    def launches(self) -> list[Event]:
        """Kernels and products that ran, those of launched graphs among them; not fills, copies.

        A product of cuBLAS counts as one, whatever kernels it takes.
        """
        return self.of("kernel", "blas")

    @property
    def kernels(self) -> Counter[str]:
        """How often each kernel or product ran, by its short name."""
        return Counter(event.name for event in self.launches)

    def copies(self, way: str) -> list[Event]:
        """Return the copies that ran that way: HtoD, DtoH, DtoD or HtoH."""
        return [event for event in self.of("copy") if event.fields["way"] == way]

    @property
    def peak(self) -> int:
        """The most bytes of device memory that were in use at once."""
        return max((event.fields["in_use"] for event in self.of("allocate")), default=0)


def note(name: str) -> None:
    """In a process on a fake GPU: write a note into the log."""
    library().fake_note(f'"kind": "note", "name": {json.dumps(name)}'.encode())


def log_so_far() -> Log:
    """In a process on a fake GPU: return the log up to now."""
    return Log.read(Path(os.environ["FAKE_CUDA_LOG"]))


def library() -> Any:
    return ctypes.CDLL("libcuda.so.1")
