"""FP8 checkpoints are what their numbers times their scales are: loaded, streamed, exported."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from files.fp8 import (
    CONFIG,
    RAGGED,
    STATIC,
    blocks,
    codes,
    factors,
    grid,
    in_fp8,
    save,
    with_activations,
    worked_out,
)
from safetensors.torch import save_file
from tiny import defined, logits, prompt, read
from torch import Tensor

from lmcast.exporter import export
from lmcast.exporter.checkpoint.safetensors_header import read_header
from lmcast.exporter.checkpoint.tensors import BLOCK_BYTES, Checkpoint, Texts
from lmcast.exporter.engine.inspect import inspect
from lmcast.exporter.weights.values import values
from lmcast.graphs import Definition, fill, load
from lmcast.graphs.layouts.stored import Stored
from lmcast.graphs.matformer import sliced
from lmcast.graphs.weights import sources
from lmcast.graphs.weights.bind import packed as as_packed
from lmcast.graphs.weights.elements import E4M3
from lmcast.graphs.weights.quantized import Block, Scheme
from lmcast.graphs.weights.sources import (
    RUN_VALUES,
    Joined,
    Packed,
    Source,
    Stack,
    View,
    load_into,
    shape_of,
)

OPTIONS: dict[str, Any] = {"parity": False, "tokenizer": False}
SCALE_DTYPES = [torch.float32, torch.bfloat16, torch.float8_e8m0fnu]

SHAPES = [(37, 50), (48, 40), (1, 1), (300, 3), (3, 37, 50)]
BLOCKS = [(16, 16), RAGGED, (1, 32), (128, 128)]


def layout(name: str, block: Block | None, dtype: torch.dtype = torch.float32) -> Stored:
    return Stored(Scheme(E4M3, block or (0, 0), dtype), name, f"{name}_scale_inv")


def product(
    weight: Tensor, scales: Tensor, block: Block | None, begin: int = 0, end: int | None = None
) -> Tensor:
    """Return what rows of a weight mean, by its layout."""
    stored = {"w": weight, "w_scale_inv": scales}

    def read(name: str, begin: int, end: int | None) -> Tensor:
        return stored[name][begin:end] if stored[name].dim() else stored[name]

    return layout("w", block, scales.dtype).values(read, begin, end or len(weight))


@pytest.mark.parametrize("dtype", SCALE_DTYPES, ids=str)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_rounded_once(shape, block, dtype):
    weight, scales = codes(*shape), factors(grid(shape, block), dtype)
    got = product(weight, scales, block)
    assert torch.equal(got, worked_out(weight, scales, block))
    assert not got.isnan().any()
    theirs = import_module("transformers.integrations.finegrained_fp8")
    wanted = theirs._dequantize_fp8_weight(weight, scales, list(block), torch.float32)
    assert torch.equal(got, wanted)
    ends = range(0, shape[0], 7)
    runs = [product(weight, scales, block, i, min(i + 7, shape[0])) for i in ends]
    assert torch.equal(torch.cat(runs), got)


@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 1)], ids=str)
def test_one_scale_for_a_tensor_or_for_each_expert(shape):
    weight, scales = codes(3, 6, 5), factors(shape, torch.bfloat16)
    assert torch.equal(product(weight, scales, None), worked_out(weight, scales, None))
    part = product(weight, scales, None, 1)
    assert torch.equal(part, worked_out(weight, scales, None)[1:])


# Sources over FP8 tensors

ALL = slice(None)
STORED = {"a": (60, 50), "b": (60, 50), "stack": (4, 60, 50)}
FORMS: dict[str, Source] = {
    "whole": View("a"),
    "rows": View("a", (slice(7, 41),)),
    "every second row": View("a", (slice(1, None, 2),)),
    "columns": View("a", (ALL, slice(13, 37))),
    "transposed": View("a", transposed=True),
    "runs": View("a", (ALL, slice(3, None)), runs=5),
    "runs, transposed": View("a", (ALL, slice(0, 5)), transposed=True, runs=5),
    "stack": View("stack"),
    "half of a stack": View("stack", (ALL, slice(30, None)), transposed=True),
    "some of a stack": View("stack", (slice(1, 4, 2), slice(0, None, 2))),
    "each": Stack((View("a"), View("b"))),
    "behind each other": Joined((View("a", (slice(9),)), View("b", (slice(9),))), 0),
    "side by side": Joined((View("a", (ALL, slice(9))), View("b", (ALL, slice(9, 18)))), 1),
}


def checkpoint_of(folder: Path, tensors: dict[str, Tensor]) -> Checkpoint:
    file = folder / "model.safetensors"
    save_file(tensors, file)
    return Checkpoint(folder, {}, read_header(file, file), Texts())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [RAGGED, None], ids=str)
def test_every_form_reads_the_products(form, block, tmp_path, monkeypatch):
    weights = {name: codes(*shape, seed=i) for i, (name, shape) in enumerate(STORED.items())}
    scales = {
        f"{name}_scale_inv": factors(grid(shape, block) if block else (), torch.float32, seed=i)
        for i, (name, shape) in enumerate(STORED.items())
    }
    plain = {n: worked_out(w, scales[f"{n}_scale_inv"], block) for n, w in weights.items()}
    shapes = {name: tuple(t.shape) for name, t in (weights | scales).items()}
    source = as_packed("w", FORMS[form], {name: layout(name, block) for name in STORED})
    wanted = torch.empty(shape_of(FORMS[form], shapes))
    load_into(wanted, FORMS[form], plain.__getitem__)
    assert shape_of(source, shapes) == wanted.shape
    found = checkpoint_of(tmp_path, weights | scales)
    for limit in (1, 500, BLOCK_BYTES):  # of a block: many, few or one for a tensor
        monkeypatch.setattr(sources, "RUN_VALUES", limit)
        monkeypatch.setattr("lmcast.exporter.weights.values.BLOCK_BYTES", limit)
        loaded = torch.empty_like(wanted)
        load_into(loaded, source, (weights | scales).__getitem__)
        assert torch.equal(loaded, wanted)
        streamed = torch.cat([block.flatten() for block in values(found, source)])
        assert torch.equal(streamed.reshape(wanted.shape), wanted)


def test_memory_holds_a_block(tmp_path):
    tensors = {"a": codes(2100, 4096), "a_scale_inv": factors((17, 32), torch.float32)}
    seen = []

    class Counted(Stored):
        def values(self, *given: Any) -> Tensor:
            rows = super().values(*given)
            seen.append(rows.numel())
            return rows

    source = Packed(View("a"), Counted(Scheme(E4M3, (128, 128), torch.float32), *tensors))
    sizes = [block.nbytes for block in values(checkpoint_of(tmp_path, tensors), source)]
    assert max(sizes) <= BLOCK_BYTES
    assert sum(sizes) == 4 * 2100 * 4096
    seen.clear()
    out = torch.empty(2100, 4096, dtype=torch.bfloat16)
    load_into(out, source, tensors.__getitem__)
    assert max(seen) <= RUN_VALUES
    assert sum(seen) == out.numel()


# Whole models


# Case, quantization_config, how scales are stored.
MODELS: list[tuple[str, dict[str, Any], torch.dtype]] = [
    ("qwen3/plain", blocks((16, 16)), torch.float32),
    ("qwen3/plain", blocks(RAGGED), torch.bfloat16),
    (
        "glm4_moe/GLM-4.5-Air",
        blocks(RAGGED, modules_to_not_convert=["lm_head"]),
        torch.float32,
    ),
    (
        "minimax_m2/MiniMax-M2",
        blocks(RAGGED, fmt="float8_e4m3fn", modules_to_not_convert=["gate", "lm_head"]),
        torch.float32,
    ),
    (
        "mimo_v2_flash/MiMo-V2-Flash",
        blocks(RAGGED, ignored_layers=["model.layers.0.self_attn.o_proj"]),
        torch.bfloat16,
    ),
    ("deepseek_v3/DeepSeek-V3", blocks(RAGGED), torch.float32),
    ("deepseek_v32/DeepSeek-V3.2", blocks(RAGGED, scale_fmt="ue8m0"), torch.float8_e8m0fnu),
    ("glm_moe_dsa/GLM-5", blocks((16, 16), scale_fmt="ue8m0"), torch.float32),
    ("kimi_k2/Kimi-K2", blocks(RAGGED), torch.float32),
    ("mistral4/Mistral-Small-4 (text)", {**STATIC, "dequantize": False}, torch.bfloat16),
    ("mistral3/ministral3, tied", STATIC, torch.bfloat16),
]


@pytest.mark.parametrize(("name", "settings", "dtype"), MODELS)
def test_a_model_is_that_of_its_numbers(name, settings, dtype, checkpoint):
    config, plain = read(checkpoint(name))
    size = settings["weight_block_size"]
    packed, exact = in_fp8(plain, size and tuple(size), dtype)
    if settings["activation_scheme"] == "static":
        packed = with_activations(packed)
    assert {t.dtype for t in packed.values()} >= {torch.float8_e4m3fn, dtype}
    quantized = config | {CONFIG: settings}
    assert torch.equal(logits(quantized, packed), logits(config, exact))
    assert not torch.equal(logits(config, exact), logits(config, plain))
    found = defined(quantized, packed)
    scales = {name for name in packed if name.endswith("_scale_inv")}
    numbers = {name.removesuffix("_scale_inv") for name in scales}
    assert found.binding.layouts.keys() == scales | numbers
    activations = sorted(n for n in packed if n.endswith("activation_scale"))
    assert [n for n in found.binding.ignored if n in activations] == activations


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("minimax_m2/MiniMax-M2", blocks(RAGGED)),
        ("deepseek_v3/DeepSeek-V3", blocks(RAGGED)),
        ("mistral4/Mistral-Small-4 (text)", STATIC),
    ],
)
def test_an_engine_is_that_of_the_numbers(name, settings, checkpoint, tmp_path):
    config, plain = read(checkpoint(name))
    size = settings["weight_block_size"]
    packed, exact = in_fp8(plain, size and tuple(size))
    quantized = config | {CONFIG: settings}
    made = save(tmp_path / "packed", quantized, packed), save(tmp_path / "plain", config, exact)
    engines = [
        export(directory, tmp_path / f"{directory.name} engine", "cpu", weights=mode, **OPTIONS)
        for directory, mode in zip(made, (None, "copy"), strict=True)
    ]
    assert [engine.linked for engine in engines] == [False, False]
    got, wanted = (engine.logits(prompt()) for engine in engines)
    np.testing.assert_array_equal(got, wanted)
    with torch.no_grad():
        assert torch.equal(load(made[0])(prompt()), load(made[1])(prompt()))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_engine_of_fp8_is_proven(dtype, checkpoint, tmp_path):
    config, plain = read(checkpoint("qwen3/plain"))
    packed, _ = in_fp8(plain, RAGGED)
    made = save(tmp_path / "made", config | {CONFIG: blocks(RAGGED)}, packed)
    engine = export(made, tmp_path / "engine", dtype=dtype, tokenizer=False)
    report = json.loads((engine.directory / "parity.json").read_text())
    assert report["passed"]


def test_inspect_counts_fp8(checkpoint, tmp_path):
    config, plain = read(checkpoint("qwen3/plain"))
    packed, _ = in_fp8(plain, RAGGED, torch.bfloat16)
    made = save(tmp_path / "made", config | {CONFIG: blocks(RAGGED)}, packed)
    parts = [t for t in packed.values() if t.dtype != torch.float32]
    found = inspect(made).weights
    assert found["fp8"] == {"tensors": 42, "bytes": sum(t.nbytes for t in parts)}  # with scales
    assert found.keys() == {"fp8", "float32"}


def test_activation_scales_are_named_as_left_out(checkpoint, tmp_path):
    config, plain = read(checkpoint("qwen3/plain"))
    packed = with_activations(in_fp8(plain, None)[0])
    made = save(tmp_path / "made", config | {CONFIG: STATIC}, packed)
    assert inspect(made).left_out == "21 tensors: 21 of activation_scale"


@torch.no_grad()
def test_a_slice_of_fp8_is_that_of_the_numbers(checkpoint):
    config, plain = read(checkpoint("gemma3n_text/several shared, sparse"))
    # Also what holds the parts of all layers side by side.
    packed, exact = in_fp8(plain, RAGGED, also=("per_layer",))
    given = {"skip": [4, 5], "intermediate_size": 20}

    def part(found: Definition, tensors: dict[str, Tensor]) -> Tensor:
        found = sliced(found, given)
        fill(found, found.model, tensors.__getitem__, torch.float32)
        return found.model(prompt())

    quantized = defined(config | {CONFIG: blocks(RAGGED)}, packed)
    assert torch.equal(part(quantized, packed), part(defined(config, exact), exact))
