"""Number formats in plans: the first SM that has each, and what it is called."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.backends.tensorrt.request import Request
from lmcast.exporter.graph.lowering import DTYPES
from lmcast.exporter.passes.quantized_products import rounded_inputs

# As the builder of TensorRT for RTX 1.7.1 says itself: 'Cannot compile for target(s) sm86, because
# the model contains HW-specific datatypes: fp8_e4m3'.
# tests/backends/test_low_precision_plans.py asks it.
FIRST_SM: Mapping[ir.DataType, int] = {
    ir.DataType.INT8: 75,
    ir.DataType.INT4: 80,
    ir.DataType.FLOAT8E4M3FN: 89,
    ir.DataType.FLOAT4E2M1: 100,
}
NAMES: Mapping[ir.DataType, str] = {
    ir.DataType.INT8: "INT8",
    ir.DataType.INT4: "INT4",
    ir.DataType.UINT4: "INT4",
    ir.DataType.FLOAT8E4M3FN: "FP8",
    ir.DataType.FLOAT4E2M1: "FP4",
}
# Of what scales are stored in, the name that format and scales have together.
NAMED: Mapping[tuple[ir.DataType, ir.DataType], str] = {
    (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E8M0): "MXFP8",
    (ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E8M0): "MXFP4",
    (ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN): "NVFP4",
}
# Format of quantize_input -> the numbers that its arithmetic makes; MXFP4's are fp32 all the way.
INPUTS: Mapping[str, ir.DataType] = {
    "fp8": ir.DataType.FLOAT8E4M3FN,
    "mxfp8": ir.DataType.FLOAT8E4M3FN,
    "nvfp4": ir.DataType.FLOAT8E4M3FN,
    "mxfp4": ir.DataType.INT8,
    "int8": ir.DataType.INT8,
}
PLAN: Mapping[ir.DataType, str] = {  # as plans name them
    ir.DataType.INT8: "int8",
    ir.DataType.INT4: "int4",
    ir.DataType.FLOAT8E4M3FN: "fp8_e4m3",
    ir.DataType.FLOAT4E2M1: "fp4_e2m1",
}
WIDER: Mapping[ir.DataType, ir.DataType] = {  # what has every number of a format, and more
    ir.DataType.FLOAT4E2M1: ir.DataType.FLOAT8E4M3FN,
}


DEQUANTIZE = {"DequantizeLinear", "TRT_BlockDequantize"}
KEEPS_CODES = {"DequantizeLinear", "Transpose", "Cast", "CastLike"}


@dataclass(frozen=True)
class Weight:
    """A quantized weight of a graph: the node that makes numbers of its codes."""

    node: ir.Node
    codes: ir.Value

    @property
    def name(self) -> str:
        return str(self.codes.name).removesuffix(".codes")

    @property
    def kind(self) -> ir.DataType:
        assert self.codes.dtype is not None
        return self.codes.dtype

    @property
    def format(self) -> str:
        """What people call it: FP8, MXFP4."""
        name = NAMES.get(self.kind, self.kind.name)
        return NAMED.get((self.kind, stored(self.scales)), name)

    @property
    def scales(self) -> ir.Value:
        scales = self.node.inputs[1]
        assert scales is not None
        return scales

    def lacking(self, sms: tuple[int, ...]) -> list[int]:
        """Return those SMs that have no arithmetic for it."""
        return [sm for sm in sms if sm < FIRST_SM[self.kind]]


def weights(graph: ir.Model) -> Iterator[Weight]:
    """Yield the quantized weights of a graph, but not scales that are quantized themselves."""
    found, scales = list[Weight](), set[ir.Node]()
    for node in graph.graph:
        codes = node.inputs[0] if node.op_type in DEQUANTIZE else None
        if codes is not None and codes.is_initializer():
            found.append(Weight(node, codes))
            scales |= set(_makers(found[-1].scales))
    yield from [weight for weight in found if weight.node not in scales]


def _makers(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the nodes that a value comes from, by their first inputs."""
    while (node := value.producer()) is not None:
        yield node
        if not node.inputs or (first := node.inputs[0]) is None:
            return
        value = first


def stored(scales: ir.Value) -> ir.DataType:
    """Return what scales are stored in, before they are multiplied with one that they share."""
    *_, value = [scales, *(node.inputs[0] for node in _makers(scales) if node.inputs)]
    assert value is not None and value.dtype is not None
    return value.dtype


def require(graph: ir.Model, request: Request) -> None:
    """Refuse what an SM has no arithmetic for; raises BackendError that names it."""
    known = set(DTYPES.values()) - {ir.DataType.FLOAT8E4M3FN}  # without scales, that of a cache
    for weight in weights(graph):
        known |= {weight.kind, stored(weight.scales)}
        _require_weight(weight, request)
    for name, value in graph.graph.initializers.items():
        if value.dtype not in known:
            kind = value.dtype.name if value.dtype else "of no known format"
            raise BackendError(f"weight {name} is {kind}, which plans do not hold")
    for node in rounded_inputs(graph):
        _require_input(node, request)


def _require_weight(weight: Weight, request: Request) -> None:
    what = f"weight {weight.name} is {weight.format}"
    if weight.kind not in FIRST_SM or len(weight.node.inputs) > 2:
        zeros = " with zero points" if len(weight.node.inputs) > 2 else ""
        raise BackendError(
            f"{what}{zeros}, which TensorRT does not take: give a recipe with another format, or"
            " export with --target onnx or cpu"
        )
    lacking = weight.lacking(request.sms)
    wider = WIDER.get(weight.kind)
    able = wider is not None and all(sm >= FIRST_SM[wider] for sm in lacking)
    if not lacking or (able and request.widen):
        return
    widen = f"--widen stores it as {NAMES[wider]} without loss, " if able and wider else ""
    raise BackendError(
        f"{what}, which SM{lacking[0]} has no arithmetic for: {widen}--sm from"
        f" {FIRST_SM[weight.kind]} on has it, or give a recipe with another format"
    )


def _require_input(node: ir.Node, request: Request) -> None:
    format = node.attributes["format"].as_string()
    first = FIRST_SM[INPUTS[format]]
    if old := [sm for sm in request.sms if sm < first]:
        raise BackendError(
            f"inputs of {str(node.name).rpartition('.')[0]} are rounded to {format}, which"
            f" SM{old[0]} has no arithmetic for: --sm from {first} on has it, or give a recipe"
            " with another format"
        )


def codes(graph: ir.Model) -> dict[str, int]:
    """Return the bytes of quantized weights by format, as plans name it."""
    found = {weight.codes: weight.kind for weight in weights(graph)}
    sizes = Counter[str]()
    for value, kind in found.items():
        assert value.shape is not None
        sizes[PLAN[kind]] += math.ceil(math.prod(value.shape.numpy()) * kind.itemsize)
    return dict(sizes)


def products(graph: ir.Model) -> dict[str, str]:
    """Return the products of codes with codes: name of the node -> format of both."""
    found = {}
    for node in graph.graph:
        if node.op_type == "MatMul":
            first, second = (_codes(value) for value in node.inputs)
            if first is not None and first == second:
                found[str(node.name)] = PLAN[first]
    return found


def _codes(value: ir.Value | None) -> ir.DataType | None:
    """Return the format of codes that a value is made of by nothing but casts and scales."""
    while (node := value.producer() if value else None) and node.op_type in KEEPS_CODES:
        value = node.inputs[0]
        if node.op_type == "DequantizeLinear":
            assert value is not None
            made = value.producer()
            kind = made.attributes.get("output_dtype") if made else None
            return value.dtype or (ir.DataType(kind.as_int()) if kind else ir.DataType.FLOAT4E2M1)
    return None
