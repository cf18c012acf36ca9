"""Weights in few bits on target cuda: the kernels that they take, their bytes, and their numbers.

Kernels and memory: ONNX Runtime's own CUDA provider on a fake GPU. Numbers: the same graphs run by
the CPU in fp32, where few_bits says what a kernel computes that CPUs do not have.
"""

import dataclasses
import importlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from cuda_calls import Placed, calls, shortened
from cuda_twins import twin
from engine_errors import errors
from fake_cuda import Log, libraries, on_fake_gpu
from few_bits import E2M1, stack
from files.recipe_dirs import write_packed
from test_cuda_graphs import as_in_bfloat16
from tiny import Case, case

from lmcast.calib.formats import WEIGHTS
from lmcast.exporter import export, load, targets
from lmcast.exporter.pipeline import identified, take_recipe, understand
from lmcast.exporter.prove.parity import parity
from lmcast.exporter.weights.gpu_forms import gpu_weight
from lmcast.graphs import fill
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.quantized import InputFormat
from lmcast.graphs.weights.quantized import Quantized
from lmcast.graphs.weights.quantized_parts import Part
from lmcast.plugins.errors import InputError

DENSE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 32}
LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
ROUTED = ("experts.gate", "experts.up", "experts.down")


def wide(name: str, **settings: Any) -> Case:
    """Return a case whose widths all kernels take, with one layer."""
    found = case(name)
    return dataclasses.replace(found, name=f"{name}, wide", settings={**found.settings, **settings})


LLAMA = wide("llama/plain", **DENSE, num_attention_heads=4, num_key_value_heads=2)
QWEN = wide(
    "qwen3_moe/plain", **DENSE | {"intermediate_size": 64}, moe_intermediate_size=64,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
OSS = wide(
    "gpt_oss/plain", **DENSE | {"intermediate_size": 64}, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
GLM = wide(
    "glm4_moe/plain", **DENSE, moe_intermediate_size=64, num_attention_heads=4,
    num_key_value_heads=2, first_k_dense_replace=0,
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Weights of a model in a format: the operator that multiplies with them, and the kernels that
    a step of one token takes for them, which the provider chooses by the host's code."""

    case: Case
    format: str
    operator: str
    step: tuple[str, ...]
    count: int = 1  # of the operator: queries, keys and values are one product, gates and ups too
    compiled: bool = False  # whether an operator of ours is beside it whose body no GPU runs


FULL = wide(
    "qwen3/plain", num_hidden_layers=1, head_dim=64, num_attention_heads=4, num_key_value_heads=1
)
RINGS = wide("gemma3_text/derived types", head_dim=64, num_attention_heads=4, num_key_value_heads=1)
FP8 = ("MatMulBlockScaledFp8GemvKernel", "MatMulBlockScaledFp8MmaGemvKernel")
NBITS8 = ("MatMulFloat8bKernelM1",)
GROUPED = ("doGatedActivationKernel",)
ROWS = {
    "fp8": Row(LLAMA, "fp8", "MatMulBlockQuantizedFp8Weight", FP8, 4),
    "fp8-channel": Row(LLAMA, "fp8-channel", "MatMulBlockQuantizedFp8Weight", FP8, 4),
    "fp8-block": Row(LLAMA, "fp8-block", "MatMulBlockQuantizedFp8Weight", FP8, 4),
    "mxfp8": Row(LLAMA, "mxfp8", "MatMulBlockQuantizedFp8Weight", FP8[:1], 4),
    "nvfp4": Row(
        LLAMA, "nvfp4", "MatMulBlockQuantizedFp4Weight",
        ("MatMulBlockQuantizedFp4WeightMmaGemvKernel",), 7,
    ),
    "mxfp4": Row(LLAMA, "mxfp4", "MatMulNBits", NBITS8, 4),
    "int8": Row(LLAMA, "int8", "MatMulNBits", NBITS8, 4),
    "int4": Row(LLAMA, "int4", "MatMulNBits", ("MatMulFloat4BitsKernelM1",), 4),
    "experts, int4": Row(QWEN, "int4", "QMoE", GROUPED),
    "experts, int8": Row(QWEN, "int8", "QMoE", GROUPED),
    "experts, mxfp4": Row(OSS, "mxfp4", "QMoE", GROUPED),
    "experts chosen by sigmoid, int4": Row(GLM, "int4", "QMoE", GROUPED, compiled=True),
    "caches": Row(FULL, "", "GroupQueryAttention", ("kernel_mha",)),
    "caches that are rings": Row(RINGS, "", "GroupQueryAttention", ("kernel_mha",), 7),
}  # fmt: skip


OPTIONS = {"parity": False, "tokenizer": False, "context": 128}
Engines = Mapping[str, tuple[Path, Path, Path]]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    """Return by row the checkpoint, the recipe, and the engine without machine code of ours."""
    made, checkpoints = {}, dict[str, Path]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(targets.TARGETS, "cuda", twin())
        for name, row in ROWS.items():
            folder = tmp_path_factory.mktemp("row")
            if row.case.name not in checkpoints:
                checkpoints[row.case.name] = shortened(row.case, folder / "checkpoint")
            source = checkpoints[row.case.name]
            ends = ROUTED if row.operator == "QMoE" else [f"{end}.weight" for end in LINEAR]
            formats = dict.fromkeys(ends, row.format) if row.format else {}
            held = () if row.format else attentions(source)
            recipe = write_packed(source, folder / "recipe", formats, None, held, torch.bfloat16)
            given = {**OPTIONS, "recipe": recipe, "dtype": "bfloat16"}
            export(source, folder / "engine", "cuda", **given)
            made[name] = source, recipe, folder / "engine"
    return made


def attentions(checkpoint: Path) -> list[str]:
    model = understand(identified(checkpoint)[0], (), tokenizer=False).model
    return [name for name, module in model.named_modules() if isinstance(module, Attention)]


def all_calls(given: dict[str, dict[str, str]]) -> dict[str, Placed]:
    """Call each engine; export it before where it needs machine code."""
    found = {}
    for name, one in given.items():
        if "checkpoint" in one:
            more = {**OPTIONS, "recipe": one["recipe"], "dtype": "bfloat16", "sms": (90,)}
            export(one["checkpoint"], one["folder"], "cuda", force=True, **more)
        found[name] = calls(one["folder"], name)
    return found


@pytest.fixture(scope="module")
def ran(engines: Engines) -> tuple[dict[str, Placed], Log]:
    given = {}
    for name, (checkpoint, recipe, folder) in engines.items():
        given[name] = {"folder": str(folder)}
        if ROWS[name].compiled:
            given[name] = {
                "checkpoint": str(checkpoint), "recipe": str(recipe),
                "folder": f"{folder}-compiled",
            }  # fmt: skip
    run = on_fake_gpu(all_calls, given, TRITON_INTERPRET="0")
    return run.result, run.log


@pytest.mark.skipif(libraries.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("name", ROWS)
def test_kernels(name: str, ran: tuple[dict[str, Placed], Log]):
    placed, log = ran
    row = ROWS[name]
    assert list(placed[name]) == ["CUDAExecutionProvider"]
    assert placed[name]["CUDAExecutionProvider"].count(row.operator) == row.count
    taken = {kernel.split("::")[-1] for kernel in log.after(f"{name}: step").kernels}
    assert taken & set(row.step)
    assert not [kernel for kernel in taken if "Dequant" in kernel]


OTHERS = ("fp8-block", "nvfp4", "int4", "experts, int4", "experts, mxfp4")


@pytest.mark.skipif(libraries.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("sm", [80, 120])
def test_other_gpus(sm: int, engines: Engines):
    given = {name: {"folder": str(engines[name][2])} for name in OTHERS}
    run = on_fake_gpu(all_calls, given, sm=sm)
    for name in OTHERS:
        assert list(run.result[name]) == ["CUDAExecutionProvider"]
        taken = {kernel.split("::")[-1] for kernel in run.log.after(f"{name}: step").kernels}
        assert taken & set(ROWS[name].step), name


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.format])
def test_weights_are_held_in_few_bits(name: str, engines: Engines):
    """No second copy: the graph has no number of 16 bits for any of a quantized weight's."""
    row, folder = ROWS[name], engines[name][2]
    graph = ir.load(folder / "engine.onnx").graph
    ends = ROUTED if row.operator == "QMoE" else [f".{end}.weight" for end in LINEAR]
    held = [v for n, v in graph.initializers.items() if any(end in n for end in ends)]
    sizes = Counter[int]()
    for value in held:
        assert value.shape is not None and value.dtype is not None
        sizes[value.dtype.bitwidth] += math.prod(value.shape.numpy())
    # Bytes of one number or two, and scales of 16 numbers at least.
    assert 0 < sizes[16] + sizes[32] + sizes[4] <= sizes[8] / 8
    assert not [node for node in graph if node.op_type == "DequantizeLinear"]


@pytest.mark.skipif(libraries.missing() != "", reason=libraries.missing())
def test_the_order_of_experts_is_that_of_onnxruntimes_packer():
    """Codes in MXFP4 lie as ONNX Runtime's own packer for QMoE lays them, in the package itself;
    and the reader in few_bits, which test_numbers stands on, reads what that has packed."""
    packer = "pack_fp4_weights_for_cuda_moe_gemm"
    pack = getattr(importlib.import_module("onnxruntime.capi._pybind_state"), packer)
    experts, rows, columns = 3, 6, 64  # all unlike: an order of other axes would show
    random = np.random.default_rng(0)
    codes = random.integers(0, 16, (experts, rows, columns), np.uint8)
    stored = codes[..., ::2] | codes[..., 1::2] << 4
    packed = np.stack([pack(one, rows, columns) for one in stored])
    scheme = WEIGHTS["mxfp4"].scheme
    made = gpu_weight(None, (), scheme, codes.shape, torch.bfloat16, one_each=False)  # type: ignore[arg-type]
    given = Quantized(scheme, torch.from_numpy(stored), torch.empty(0))
    assert made is not None and made.form == "columns"
    assert made.parts[Part.CODES].take(given).numpy().tobytes() == packed.tobytes()
    scales = random.integers(1, 9, (experts, rows, columns // 32)).astype(np.float32)
    form = {"quant_type": "fp4", "expert_weight_bits": 4, "block_size": 32}
    read = stack(packed.reshape(experts, rows, columns // 2), scales, None, form)
    assert (read == E2M1[codes] * scales.repeat(32, -1)).all()


@dataclass(frozen=True)
class Refused:
    """A recipe that has no kernel, and what is said of it."""

    message: str
    case: Case
    formats: Mapping[str, str] = field(default_factory=dict)
    inputs: InputFormat | None = None
    sms: tuple[int, ...] = ()


DOWN = {"down.weight": "fp8"}
REFUSED = {
    "experts in FP8": Refused(
        r"experts.gate is fp8, of experts: .* in int4, int8, mxfp4", QWEN,
        dict.fromkeys(ROUTED, "fp8"),
    ),
    "experts in NVFP4": Refused(
        r"experts.gate is nvfp4, of experts", QWEN, dict.fromkeys(ROUTED, "nvfp4")
    ),
    "experts of which only some are in few bits": Refused(
        r"experts.down is UINT4, without a kernel .* \(of experts those with a gate", QWEN,
        {"experts.down": "int4"},
    ),
    "an embedding in FP8": Refused(
        r"embed.weight is FLOAT8E4M3FN, .* \(of embeddings those in INT4", LLAMA,
        {"embed.weight": "fp8"},
    ),
    "inputs in FP8": Refused("products with rounded inputs", LLAMA, DOWN, InputFormat("fp8")),
    "inputs in NVFP4": Refused(
        "products with rounded inputs", LLAMA, {"down.weight": "nvfp4"}, InputFormat("nvfp4")
    ),
    "caches in FP8 on old GPUs": Refused(
        r"key is held in FP8, .* from SM89 on, and not on SM80: use --sm 89,90,120", FULL,
        sms=(80, 90),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path):
    row = REFUSED[name]
    checkpoint = shortened(row.case, tmp_path / "checkpoint")
    held = () if row.formats else attentions(checkpoint)
    recipe = write_packed(checkpoint, tmp_path / "recipe", row.formats, row.inputs, held)
    given = {**OPTIONS, "recipe": recipe, "dtype": "bfloat16", "sms": row.sms}
    with pytest.raises(InputError, match=row.message):
        export(checkpoint, tmp_path / "engine", "cuda", **given)
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("name", ROWS)
@torch.no_grad()
def test_numbers(name: str, engines: Engines, monkeypatch, report):
    monkeypatch.setitem(targets.TARGETS, "cuda", twin())
    checkpoint, recipe, folder = engines[name]
    engine = load(folder, threads=1)
    rough, exact = (eager(checkpoint, recipe, dtype) for dtype in (torch.float32, torch.float64))
    # Of other tokens a number in a ring is at a tie of two codes, and rounding takes either.
    seed = 2 if name == "caches that are rings" else 0
    found = errors(engine, rough, exact, "ragged of 3", seed=seed)
    report("Weights in few bits on target cuda against eager, fp32", found.row(row=name))
    assert found.share <= 1


def test_parity_rounds_caches_too(engines: Engines, monkeypatch):
    """As attention of ONNX Runtime's own does, which no node in the graph says but its own."""
    monkeypatch.setitem(targets.TARGETS, "cuda", twin())
    checkpoint, recipe, folder = engines["caches"]
    report = parity(folder, checkpoint, tokens=24, recipe=recipe)
    assert report.passed, report.table()


def eager(checkpoint: Path, recipe: Path, dtype: torch.dtype) -> torch.nn.Module:
    """Return the definition with the recipe's weights, dequantized by the definition."""
    source, identities = identified(checkpoint)
    found, source = take_recipe(understand(source, (), False), source, recipe, identities, {})
    fill(found, found.model, source.read, dtype)
    return as_in_bfloat16(found.model, tables=True)
