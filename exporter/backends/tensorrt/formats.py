"""Number formats in plans: their names there, and the first SM with arithmetic for each."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.backends.tensorrt.request import Request
from lmcast.exporter.dtypes import COMPUTED, DTYPES
from lmcast.exporter.passes.quantized_products import rounded_inputs
from lmcast.graphs.weights.elements import E2M1, E4M3, INT4, INT8, Element
from lmcast.graphs.weights.quantized_parts import parameter_of


@dataclass(frozen=True)
class Numbers:
    """An element in plans.

    name: what people call it; plan: its name in plans.
    first_sm: the first SM with arithmetic for it.
    wider: an element with all its values.
    """

    name: str
    plan: str
    first_sm: int
    wider: ir.DataType | None = None


def onnx(element: Element) -> ir.DataType:
    """Return ONNX's name of an element."""
    return ir.DataType(DTYPES[element.dtype].onnx)


# As the builder of TensorRT for RTX 1.7.1 says itself: 'Cannot compile for target(s) sm86, because
# the model contains HW-specific datatypes: fp8_e4m3'.
# tests/backends/test_low_precision_plans.py asks it.
NUMBERS: Mapping[ir.DataType, Numbers] = {
    onnx(INT8): Numbers("INT8", "int8", 75),
    onnx(INT4): Numbers("INT4", "int4", 80),
    onnx(E4M3): Numbers("FP8", "fp8_e4m3", 89),
    onnx(E2M1): Numbers("FP4", "fp4_e2m1", 100, wider=onnx(E4M3)),
}
# Codes that plans do not have (of zero points), by those that people call the same.
SIGNED: Mapping[ir.DataType, ir.DataType] = {ir.DataType.UINT4: onnx(INT4)}
# Of codes and what scales are stored in, the name that both have together.
NAMED: Mapping[tuple[ir.DataType, ir.DataType], str] = {
    (onnx(E4M3), ir.DataType.FLOAT8E8M0): "MXFP8",
    (onnx(E2M1), ir.DataType.FLOAT8E8M0): "MXFP4",
    (onnx(E2M1), onnx(E4M3)): "NVFP4",
}
# Format of quantize_input -> the numbers that its arithmetic makes; MXFP4's are fp32 all the way.
INPUTS: Mapping[str, ir.DataType] = {
    "fp8": onnx(E4M3),
    "mxfp8": onnx(E4M3),
    "nvfp4": onnx(E4M3),
    "mxfp4": onnx(INT8),
    "int8": onnx(INT8),
}
# Weights that are not quantized; FP8 without scales is that of a cache.
PLAIN = [DTYPES[name] for name in (*COMPUTED, "float64", "int64", "int32", "bool")]


DEQUANTIZE = {"DequantizeLinear", "TRT_BlockDequantize"}
KEEPS_CODES = {"DequantizeLinear", "Transpose", "Cast", "CastLike"}


@dataclass(frozen=True)
class Weight:
    """A quantized weight of a graph: the node that dequantizes it."""

    node: ir.Node
    codes: ir.Value

    @property
    def name(self) -> str:
        return parameter_of(str(self.codes.name))

    @property
    def kind(self) -> ir.DataType:
        assert self.codes.dtype is not None
        return self.codes.dtype

    @property
    def format(self) -> str:
        """What people call it: FP8, MXFP4."""
        kind = SIGNED.get(self.kind, self.kind)
        name = NUMBERS[kind].name if kind in NUMBERS else kind.name
        return NAMED.get((self.kind, stored(self.scales)), name)

    @property
    def scales(self) -> ir.Value:
        scales = self.node.inputs[1]
        assert scales is not None
        return scales

    def lacking(self, sms: tuple[int, ...]) -> list[int]:
        """Return those SMs that have no arithmetic for it."""
        return [sm for sm in sms if sm < NUMBERS[self.kind].first_sm]


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
    """Yield the nodes upstream of a value, along first inputs."""
    while (node := value.producer()) is not None:
        yield node
        if not node.inputs or (first := node.inputs[0]) is None:
            return
        value = first


def stored(scales: ir.Value) -> ir.DataType:
    """Return the dtype of stored scales, before they are multiplied with a shared one."""
    *_, value = [scales, *(node.inputs[0] for node in _makers(scales) if node.inputs)]
    assert value is not None and value.dtype is not None
    return value.dtype


def require(graph: ir.Model, request: Request) -> None:
    """Refuse formats that an SM has no arithmetic for; raises BackendError that names one."""
    known = {ir.DataType(dtype.onnx) for dtype in PLAIN}
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
    if weight.kind not in NUMBERS or len(weight.node.inputs) > 2:
        zeros = " with zero points" if len(weight.node.inputs) > 2 else ""
        raise BackendError(
            f"{what}{zeros}, which TensorRT does not take: give a recipe with another format, or"
            " export with --target onnx or cpu"
        )
    lacking = weight.lacking(request.sms)
    wider = NUMBERS.get(NUMBERS[weight.kind].wider or ir.DataType.UNDEFINED)
    able = wider is not None and all(sm >= wider.first_sm for sm in lacking)
    if not lacking or (able and request.widen):
        return
    widen = f"--widen stores it as {wider.name} without loss, " if able and wider else ""
    raise BackendError(
        f"{what}, which SM{lacking[0]} has no arithmetic for: {widen}--sm from"
        f" {NUMBERS[weight.kind].first_sm} on has it, or give a recipe with another format"
    )


def _require_input(node: ir.Node, request: Request) -> None:
    format = node.attributes["format"].as_string()
    first = NUMBERS[INPUTS[format]].first_sm
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
        sizes[NUMBERS[kind].plan] += math.ceil(math.prod(value.shape.numpy()) * kind.itemsize)
    return dict(sizes)


def products(graph: ir.Model) -> dict[str, str]:
    """Return the products of codes with codes: name of the node -> format of both."""
    found = {}
    for node in graph.graph:
        if node.op_type == "MatMul":
            first, second = (_codes(value) for value in node.inputs)
            if first is not None and first == second:
                found[str(node.name)] = NUMBERS[first].plan
    return found


def _codes(value: ir.Value | None) -> ir.DataType | None:
    """Return the format of the codes behind a value, through casts and scales only."""
    while (node := value.producer() if value else None) and node.op_type in KEEPS_CODES:
        value = node.inputs[0]
        if node.op_type == "DequantizeLinear":
            assert value is not None
            made = value.producer()
            kind = made.attributes.get("output_dtype") if made else None
            return value.dtype or (ir.DataType(kind.as_int()) if kind else ir.DataType.FLOAT4E2M1)
    return None
