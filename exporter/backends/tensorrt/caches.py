"""FP8 caches in plans: which SMs have them, and which states a plan may update in place."""

from collections.abc import Iterator

import onnx_ir as ir

from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.backends.tensorrt.formats import NUMBERS, onnx
from lmcast.exporter.backends.tensorrt.request import Request
from lmcast.graphs.weights.elements import E4M3

CODES = onnx(E4M3)
WRITES = ("QuantizeLinear", "ScatterElements", "DequantizeLinear")  # from the new to the old


def require(graph: ir.Model, request: Request) -> None:
    """Refuse SMs without FP8; raises BackendError that names a state."""
    old = [sm for sm in request.sms if sm < NUMBERS[CODES].first_sm]
    for state in _held(graph) if old else ():
        raise BackendError(
            f"{state} is held in FP8, which SM{old[0]} has no arithmetic for: --sm from"
            f" {NUMBERS[CODES].first_sm} on has it, or give a recipe that was made without --kv"
        )


def in_place(graph: ir.Model) -> list[str]:
    """Return the states whose new values a plan may write over the old ones.

    Such a state is the old one with some slots overwritten, and nothing else is computed from the
    old one: a slot that is read after its update gives the same result. A ring moves its slots, and
    is not among them. States of wider dtypes are aliased by TensorRT itself.
    """
    ends = {str(value.name): value for value in graph.graph.outputs}
    return [state for state in _held(graph) if _written(ends[f"{state}.present"], f"{state}.past")]


def _held(graph: ir.Model) -> Iterator[str]:
    for value in graph.graph.inputs:
        if value.dtype == CODES:
            yield str(value.name).removesuffix(".past")


def _written(value: ir.Value | None, past: str) -> bool:
    """Whether a value is `past` with some slots overwritten."""
    for op_type in WRITES:
        node = value.producer() if value is not None else None
        if node is None or node.op_type != op_type:
            return False
        value = node.inputs[0]
    return value is not None and value.name == past
