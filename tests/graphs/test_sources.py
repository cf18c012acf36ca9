"""Every form in which checkpoints hold experts gives the same weights: loaded, streamed, linked."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from safetensors.torch import save_file
from torch import Tensor

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.finite import check_finite
from lmcast.exporter.checkpoint.safetensors_header import read_header
from lmcast.exporter.checkpoint.tensors import Checkpoint, Texts
from lmcast.exporter.dtypes import DTYPES, of_torch
from lmcast.exporter.weights.attach import attach
from lmcast.exporter.weights.place import WeightsError, choose_mode, place
from lmcast.exporter.weights.values import rows_of, values
from lmcast.graphs import WeightError
from lmcast.graphs.layouts.gpt_oss import MXFP4, Blocks16
from lmcast.graphs.layouts.stored import Stored
from lmcast.graphs.weights.bind import Binding
from lmcast.graphs.weights.sources import Joined, Packed, Source, Stack, View, load_into, shape_of
from lmcast.plugins.rounding import E2M1

ALL, EXPERTS, INNER, WIDTH = slice(None), 5, 6, 64
WANTED = torch.randn(EXPERTS, INNER, WIDTH, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(EXPERTS, INNER, WIDTH, generator=torch.Generator().manual_seed(1))
# What the checkpoint holds -> where the weights come from in it.
FORMS: dict[str, tuple[dict[str, Tensor], Source]] = {
    "whole": ({"a": WANTED}, View("a")),
    "each expert": (
        {f"e{i}": w for i, w in enumerate(WANTED)},
        Stack(tuple(View(f"e{i}") for i in range(EXPERTS))),
    ),
    "first half": ({"a": torch.cat([WANTED, OTHER], 1)}, View("a", (ALL, slice(None, INNER)))),
    "second half": ({"a": torch.cat([OTHER, WANTED], 1)}, View("a", (ALL, slice(INNER, None)))),
    "alternating rows": (
        {"a": torch.stack([OTHER, WANTED], 2).flatten(1, 2)},
        View("a", (ALL, slice(1, None, 2))),
    ),
    "in-first": ({"a": WANTED.mT}, View("a", transposed=True)),
    "in-first, alternating": (
        {"a": torch.stack([WANTED, OTHER], 2).flatten(1, 2).mT},
        View("a", (ALL, ALL, slice(None, None, 2)), transposed=True),
    ),
    "each expert in-first": (
        {f"e{i}": w.mT for i, w in enumerate(WANTED)},
        Stack(tuple(View(f"e{i}", transposed=True) for i in range(EXPERTS))),
    ),
    "some of more experts": ({"a": torch.cat([OTHER, WANTED])}, View("a", (slice(EXPERTS, None),))),
    "columns of a wider one": (
        {"a": torch.cat([WANTED[..., :24], OTHER, WANTED[..., 24:]], -1)},
        Joined(
            tuple(View("a", (ALL, ALL, slice(n, n + 8))) for n in (0, 8, 16, *range(88, 128, 8))),
            2,
        ),
    ),
    "some rows of more": ({"a": torch.cat([WANTED, OTHER], 1)}, View("a", (ALL, slice(INNER)))),
    "runs of rows": (
        {"a": torch.cat([OTHER, WANTED], 1).flatten(0, 1)},
        View("a", (ALL, slice(INNER, None)), runs=EXPERTS),
    ),
    "parts of rows": (
        {"a": WANTED[:, :3], "b": WANTED[:, 3:]},
        Joined((View("a"), View("b")), 1),
    ),
    "parts of experts": (
        {f"{i}{h}": w.chunk(2, 1)[h] for i, w in enumerate(WANTED) for h in (0, 1)},
        Stack(tuple(Joined((View(f"{i}0"), View(f"{i}1")), 1) for i in range(EXPERTS))),
    ),
    "parts of the whole": (
        {"a": WANTED[:, :, :32], "b": WANTED[:, :, 32:]}, Joined((View("a"), View("b")), 2),
    ),
}  # fmt: skip
BY_FORM = pytest.mark.parametrize("form", FORMS)


def checkpoint(folder: Path, tensors: dict[str, Tensor]) -> Checkpoint:
    file = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return Checkpoint(folder, {}, read_header(file, file), Texts())


def shapes(source: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: stored.shape for name, stored in source.tensors.items()}


def evaluated(model: ir.Model) -> np.ndarray:
    """Return what the graph's weight is, by the evaluator of ONNX itself."""
    (got,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {})
    return got


def linked(folder: Path, source: Checkpoint, form: Source, dtype: torch.dtype) -> ir.Model:
    """Return a graph whose output is the weight w, linked to the checkpoint."""
    format = of_torch(dtype)
    binding = Binding({"w": form}, (), ())
    placement = place(binding, {"w": (EXPERTS, INNER, WIDTH)}, source, format, "link", folder)
    kind = ir.TensorType(ir.DataType.FLOAT)
    weight = ir.Value(name="w", type=kind, shape=ir.Shape((EXPERTS, INNER, WIDTH)))
    node = ir.node("Identity", [weight])
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", kind, weight.shape
    graph = ir.Graph(
        [], node.outputs, nodes=[node], initializers=[weight], name="g", opset_imports={"": 24}
    )
    model = ir.Model(graph, ir_version=11)
    attach(model, binding, placement, source, folder)
    for value in model.graph.initializers.values():  # the evaluator reads no external files
        external = value.const_value
        assert isinstance(external, ir.ExternalTensor)
        at = Path("/") / external.location
        raw = at.read_bytes()[external.offset : (external.offset or 0) + (external.length or 0)]
        data = np.frombuffer(raw, np.uint8)
        value.const_value = ir.serde.deserialize_tensor(proto(value, data.tobytes()))
    return model


def proto(value: ir.Value, raw: bytes):
    import onnx

    assert value.dtype is not None and value.shape is not None
    return onnx.TensorProto(
        name=value.name, data_type=int(value.dtype), dims=value.shape.numpy(), raw_data=raw
    )


@BY_FORM
def test_loaded(form: str):
    tensors, source = FORMS[form]
    assert shape_of(source, {name: tuple(t.shape) for name, t in tensors.items()}) == (
        EXPERTS,
        INNER,
        WIDTH,
    )
    out = torch.empty(EXPERTS, INNER, WIDTH, dtype=torch.float64)
    load_into(out, source, tensors.__getitem__)
    assert torch.equal(out, WANTED.double())


@BY_FORM
def test_streamed(form: str, tmp_path: Path):
    tensors, source = FORMS[form]
    found = checkpoint(tmp_path, tensors)
    got = torch.cat([block.flatten() for block in values(found, source)])
    assert torch.equal(got.reshape(EXPERTS, INNER, WIDTH), WANTED)
    assert torch.equal(rows_of(found, source, 1, EXPERTS - 1), WANTED[1 : EXPERTS - 1])


@BY_FORM
def test_linked(form: str, tmp_path: Path):
    tensors, source = FORMS[form]
    model = linked(tmp_path, checkpoint(tmp_path, tensors), source, torch.float32)
    np.testing.assert_array_equal(evaluated(model), WANTED.numpy())


@BY_FORM
def test_nan_is_found_in_every_form(form: str, tmp_path: Path):
    tensors, source = FORMS[form]
    wrong = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    name = next(reversed(wrong))
    wrong[name].view(-1)[-1] = torch.nan
    found = checkpoint(tmp_path, wrong)
    with pytest.raises(CheckpointError, match=f"'{name}' holds nan"):
        list(values(found, source))


def mxfp4() -> tuple[dict[str, Tensor], Tensor]:
    """Return blocks and scales of a stack, and its values, worked out number by number."""
    random = torch.Generator().manual_seed(2)
    blocks = torch.randint(
        0, 256, (EXPERTS, 2 * INNER, WIDTH // 32, 16), generator=random, dtype=torch.uint8
    )
    scales = torch.randint(
        120, 134, (EXPERTS, 2 * INNER, WIDTH // 32), generator=random, dtype=torch.uint8
    )
    scales[0, 0, 0], scales[0, 0, 1] = (
        0,
        252,
    )  # the least, and the largest whose products fp32 holds
    exact = torch.empty(EXPERTS, 2 * INNER, WIDTH, dtype=torch.float64)
    for at in np.ndindex(*blocks.shape):
        for half in (0, 1):
            bits = int(blocks[at]) >> 4 * half & 15
            value = E2M1[bits & 7] * (-1) ** (bits >> 3) * 2.0 ** (int(scales[at[:3]]) - 127)
            exact[at[0], at[1], 32 * at[2] + 2 * at[3] + half] = value
    return {"blocks": blocks, "scales": scales}, exact


ALTERNATE = (ALL, slice(1, None, 2))
UP = Packed(View("blocks", ALTERNATE), Blocks16("blocks", "scales"))


def test_mxfp4_is_unpacked_exactly(tmp_path: Path):
    tensors, exact = mxfp4()
    whole = torch.empty(EXPERTS, 2 * INNER, WIDTH, dtype=torch.float64)
    load_into(whole, Packed(View("blocks"), UP.layout), tensors.__getitem__)
    assert torch.equal(whole, exact)
    assert shape_of(UP, {name: tuple(t.shape) for name, t in tensors.items()}) == (
        EXPERTS,
        INNER,
        WIDTH,
    )
    out = torch.empty(EXPERTS, INNER, WIDTH, dtype=torch.float64)
    load_into(out, UP, tensors.__getitem__)
    assert torch.equal(out, exact[:, 1::2])
    blocks = values(checkpoint(tmp_path, tensors), UP)
    got = torch.cat([block.flatten() for block in blocks]).reshape(EXPERTS, INNER, WIDTH)
    assert torch.equal(got.double(), exact[:, 1::2])
    assert torch.equal(rows_of(checkpoint(tmp_path, tensors), UP, 1, 2).double(), exact[1:2, 1::2])


FLAT = Packed(View("blocks", ALTERNATE), Stored(MXFP4, "blocks", "scales"))


@pytest.mark.parametrize("source", [UP, FLAT], ids=["as gpt-oss", "as others"])
def test_mxfp4_linked_is_what_onnx_makes_of_the_bytes(source: Packed, tmp_path: Path):
    tensors, exact = mxfp4()
    if source is FLAT:
        tensors["blocks"] = tensors["blocks"].flatten(-2)
    model = linked(tmp_path, checkpoint(tmp_path, tensors), source, torch.float32)
    assert {v.dtype for v in model.graph.initializers.values()} == {
        ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E8M0,
    }  # fmt: skip
    np.testing.assert_array_equal(evaluated(model), exact[:, 1::2].float().numpy())


@pytest.mark.parametrize("mode", ["stream", "link"])
def test_a_scale_that_is_nan_is_refused(tmp_path: Path, mode: str):
    tensors, _ = mxfp4()
    tensors["scales"][3, 1, 0] = 255
    found = checkpoint(tmp_path, tensors)
    read = {
        "stream": lambda: list(values(found, UP)),
        "link": lambda: linked(tmp_path, found, UP, torch.float32),
    }
    with pytest.raises(CheckpointError, match="holds nan"):
        read[mode]()


def test_mxfp4_is_linked_only_where_it_need_not_run(tmp_path: Path):
    found = checkpoint(tmp_path, mxfp4()[0])
    binding = Binding({"w": UP}, (), ())
    float32 = DTYPES["float32"]
    assert choose_mode(binding, found, float32, None, False) == "copy"
    assert choose_mode(binding, found, float32, None, True) == "copy"
    assert choose_mode(binding, found, float32, "link", True) == "link"
    with pytest.raises(WeightsError, match="blocks is MXFP4"):
        choose_mode(binding, found, float32, "link", False)


def test_parts_that_do_not_fit_are_refused():
    both = Stack((View("a"), View("b")))
    with pytest.raises(WeightError, match=r"tensor b has shape \[2, 4\]"):
        shape_of(both, {"a": (2, 3), "b": (2, 4)})
    with pytest.raises(WeightError, match="1 axes are needed"):
        shape_of(View("a", (ALL,)), {"a": ()})
    with pytest.raises(WeightError, match="blocks has shape"):
        shape_of(UP, {"blocks": (2, 3, 8), "scales": (2, 3)})


def test_finite_check_reads_bytes_as_scales(tmp_path: Path):
    found = checkpoint(tmp_path, mxfp4()[0])
    assert check_finite(found, list(found.tensors)).tensors == 0  # bytes alone hold no NaN
