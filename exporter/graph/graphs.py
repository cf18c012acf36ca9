"""The graphs of one engine."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Graphs:
    """The graph of the text, and that of the tower: None where the engine takes text alone."""

    text: ir.Model
    vision: ir.Model | None = None

    def __iter__(self) -> Iterator[ir.Model]:
        yield from (graph for graph in (self.text, self.vision) if graph is not None)
