"""Packing of weights in parts and wholes, what it refuses, what others make of it."""

import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from lmcast.calib.formats import WEIGHTS, FormatError
from lmcast.calib.formats.strips import VALUES
from lmcast.exporter.dtypes import DTYPES, of_torch
from lmcast.graphs.weights.quantized import Quantized

COLUMNS = 128  # whole blocks of every format


REFUSED = {
    "float64": (lambda: torch.ones(2, 64, dtype=torch.float64), "is torch.float64 on cpu"),
    "meta": (lambda: torch.ones(2, 64, device="meta"), "is torch.float32 on meta"),
    "vector": (lambda: torch.ones(64), r"has shape \[64\]"),
    "empty": (lambda: torch.ones(0, 64), r"has shape \[0, 64\]"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_weight_is_refused(what: str):
    make, message = REFUSED[what]
    with pytest.raises(FormatError, match=message):
        WEIGHTS["mxfp4"].pack(make())


def test_partial_blocks_are_of_whole_matrices_alone():
    for name, columns in (("mxfp4", 32), ("mxfp8", 32), ("nvfp4", 16), ("int4-128", 128)):
        with pytest.raises(FormatError, match=f"{columns + 8} columns; accepted: multiples of"):
            WEIGHTS[name].pack(torch.ones(2, columns + 8))
    torch.manual_seed(1)
    weight = torch.randn(130, 200)
    packed = WEIGHTS["fp8-block"].pack(weight)
    assert packed.scales.shape == (2, 2)
    assert packed.scales[1, 1] == weight[128:, 128:].abs().max() / 448


def test_scales_of_another_form_are_refused():
    format, weight = WEIGHTS["nvfp4"], torch.ones(2, 64)
    scales, shared = format.scales(weight)
    for stored, of_all, message in (
        (scales.float(), shared, "torch.float32"),
        (scales[:, :2], shared, r"\[2, 2\]"),
        (scales, torch.ones(3), r"\(3,\)"),
    ):
        with pytest.raises(FormatError, match=message):
            format.pack(weight, stored, of_all)
    with pytest.raises(FormatError, match="accepted: None"):
        WEIGHTS["mxfp4"].pack(weight, None, torch.ones(()))
    with pytest.raises(FormatError, match="importance has shape"):
        format.search(weight, torch.ones(2))
    with pytest.raises(FormatError, match=r"up to 4\.91e"):
        WEIGHTS["int4"].pack(torch.full((1, 32), 1e6))


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "lmcast.calib.formats.kernels", raising=False)
    monkeypatch.delattr("lmcast.calib.formats.kernels", raising=False)
    with pytest.raises(FormatError, match=r"pip install 'lmcast\[calib\]'"):
        WEIGHTS["int8"].pack(torch.ones(1, 8))


@pytest.mark.parametrize("name", WEIGHTS)
def test_parts_are_as_the_whole(name: str):
    """Stacks, views, threads and runs of rows change nothing."""
    format = WEIGHTS[name]
    torch.manual_seed(2)
    stack = torch.randn(3, 300, COLUMNS).bfloat16()
    whole = format.pack(stack)
    each = [format.pack(matrix) for matrix in stack]
    assert torch.equal(whole.codes, torch.stack([packed.codes for packed in each]))
    assert torch.equal(
        whole.scales.float(), torch.stack([packed.scales for packed in each]).float()
    )
    turned = format.pack(stack[0].T.contiguous().T)
    assert torch.equal(turned.codes, each[0].codes)
    most = format.most(stack[1]) if format.whole else None
    rows = list(format.pack_rows(stack[1].split([50, 1, 200, 49]), most))
    assert torch.equal(torch.cat([packed.codes for packed in rows]), each[1].codes)
    values = torch.cat([packed.dequantize() for packed in rows])
    assert torch.equal(values, each[1].dequantize())
    if format.whole:
        with pytest.raises(FormatError, match="largest value of all rows"):
            next(format.pack_rows([stack[1]]))
    one = torch.get_num_threads() == 1
    torch.set_num_threads(2 if one else 1)
    try:
        times = 1 + 2 * VALUES // stack[0].numel()
        tall = stack.repeat(1, times, 1)  # of each matrix several strips
        again, found = format.pack(tall), format.search(tall)
    finally:
        torch.set_num_threads(1 if one else 2)
    assert torch.equal(format.pack(tall).codes, again.codes)
    if format.scheme.block[0] == 1:
        assert torch.equal(found.float(), format.search(stack).float().repeat(1, times, 1))


@pytest.mark.parametrize("name", WEIGHTS)
def test_search_finds_the_least(name: str):
    format = WEIGHTS[name]
    torch.manual_seed(3)
    weight = torch.randn(2, 130, COLUMNS)
    weight[0, 3, :5] = 30
    importance = torch.rand(COLUMNS) ** 4
    scales, shared = format.scales(weight)
    for columns in (None, importance, torch.stack([importance, importance.flip(0)])):
        found = format.search(weight, columns)
        tried = [scales, *format.candidates(scales)]
        squares = [measured(format.pack(weight, s, shared), weight, columns) for s in tried]
        reached = measured(format.pack(weight, found, shared), weight, columns)
        # Products of fp64 there, of fp32 here.
        assert torch.allclose(reached, torch.stack(squares).amin(0), rtol=1e-5)
    assert torch.equal(found.float(), format.search(weight.clone(), columns, shared).float())


def measured(packed: Quantized, weight: Tensor, importance: Tensor | None) -> Tensor:
    """Return the squared errors of blocks, from the numbers that come back."""
    squares = (packed.dequantize().double() - weight).square()
    if importance is not None:
        squares = squares * (importance if importance.dim() == 1 else importance[:, None])
    stack, rows, blocks = packed.scales.shape
    high, wide = packed.scheme.block
    high, wide = high or weight.shape[1], wide or weight.shape[2]
    padded = torch.nn.functional.pad(squares, (0, 0, 0, -weight.shape[1] % high))
    return padded.reshape(stack, rows, high, blocks, wide).sum((2, 4))


def test_others_pack_alike():
    from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales
    from modelopt.torch.quantization.qtensor import MXFP4QTensor, MXFP8QTensor, NVFP4QTensor

    torch.manual_seed(4)
    weight = torch.randn(64, 256) * 0.05
    largest = weight.reshape(64, 8, 32).abs().amax(-1)
    scales = WEIGHTS["mxfp4"].scales(weight)[0].view(torch.uint8)
    assert torch.equal(scales, generate_mx_scales(largest, 4).to(torch.uint8))
    theirs, scales = MXFP4QTensor.quantize(weight, 32)  # scales by another rule
    ours = WEIGHTS["mxfp4"].pack(weight, scales.reshape(64, 8).view(torch.float8_e8m0fnu))
    assert torch.equal(ours.codes, theirs._quantized_data.reshape(64, 128))
    theirs, scales = MXFP8QTensor.quantize(weight)[:2]
    ours = WEIGHTS["mxfp8"].pack(weight)
    assert torch.equal(ours.scales.view(torch.uint8), scales.reshape(64, 8))
    assert torch.equal(ours.codes, theirs._quantized_data.view(torch.uint8))
    theirs, scales, shared = NVFP4QTensor.quantize(weight, 16)
    ours = WEIGHTS["nvfp4"].pack(weight)
    assert torch.equal(ours.scales.float(), scales.float()) and torch.equal(ours.shared, shared)
    assert torch.equal(ours.codes, theirs._quantized_data)


def as_tensor(name: str, kind: int, shape: tuple[int, ...], values: Tensor) -> onnx.TensorProto:
    raw = values.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return helper.make_tensor(name, kind, shape, raw, raw=True)


@pytest.mark.parametrize("name", WEIGHTS)
def test_onnx_has_the_same_numbers(name: str):
    """By the reference of ONNX: ONNX Runtime has no kernels for E2M1 or E8M0."""
    torch.manual_seed(5)
    weight = torch.randn(256, 256)
    format = WEIGHTS[name]
    packed, (rows, columns) = format.pack(weight), format.scheme.block
    scales = packed.scales.view(torch.uint8) if packed.scales.itemsize == 1 else packed.scales
    given = {"axis": 1, "block_size": columns} if columns else {"axis": 0}
    if not columns:
        scales = scales.flatten() if rows else scales.reshape(())
    elif rows > 1:
        scales = scales.repeat_interleave(rows, 0)
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["y"], output_dtype=1, **given)]
    initializers = [
        as_tensor("q", DTYPES[format.scheme.element.dtype].onnx, tuple(weight.shape), packed.codes),
        as_tensor("s", of_torch(format.scheme.scale).onnx, tuple(scales.shape), scales),
    ]
    if packed.shared is not None:
        nodes[0].input[1] = "t"
        nodes.insert(0, helper.make_node("DequantizeLinear", ["s", "shared"], ["t"]))
        initializers.append(as_tensor("shared", TensorProto.FLOAT, (), packed.shared))
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, weight.shape)
    graph = helper.make_graph(nodes, "g", [], [out], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    onnx.checker.check_model(model, full_check=True)
    (values,) = ReferenceEvaluator(model).run(None, {})
    assert np.array_equal(values, packed.dequantize().numpy())
