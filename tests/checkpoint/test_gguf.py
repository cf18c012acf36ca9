"""GGUF: weights and config as Hugging Face has them."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from files.gguf import (
    HEAD_DIM,
    HIDDEN,
    LAYERS,
    VOCAB,
    random_blocks,
    stored,
    tiny_gguf,
    values,
    write_gguf,
)
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, quants
from tiny import defined

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.gguf import open_gguf
from lmcast.exporter.checkpoint.tensors import read_rows
from lmcast.graphs.layouts.ggml import KINDS

QUANTIZED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
# Kinds that the package only names: of intermediate results, whole numbers, and too new.
UNDECODED = ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64", "Q1_0")
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DOWN = "model.layers.0.mlp.down_proj.weight"
Q = "model.layers.0.self_attn.q_proj.weight"


def half(data: bytes) -> np.float32:
    return np.float32(np.frombuffer(data, "<f2")[0])


def k_scales(packed: bytes) -> tuple[list[int], list[int]]:
    """The eight 6-bit scales and minima of a Q4_K or Q5_K block, from their 12 bytes."""
    scales = [b & 63 for b in packed[:4]]
    minima = [b & 63 for b in packed[4:8]]
    for i in range(4):
        scales.append(packed[8 + i] & 15 | packed[i] >> 6 << 4)
        minima.append(packed[8 + i] >> 4 | packed[4 + i] >> 6 << 4)
    return scales, minima


def five_bits(low: bytes, high: bytes, i: int) -> int:
    nibble = low[i % 16] >> (0 if i < 16 else 4) & 15
    return nibble | (int.from_bytes(high, "little") >> i & 1) << 4


def block_values(kind: str, b: bytes) -> list[np.float32]:
    """One block by the definition of its format, value by value in float32."""
    d, f = half(b[:2]), np.float32
    if kind == "Q8_0":
        return [d * f(q) for q in np.frombuffer(b[2:], "i1")]
    if kind == "Q4_0":
        return [d * f((b[2 + i % 16] >> (0 if i < 16 else 4) & 15) - 8) for i in range(32)]
    if kind == "Q4_1":
        m = half(b[2:4])
        return [d * f(b[4 + i % 16] >> (0 if i < 16 else 4) & 15) + m for i in range(32)]
    if kind == "Q5_0":
        return [d * f(five_bits(b[6:], b[2:6], i) - 16) for i in range(32)]
    if kind == "Q5_1":
        m = half(b[2:4])
        return [d * f(five_bits(b[8:], b[4:8], i)) + m for i in range(32)]
    if kind == "Q6_K":
        low, high, scales, d = b[:128], b[128:192], np.frombuffer(b[192:208], "i1"), half(b[208:])
        out = []
        for i in range(256):
            part, j = divmod(i, 128)
            nibble = low[part * 64 + j % 64] >> (0 if j < 64 else 4) & 15
            top = high[part * 32 + j % 32] >> (2 * (j // 32)) & 3
            out.append(d * f(scales[i // 16]) * f((nibble | top << 4) - 32))
        return out
    scales_of, minima = k_scales(b[4:16])
    m, quarters = half(b[2:4]), b[16:] if kind == "Q4_K" else b[48:]
    out = []
    for i in range(256):
        group, j = divmod(i, 32)
        q = quarters[group // 2 * 32 + j] >> (4 * (group % 2)) & 15
        if kind == "Q5_K":
            q |= (b[16 + j] >> group & 1) << 4
        out.append(d * f(scales_of[group]) * f(q) - m * f(minima[group]))
    return out


@pytest.mark.parametrize("kind", QUANTIZED)
def test_random_blocks_decode_by_definition(tmp_path: Path, kind: str) -> None:
    raw = random_blocks(kind, HIDDEN, 512)
    path = tiny_gguf(tmp_path / "a.gguf", "qwen3", blk__0__ffn_down__weight=(raw, kind))
    checkpoint = open_gguf(path)
    size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    data = raw.tobytes()
    wanted = [v for at in range(0, 40 * size, size) for v in block_values(kind, data[at:][:size])]
    found = checkpoint.read(DOWN)
    assert found.dtype == torch.float32
    assert found.shape == (HIDDEN, 512)
    assert not checkpoint.tensors[DOWN].linkable
    # Equal bits: the same float32 operations in the same order.
    np.testing.assert_array_equal(found.flatten()[: len(wanted)].numpy(), np.array(wanted))


@pytest.mark.parametrize("kind", GGMLQuantizationType)
def test_every_kind_decodes_as_the_package_does_or_is_refused(
    tmp_path: Path, kind: GGMLQuantizationType
) -> None:
    """Random bytes, NaN among them; in one go, in small blocks, and in a part of the rows."""
    size, length = GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(kind)
    raw = random.integers(0, 256, (HIDDEN, 512 // size * length), np.uint8)
    path = tiny_gguf(tmp_path / "a.gguf", "qwen3", blk__0__ffn_down__weight=(raw, kind.name))
    if kind.name in UNDECODED:
        with pytest.raises(NotImplementedError):
            quants.dequantize(raw, kind)
        with pytest.raises(CheckpointError, match=f"is of type {kind.name}; accepted: F32, F16"):
            open_gguf(path)
        return
    checkpoint = open_gguf(path)
    with np.errstate(all="ignore"):
        wanted = quants.dequantize(raw, kind).view(np.uint32)
    coded = checkpoint.tensors[DOWN].coded
    assert (coded is not None) == (kind.name in KINDS)
    in_codes = []
    if coded is not None:  # what an engine keeps means the same numbers
        assert coded.layout.shape({coded.raw.name: coded.raw.shape}) == (HIDDEN, 512)
        raw_rows = partial(read_rows, coded.raw)
        in_codes = [coded.layout.values(lambda _, *rows: raw_rows(*rows), 0, HIDDEN)]
    for found in (
        checkpoint.read(DOWN),
        torch.cat(list(checkpoint.blocks(DOWN, 4096))),
        torch.cat([checkpoint.rows(DOWN, 0, 7), checkpoint.rows(DOWN, 7, HIDDEN)]),
        *in_codes,
    ):
        plain = PLAIN.get(kind.name)
        assert found.dtype == (plain or torch.float32)
        bits = found.float().numpy().view(np.uint32)
        both_nan = (bits << 1 > 0xFF000000) & (wanted << 1 > 0xFF000000)  # F16 may quieten one
        assert ((bits == wanted) | both_nan).all()


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_types_are_linkable_bytes(tmp_path: Path, kind: str) -> None:
    path = tiny_gguf(tmp_path / "a.gguf", "qwen3", kind)
    checkpoint = open_gguf(path)
    assert checkpoint.config["dtype"] == str(PLAIN[kind]).removeprefix("torch.")
    assert all(tensor.linkable for tensor in checkpoint.tensors.values())
    for ours, theirs in ((DOWN, "blk.0.ffn_down"), (Q, "blk.0.attn_q")):
        array, _ = stored(values("qwen3")[f"{theirs}.weight"], kind)
        entry = checkpoint.tensors[ours]
        data = path.read_bytes()[entry.offset : entry.offset + entry.nbytes]
        assert (entry.dtype, data) == (PLAIN[kind], array.tobytes())
        assert checkpoint.read(ours).view(torch.uint8).numpy().tobytes() == data


def interleave(array: np.ndarray) -> np.ndarray:
    """Rows as llama.cpp wants them, row by row from the definition."""
    out, middle = np.empty_like(array), HEAD_DIM // 2
    for row in range(len(array)):
        head, within = divmod(row, HEAD_DIM)
        out[head * HEAD_DIM + 2 * (within % middle) + within // middle] = array[row]
    return out


@pytest.mark.parametrize("kind", [*PLAIN, "Q8_0", "Q4_1"])
@pytest.mark.parametrize(("theirs", "ours"), [("attn_q", "q_proj"), ("attn_k", "k_proj")])
def test_llama_heads_return_to_halves(tmp_path: Path, kind: str, theirs: str, ours: str) -> None:
    wanted = values("llama")[f"blk.0.{theirs}.weight"]
    bias = wanted[:, 0].copy()
    extra = {
        f"blk__0__{theirs}__weight": stored(interleave(wanted), kind),
        f"blk__0__{theirs}__bias": (interleave(bias), "F32"),
    }
    checkpoint = open_gguf(tiny_gguf(tmp_path / "a.gguf", "llama", kind, **extra))
    name = f"model.layers.0.self_attn.{ours}"
    array, _ = stored(wanted, kind)
    dtype = GGMLQuantizationType[kind]
    found = checkpoint.read(f"{name}.weight")
    assert found.dtype == PLAIN.get(kind, torch.float32)
    np.testing.assert_array_equal(found.float().numpy(), quants.dequantize(array, dtype))
    np.testing.assert_array_equal(checkpoint.read(f"{name}.bias").numpy(), bias)
    assert checkpoint.config["attention_bias"] is True
    assert not checkpoint.tensors[f"{name}.weight"].linkable


@pytest.mark.parametrize("limit", [1, 100_000, 1 << 30])
@pytest.mark.parametrize("name", [DOWN, Q])
def test_blocks_stream_whole_heads(tmp_path: Path, name: str, limit: int) -> None:
    checkpoint = open_gguf(tiny_gguf(tmp_path / "a.gguf", "llama", "Q8_0"))
    blocks = list(checkpoint.blocks(name, limit))
    assert torch.equal(torch.cat(blocks), checkpoint.read(name))
    unit = checkpoint.tensors[name].row_multiple
    assert unit == (HEAD_DIM if name == Q else 1)
    assert all(len(b) % unit == 0 and (len(b) == unit or b.nbytes <= limit) for b in blocks)


def test_gemma_norms_lose_the_one(tmp_path: Path) -> None:
    weights = values("gemma3")
    norms = {n: a + np.float32(1) for n, a in weights.items() if a.ndim == 1}
    extra = {n.replace(".", "__"): (a, "F32") for n, a in norms.items()}
    checkpoint = open_gguf(tiny_gguf(tmp_path / "a.gguf", "gemma3", **extra))
    names = {
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
    }
    pairs = {f"blk.1.{a}.weight": f"model.layers.1.{b}.weight" for a, b in names.items()}
    for theirs, ours in (pairs | {"output_norm.weight": "model.norm.weight"}).items():
        np.testing.assert_array_equal(checkpoint.read(ours).numpy(), norms[theirs] - np.float32(1))
    assert checkpoint.tensors[Q].linkable


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma3"])
def test_transformers_reads_the_same(tmp_path: Path, arch: str) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    head = stored(np.ones((VOCAB, HIDDEN), "f4"), "Q8_0")  # norms and biases are F32
    path = tiny_gguf(tmp_path / "a.gguf", arch, "Q8_0", output__weight=head)
    checkpoint = open_gguf(path)
    config = transformers.AutoConfig.for_model(**checkpoint.config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    oracle = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    assert oracle["tensors"].keys() == checkpoint.tensors.keys()
    for name, tensor in oracle["tensors"].items():
        assert torch.equal(checkpoint.read(name).float(), tensor), name
    for key, value in oracle["config"].items():
        if key in checkpoint.config and not key.startswith("rope"):
            # The file holds 1e-5 in float32; the config has the decimal that was meant.
            wanted = pytest.approx(value, rel=1e-7) if isinstance(value, float) else value
            assert checkpoint.config[key] == wanted, key


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma3"])
def test_a_definition_reads_config_and_tensors_in_full(tmp_path: Path, arch: str) -> None:
    checkpoint = open_gguf(tiny_gguf(tmp_path / "a.gguf", arch))
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    assert defined(checkpoint.config, tensors).binding.ignored == ()


def test_config_of_gemma3(tmp_path: Path) -> None:
    metadata = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "rope.freq_base": 1e6}
    config = dict(open_gguf(tiny_gguf(tmp_path / "a.gguf", "gemma3", metadata=metadata)).config)
    assert config["model_type"] == "gemma3_text"
    assert config["layer_types"] == ["sliding_attention"] * LAYERS
    assert config["sliding_window"] == 16
    assert config["query_pre_attn_scalar"] == HEAD_DIM
    assert config["tie_word_embeddings"] is True
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_parameters"] == {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }


def llama3_factors(factor: float, theta: float) -> np.ndarray:
    """What llama.cpp's converter writes, frequency by frequency (low 1, high 4, original 8192)."""
    factors = []
    for frequency in 1.0 / theta ** (torch.arange(0, HEAD_DIM, 2, dtype=torch.float32) / HEAD_DIM):
        wavelength = 2 * np.pi / frequency.item()
        smooth = (8192 / wavelength - 1) / 3
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(factor)
        else:
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}


@pytest.mark.parametrize(
    ("factors", "metadata", "wanted"),
    [
        (None, {}, {"rope_type": "default"}),
        (np.ones(HEAD_DIM // 2, "f4"), {}, {"rope_type": "default"}),
        (llama3_factors(8, 5e5), {}, {"rope_type": "llama3", "factor": 8.0, **LLAMA3}),
        (llama3_factors(32, 5e5), {}, {"rope_type": "llama3", "factor": 32.0, **LLAMA3}),
        (
            None,
            {**YARN, "rope.scaling.original_context_length": 64},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
    ],
)
def test_rope(tmp_path: Path, factors: np.ndarray | None, metadata: dict, wanted: dict) -> None:
    extra = {} if factors is None else {"rope_freqs__weight": (factors, "F32")}
    metadata = {"rope.freq_base": 5e5, **metadata}
    checkpoint = open_gguf(tiny_gguf(tmp_path / "a.gguf", metadata=metadata, **extra))
    assert checkpoint.config["rope_parameters"] == {"rope_theta": 5e5, **wanted}
    assert "rope_freqs.weight" not in checkpoint.tensors


def test_header_is_what_the_package_reads(tmp_path: Path) -> None:
    tensors = {name: stored(array, "Q5_1") for name, array in values("qwen3").items()}
    path = write_gguf(tmp_path / "a.gguf", "qwen3", tensors, {}, {"x.list": [1, 2]}, alignment=256)
    ours = open_gguf(path).tensors.values()
    theirs = [(t.data_offset, t.n_bytes, tuple(t.shape[::-1])) for t in GGUFReader(path).tensors]
    assert sorted((t.offset, t.nbytes, t.shape) for t in ours) == sorted(theirs)
