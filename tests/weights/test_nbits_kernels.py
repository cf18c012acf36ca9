"""Integers with zero points in every size of blocks, by the kernels that take them or without, and
the kinds of GGUF."""

from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from files.gguf import random_blocks
from files.quantized import GPTQ, gptq
from gguf import GGMLQuantizationType, quants
from onnx import parser
from safetensors.torch import save_file
from torch import Tensor

from lmcast.exporter import passes
from lmcast.exporter.backends.onnxruntime import value_of
from lmcast.exporter.checkpoint.safetensors_header import read_header
from lmcast.exporter.checkpoint.tensors import Checkpoint, StoredTensor, Texts
from lmcast.exporter.dtypes import DTYPES
from lmcast.exporter.graph.assemble import attach_bodies
from lmcast.exporter.weights.attach import attach
from lmcast.exporter.weights.place import place
from lmcast.graphs.layouts.catalogue import take
from lmcast.graphs.layouts.ggml import KINDS, SUPER, Blocks
from lmcast.graphs.layouts.tensors import Tensors
from lmcast.graphs.weights.bind import Binding
from lmcast.graphs.weights.sources import Packed, Source, Stack, View
from lmcast.plugins.experts.moe_experts import eager

ROWS, EXPERTS = 16, 3
# Graphs that take a weight w, and the operator that reads its codes where there is a kernel.
GRAPHS = {
    "plain": (
        "(float[2,{k}] x, float[16,{k}] w) => (float[2,16] y)"
        " {{ turned = Transpose <perm = [1, 0]> (w) y = MatMul (x, turned) }}",
        "MatMulNBits",
    ),
    "experts": (
        "(float[2,{k}] x, float[3,16,{k}] w, float[2,2] share, float[2,3] logits,"
        " float[3,{k},16] d) => (float[2,{k}] y) {{ two = Constant <value_ints = [2]> ()"
        " value, chosen = TopK (logits, two)"
        ' y = lmcast.moe_experts <activation = "relu", alpha = 1.7, limit = 1.5, scale_input = 0>'
        " (x, share, chosen, , w, d) }}",
        "MatMulNBits",
    ),
    "embedding": (
        "(int64[2,5] ids, float[16,{k}] w) => (float[2,5,{k}] y) {{ y = Gather (w, ids) }}",
        "GatherBlockQuantized",
    ),
}  # fmt: skip
# Columns, columns of a group: whole bytes of 4-bit zero points in a row or not, a last group that
# is shorter, groups of a size that no kernel has, a whole row.
SIZES = [(112, 16), (112, 32), (144, 48), (144, 16), (128, 16), (96, 48), (96, -1), (112, -1)]
HAVE = {(128, 16), (96, 48), (96, -1)}  # with 4 bits: an even number of blocks in a row


def packed(columns: int, group: int, bits: int, parts: int, folder: Path) -> tuple:
    """Return a checkpoint of matrices m0, m1, ..., their sources, and what they are."""
    torch.manual_seed(columns + bits)
    tensors: dict[str, Tensor] = {}
    exact = []
    for number in range(parts):
        leaves, value = gptq(torch.randn(ROWS, columns), bits, group, sym=False)
        tensors |= {f"m{number}.{leaf}": tensor.contiguous() for leaf, tensor in leaves.items()}
        exact.append(value)
    save_file(tensors, folder / "model.safetensors")
    stored = read_header(folder / "model.safetensors", folder / "model.safetensors")
    shapes = {name: one.shape for name, one in stored.items()}
    settings = GPTQ | {"bits": bits, "group_size": group, "sym": False}
    known = Tensors(shapes, {name: one.dtype for name, one in stored.items()})
    found, _ = take("llama", {"quantization_config": settings}, known, False)
    sources = [Packed(View(name), layout) for name, layout in sorted(found.layouts.items())]
    return Checkpoint(folder, {}, stored, {}), sources, exact


def graph(kind: str, columns: int) -> ir.Model:
    head = '<ir_version: 11, opset_import: ["" : 24, "lmcast" : 1]>\ng '
    text = head + GRAPHS[kind][0].format(k=columns)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(parser.parse_model(text)))
    for number, node in enumerate(model.graph):
        node.name = f"node{number}"
    attach_bodies(model)
    weight = next(value for value in model.graph.inputs if value.name == "w")
    model.graph.inputs.remove(weight)
    model.graph.initializers["w"] = weight
    return model


def wanted(kind: str, exact: list[Tensor], given: dict[str, np.ndarray]) -> Tensor:
    """Return what eager PyTorch makes of the inputs of a graph."""
    if kind == "embedding":
        return exact[0][torch.from_numpy(given["ids"])]
    x = torch.from_numpy(given["x"])
    if kind == "plain":
        return x @ exact[0].T
    share, downs = torch.from_numpy(given["share"]), torch.from_numpy(given["d"])
    chosen = torch.from_numpy(given["logits"]).topk(2).indices
    stack = torch.stack(exact)
    return eager(x, share, chosen, None, stack, downs, None, None, None, "relu", 1.7, 1.5, False)


@pytest.mark.parametrize(("kind", "bits", "size"), list(product(GRAPHS, (4, 8), SIZES)))
def test_zero_points(kind: str, bits: int, size: tuple[int, int], tmp_path: Path):
    columns, group = size
    parts = EXPERTS if kind == "experts" else 1
    checkpoint, sources, exact = packed(columns, group, bits, parts, tmp_path)
    operators, found, given = ran(kind, columns, checkpoint, sources, tmp_path)
    assert (GRAPHS[kind][1] in operators) == (bits == 8 or size in HAVE)
    assert ("DequantizeLinear" in operators) != (GRAPHS[kind][1] in operators)
    np.testing.assert_allclose(
        # 144 fp32 roundings of sums near 30; of experts, of their squares, and 16 more.
        found, wanted(kind, exact, given).numpy(), rtol=0,
        atol={"embedding": 0, "plain": 3e-4, "experts": 0.02}[kind],
    )  # fmt: skip


def ran(
    kind: str, columns: int, checkpoint: Checkpoint, sources: list[Packed], folder: Path
) -> tuple[list[str], np.ndarray, dict[str, np.ndarray]]:
    """Return the operators of a graph for CPUs, what it computes without rounding its inputs, and
    those."""
    source: Source = Stack(tuple(sources)) if kind == "experts" else sources[0]
    model, binding = graph(kind, columns), Binding({"w": source}, (), ())
    (shape,) = (tuple(v.shape.numpy()) for v in model.graph.initializers.values())
    placed = place(
        binding, {"w": shape}, checkpoint, DTYPES["float32"], "copy", folder, form="kernels"
    )
    attach(model, binding, placed, checkpoint, folder)
    passes.run(model, passes.CPU)
    random = np.random.default_rng(0)
    given = {
        str(v.name): random.standard_normal(v.shape.numpy(), np.float32) for v in model.graph.inputs
    }
    if kind == "embedding":
        given["ids"] = random.integers(0, ROWS, (2, 5))
    return [node.op_type for node in model.graph], run(model, given, folder), given


def blocks_of(kind: str, parts: int, folder: Path) -> tuple[Checkpoint, list[Packed], list[Tensor]]:
    """Return matrices of random bits of one kind of GGUF, as `packed` does."""
    number = GGMLQuantizationType[kind]
    raw = random_blocks(kind, parts * ROWS, SUPER)
    (folder / "raw").write_bytes(raw.tobytes())
    values = torch.from_numpy(quants.dequantize(raw, number)).reshape(parts, ROWS, SUPER)
    tensors, sources, each = {}, [], raw.nbytes // parts
    for part in range(parts):
        shape = (ROWS, each // ROWS)
        stored = StoredTensor(f"m{part}", torch.uint8, shape, folder / "raw", part * each, each)
        tensors[stored.name] = stored
        sources.append(Packed(View(stored.name), Blocks(stored.name, KINDS[kind])))
    return Checkpoint(folder, {}, tensors, Texts()), sources, list(values)


# Experts take parts of the same tensors: with and without minima and factors of runs.
OF_EXPERTS = ("Q8_0", "Q4_1", "Q6_K", "Q4_K")


@pytest.mark.parametrize(
    ("kind", "number"),
    [pair for pair in product(GRAPHS, KINDS) if pair[0] != "experts" or pair[1] in OF_EXPERTS],
)
def test_kinds_of_gguf(kind: str, number: str, tmp_path: Path):
    parts = EXPERTS if kind == "experts" else 1
    checkpoint, sources, exact = blocks_of(number, parts, tmp_path)
    operators, found, given = ran(kind, SUPER, checkpoint, sources, tmp_path)
    assert GRAPHS[kind][1] in operators
    lifted = KINDS[number].scheme.least
    assert ("ReduceSum" in operators) == (bool(lifted) and kind == "plain") or kind == "experts"
    right = wanted(kind, exact, given).double().numpy()
    # What is gathered is off by the rounding of two sums for one, minimum + scale * code; products
    # by those of 256 sums, as eager's are.
    size = max(float(part.abs().max()) for part in exact)
    most = {"embedding": size if lifted else 0, "plain": 64 * size, "experts": 4e3 * size**2}
    np.testing.assert_allclose(found, right, rtol=0, atol=2**-23 * most[kind])


def run(model: ir.Model, given: dict[str, np.ndarray], folder: Path) -> np.ndarray:
    options = ort.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    # In a layout of their own MatMulNBits multiplies with rounded inputs.
    options.add_session_config_entry("session.disable_prepacking", "1")
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    values = {name: value_of(np.asarray(array)) for name, array in given.items()}
    (out,) = session.run_with_ort_values(None, values)
    return out.numpy()
