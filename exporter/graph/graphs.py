"""The graphs of one engine."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir


@dataclass(frozen=True)
class Graphs:
    """The graph of the text, and those of towers by name: none of an engine for text alone."""

    text: ir.Model
    towers: Mapping[str, ir.Model] = field(default_factory=dict)

    def __iter__(self) -> Iterator[ir.Model]:
        yield from (self.text, *self.towers.values())
