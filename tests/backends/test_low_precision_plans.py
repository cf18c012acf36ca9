"""Every number format in a plan: where it builds, how it is multiplied, and where it is refused."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forms
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from files.recipe_dirs import write_packed
from plan_builder import Builder
from tiny import case

from lmcast.calib.formats import WEIGHTS, WeightFormat
from lmcast.calib.formats.scales import quotients, times
from lmcast.exporter import Engine, cast, export
from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.backends.tensorrt import build, formats
from lmcast.exporter.backends.tensorrt.low_precision import MADE, rewrite
from lmcast.exporter.backends.tensorrt.plan import Plan, read_plan
from lmcast.exporter.backends.tensorrt.request import Request, Sizes
from lmcast.exporter.backends.tensorrt.worker import Job
from lmcast.exporter.engine.names import MODEL
from lmcast.exporter.passes import inline_parts
from lmcast.exporter.progress import silent
from lmcast.graphs.blocks.quantized import InputFormat
from lmcast.graphs.weights.elements import E4M3, INT4, INT8, Element
from lmcast.graphs.weights.quantized import Block, Scheme
from lmcast.plugins.rounding import E4M3_MOST

# Blocks of all formats divide these: 7 matrices of one layer.
LLAMA = dataclasses.replace(
    case("llama/plain"),
    name="llama/wide",
    settings={
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    },
)  # fmt: skip
SHAPES = {
    "q": (128, 128), "k": (64, 128), "v": (64, 128), "o": (128, 128),
    "gate": (256, 128), "up": (256, 128), "down": (128, 256),
}  # fmt: skip
SIZES = Sizes(max_context=64)
KINDS = {name: formats.onnx(format.scheme.element) for name, format in WEIGHTS.items()}
Make = Callable[..., Engine]


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    made = Builder(1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def traced() -> dict[InputFormat | None, ir.Model]:
    """Graphs without their weights, by how inputs are rounded: a trace takes most of an export."""
    return {}


@pytest.fixture
def make(checkpoint, builder, traced, tmp_path, monkeypatch) -> Make:
    """Return a function that exports with weights in a format, and inputs rounded as given."""
    source, trace = checkpoint(LLAMA), cast.trace
    monkeypatch.setattr(build, "run", builder.run)

    def run(
        format: str, sms: tuple[int, ...] = (), inputs: InputFormat | None = None, **options: Any
    ) -> Engine:
        def once(*given: Any) -> ir.Model:
            if inputs not in traced:
                traced[inputs] = trace(*given)
            return traced[inputs].clone()

        monkeypatch.setattr(cast, "trace", once)
        ends = {f"{name}.weight": format for name in SHAPES}
        recipe = write_packed(source, tmp_path / "recipe", ends, inputs)
        options = {"parity": False, "tokenizer": False, "recipe": recipe, **options}
        target = "tensorrt-rtx" if sms else "onnx"
        return export(source, tmp_path / "engine", target, "float16", sms=sms, **options)

    return run


def plan_of(engine: Engine) -> tuple[dict[str, Any], Plan]:
    (entry,) = engine.manifest.fields["plans"]
    return entry, read_plan(engine.directory / entry["file"])


def graph_of(engine: Engine) -> ir.Model:
    graph = ir.load(engine.directory / MODEL)
    inline_parts(graph)
    return graph


def request(*sms: int, widen: bool = False) -> Request:
    return Request("tensorrt-rtx", sms, 1, 64, 64, 1, 64, widen)


@pytest.mark.parametrize("format", WEIGHTS)
def test_format_builds(format: str, make: Make):
    kind = KINDS[format]
    able = tuple(sm for sm in forms.SMS if sm >= formats.NUMBERS[kind].first_sm)
    engine = make(format, able, sizes=SIZES)
    entry, found = plan_of(engine)
    # What the file holds is no wider than what the graph has: nothing was multiplied out.
    numbers = sum(rows * columns for rows, columns in SHAPES.values())
    size = numbers * WEIGHTS[format].scheme.bits // 8
    assert entry["codes"] == {formats.NUMBERS[kind].plan: size}
    assert found.sms == able and found.constants[formats.NUMBERS[kind].plan] >= size
    assert entry["products"] == {}
    assert forms.format_row(format, forms.SMS) in forms.DOCUMENT.read_text(), "run tests/forms.py"
    graph = graph_of(engine)
    for sm in set(forms.SMS) - set(able):
        with pytest.raises(BackendError) as refused:
            formats.require(graph, request(sm))
        name = {"mxfp4": "MXFP4", "nvfp4": "NVFP4", "mxfp8": "MXFP8"}.get(
            format, "INT4" if "int4" in format else "FP8"
        )
        words = str(refused.value)
        assert words.startswith(f"weight layers.0.mixer.q.weight is {name}, which SM{sm} has no")
        wider = formats.NUMBERS[kind].wider
        assert ("--widen" in words) == (wider is not None and sm >= formats.NUMBERS[wider].first_sm)


# Schemes of other tools that are no format of ours: element, block, scales.
SCHEMES: dict[str, tuple[Element, Block, torch.dtype]] = {
    # 128 columns are one block of the matrices that take the hidden states, two of `down`.
    "int8-128": (INT8, (1, 128), torch.float32),
    "int8, one scale": (INT8, (0, 0), torch.float32),
    "fp8-128": (E4M3, (1, 128), torch.float32),
    "int4, rows": (INT4, (1, 0), torch.float32),
    "int4, one scale": (INT4, (0, 0), torch.float32),
    "int4-128, fp32": (INT4, (1, 128), torch.float32),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_scheme_builds(name: str, make: Make, monkeypatch):
    """What a plan is not refused for by name, the library compiles without an assertion."""
    element, block, scale = SCHEMES[name]
    most = max(element.values) if element.integer else E4M3_MOST
    scheme = Scheme(element, block, scale)
    made = WeightFormat(name, scheme, most, quotients(most, scale), times)
    monkeypatch.setitem(WEIGHTS, name, made)
    numbers = formats.NUMBERS[formats.onnx(element)]
    able = tuple(sm for sm in forms.SMS if sm >= numbers.first_sm)
    entry, found = plan_of(make(name, able, sizes=SIZES))
    size = sum(rows * columns for rows, columns in SHAPES.values()) * element.bits // 8
    assert found.sms == able and entry["codes"] == {numbers.plan: size}


def test_a_block_that_is_a_row_has_the_same_values(make: Make, monkeypatch):
    scheme = Scheme(INT8, (1, 128), torch.float32)
    made = WeightFormat("int8-128", scheme, 127.0, quotients(127.0, torch.float32), times)
    monkeypatch.setitem(WEIGHTS, "int8-128", made)
    engine = make("int8-128")
    before, after = graph_of(engine), graph_of(engine)
    rewrite(after, request(89))
    for name in ("q", "down"):  # 128 columns, and 256
        part = f"layers.0.{'mixer' if name in 'qkvo' else 'ffn'}.{name}.weight"
        scales = [g.graph.initializers[f"{part}.scales"] for g in (before, after)]
        assert torch.equal(bytes_of(scales[0]), bytes_of(scales[1]))
        users = [value.uses()[0].node.attributes for value in scales]
        assert [a["axis"].as_int() for a in users] == ([1, 0] if name == "q" else [1, 1])
        rows, columns = SHAPES[name]
        shapes = [tuple(value.shape.numpy()) for value in scales]
        assert shapes == [(rows, columns // 128), (rows,) if name == "q" else (rows, 2)]
        assert ("block_size" in users[1]) == (name == "down")


@pytest.mark.parametrize(("format", "sms"), [("mxfp4", (89, 120)), ("nvfp4", (89,))])
def test_widened(format: str, sms: tuple[int, ...], make: Make):
    """Codes of 8 bits for those of 4: the same values to the bit, in twice the bytes."""
    engine = make(format, sms, sizes=dataclasses.replace(SIZES, widen=True))
    entry, found = plan_of(engine)
    wider = formats.NUMBERS[KINDS[format]].wider
    numbers = sum(rows * columns for rows, columns in SHAPES.values())
    assert entry["codes"] == {formats.NUMBERS[wider].plan: numbers} and found.sms == sms
    assert entry["request"]["widen"]
    with pytest.raises(BackendError, match=f"SM{sms[0]} has no arithmetic for: --widen stores it"):
        formats.require(graph_of(engine), request(*sms))

    before, after = graph_of(engine), graph_of(engine)
    rewrite(after, request(*sms, widen=True))
    element = WEIGHTS[format].scheme.element
    for name in SHAPES:
        part = f"layers.0.{'mixer' if name in 'qkvo' else 'ffn'}.{name}.weight.codes"
        stored, wide = (g.graph.initializers[part] for g in (before, after))
        narrow = element.decode(bytes_of(stored))
        values = wide.meta[MADE].compute(bytes_of(stored).numpy()).astype(np.float32)
        assert torch.equal(narrow, torch.from_numpy(values).flatten())


def test_powers_of_two_become_bfloat16(make: Make):
    engine = make("mxfp8")
    before, after = graph_of(engine), graph_of(engine)
    rewrite(after, request(89))
    scales = "layers.0.ffn.down.weight.scales"
    wide = after.graph.initializers[scales]
    assert wide.dtype == ir.DataType.BFLOAT16
    stored = bytes_of(before.graph.initializers[scales])
    exact = stored.view(torch.float8_e8m0fnu).float()
    made = wide.meta[MADE].compute(stored.numpy()).astype(np.float32)
    assert torch.equal(torch.from_numpy(made), exact)
    every = np.arange(255, dtype=np.uint8)  # 255 is NaN, which no engine has
    powers = wide.meta[MADE].compute(every).astype(np.float64)
    assert (powers == 2.0 ** (np.arange(255) - 127)).all()


def bytes_of(value: ir.Value) -> torch.Tensor:
    tensor = value.const_value
    assert isinstance(tensor, ir.ExternalTensor) and tensor.length is not None
    data = Path(tensor.path).read_bytes()[tensor.offset or 0 :][: tensor.length]
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


# weights, inputs, SMs -> what both are multiplied in: their own format, or fp16 (None)
PRODUCTS: dict[str, tuple[str, InputFormat, tuple[int, ...], str | None]] = {
    "fp8": ("fp8-channel", InputFormat("fp8"), (89, 120), "fp8_e4m3"),
    "fp8, static": ("fp8", InputFormat("fp8", static=True), (89, 120), "fp8_e4m3"),
    "int8": ("int8", InputFormat("int8"), (75, 86, 120), "int8"),
    "nvfp4": ("nvfp4", InputFormat("nvfp4"), (120, 121), "fp4_e2m1"),
    "mxfp4 by mxfp8": ("mxfp4", InputFormat("mxfp8"), (120,), None),
    "turned mxfp4": ("mxfp4", InputFormat("mxfp4", rotation=32), (120,), None),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str, make: Make):
    """A plan is refused where a product is not in the format that the table says."""
    format, inputs, sms, kind = PRODUCTS[name]
    entry, found = plan_of(make(format, sms, inputs, sizes=SIZES))
    assert entry["products"] == ({kind: len(SHAPES)} if kind else {})
    assert found.sms == sms
    multiplied = frozenset[str]().union(*found.products.values())
    assert multiplied & {numbers.plan for numbers in formats.NUMBERS.values()} == (
        {kind} if kind else set()
    )


def test_blocks_that_are_cut_off(builder: Builder, tmp_path: Path):
    """160 columns are a block of 128 and one of 32, which ONNX's own operator has no name for."""
    graph = onnx.parser.parse_model(
        '<ir_version: 11, opset_import: ["" : 24]> g (float16[B,160] x, float8e4m3fn[64,160] w,'
        " float[64,2] s) => (float16[B,64] y) { wide = DequantizeLinear <axis = 1, block_size ="
        " 128> (w, s) narrow = Cast <to = 10> (wide) turned = Transpose <perm = [1, 0]> (narrow)"
        " y = MatMul (x, turned) }"
    )
    weights = [
        onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT8E4M3FN, [64, 160], bytes(10240), True),
        onnx.helper.make_tensor("s", onnx.TensorProto.FLOAT, [64, 2], bytes(512), True),
    ]
    del graph.graph.input[1:]
    graph.graph.initializer.extend(weights)
    for number, node in enumerate(graph.graph.node):
        node.name = f"node{number}"
    file = tmp_path / "model.onnx"
    onnx.save(graph, file, save_as_external_data=True, size_threshold=0)
    asked = request(89, 120)
    job = Job(str(file), str(tmp_path), "llama", str(tmp_path / "a.plan"), asked)
    assert builder.run(job, silent)["codes"] == {"fp8_e4m3": 10240}
    assert read_plan(Path(job.output)).constants["fp8_e4m3"] == 10240
