"""Requirements of a graph on its runner, stated by the passes that cause them.

A pass that inserts a node which must be run in a certain way calls `require`. The result goes into
engine.json, and a runner obeys it without inspecting the graph.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import onnx_ir as ir

KEY = "requirements"  # in ir.Model.meta, which is not written into the file


@dataclass(frozen=True)
class Requirements:
    """Requirements of one graph; the defaults are those of a graph that no pass has rewritten."""

    # The target's passes replace the runtime's own rewrites, which are to be off.
    optimized: bool = False
    # What follows from weights alone is to be computed at load, once: kernels take constants alone.
    folded: bool = False
    # Weights are to be copied at load into the layout of the kernels, which are slow without it.
    prepack: bool = False
    # Thousands of values of unknown size, most of them empty: planning their memory does not pay.
    split_experts: bool = False
    # Whether rows of different lengths take several tokens together, or one row at a time.
    append: Literal["batch", "row"] = "batch"
    # An input on the host, total_length [1] int32: tokens of the longest row behind the call, with
    # its padding; what is captured once and replayed may be told the capacity, up to the context.
    total_length: bool = False
    # States have room for this many tokens at least.
    least_capacity: int = 1
    # The most rows of a call, and tokens of a row in one; 0: any.
    most_rows: int = 0
    most_tokens: int = 0
    # Lengths beyond which a row that grows is computed anew, its cached tokens too, in one call.
    anew_beyond: tuple[int, ...] = ()
    # Rows that grow beyond it take all tokens of a call together, as others change; 0: none do.
    whole_beyond: int = 0

    # The oldest ONNX Runtime that runs it, whatever its operators; 1.24 is the first with opset 24.
    onnxruntime: str = "1.24"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "anew_beyond": list(self.anew_beyond)}


def require(model: ir.Model, **conditions: Any) -> None:
    """Add requirements, by the names of the fields, to those of a graph."""
    model.meta[KEY] = replace(requirements(model), **conditions)


def requirements(model: ir.Model) -> Requirements:
    """Return the requirements of a graph so far."""
    found = model.meta.get(KEY, Requirements())
    assert isinstance(found, Requirements)
    return found
