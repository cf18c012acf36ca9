"""GGUF files that are damaged, or hold what lmcast does not read: one line, at once."""

import os
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from files.gguf import HIDDEN, stored, tiny_gguf, values, write_gguf

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.gguf import open_gguf


def patch(at: int, data: bytes):
    return lambda raw: raw[:at] + data + raw[at + len(data) :]


def replace(old: bytes, new: bytes):
    def change(raw: bytes) -> bytes:
        assert old in raw
        return raw.replace(old, new, 1)

    return change


def info(name: bytes, shift: int, data: bytes):
    """Overwrite what follows a tensor's name in its entry: axes (4 bytes), shape, type, offset."""

    def change(raw: bytes) -> bytes:
        at = raw.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + shift
        return raw[:at] + data + raw[at + len(data) :]

    return change


NORM, UP = b"output_norm.weight", b"blk.0.ffn_up.weight"
HUGE = struct.pack("<Q", 1 << 60)
U32, U64 = (lambda n: struct.pack("<I", n)), (lambda n: struct.pack("<Q", n))
DAMAGED = [
    ("empty", lambda raw: b"", "ends inside its first bytes"),
    ("short", lambda raw: raw[:17], "ends inside its counts"),
    ("garbage", lambda raw: bytes(range(256)), "not a GGUF file"),
    ("zip", patch(0, b"PK\3\4"), "not a GGUF file"),
    ("big-endian", patch(4, b"\0\0\0\3"), "big-endian"),
    ("version 1", patch(4, U32(1)), "GGUF version 1"),
    ("version 99", patch(4, U32(99)), "GGUF version 99"),
    ("tensor count", patch(8, HUGE), "tensors; at most"),
    ("key count", patch(16, HUGE), "keys; at most"),
    ("key length", patch(24, HUGE), "ends inside metadata key 0"),
    ("key not UTF-8", patch(32, b"\xff"), "not UTF-8"),
    ("value type", patch(24 + 8 + 20, U32(77)), "unknown value type 77"),
    ("array length", info(b"x.list", 8, HUGE), "claims 1152921504606846976 elements"),
    ("array of arrays", info(b"x.list", 4, U32(9)), "array of arrays"),
    ("cut in metadata", lambda raw: raw[:200], "ends inside"),
    ("cut in tensors", lambda raw: raw[:-64], "truncated"),
    ("key twice", replace(b"llama.context_length", b"llama.block_count\0\0\0"), "missing"),
    ("name twice", replace(b"blk.1.ffn_up", b"blk.0.ffn_up"), "is there twice"),
    ("name unknown", replace(b"blk.1.ffn_up", b"blk.1.ffn_ap"), "none of llama's"),
    ("layer number", replace(b"blk.1.ffn_up", b"blk.x.ffn_up"), "none of llama's"),
    ("no axes", info(NORM, 0, U32(0)), "has 0 axes"),
    ("2^32 axes", info(NORM, 0, U32(0xFFFFFFFF)), "axes; accepted"),
    ("no rows", info(UP, 12, U64(0)), "rows of F16"),
    ("huge rows", info(UP, 12, HUGE), "truncated"),
    ("odd block", info(UP, 4, U64(100) + U64(8) + U32(8)), "in blocks of 32"),
    ("type Q8_1", info(UP, 20, U32(9)), "is of type Q8_1"),
    ("type unknown", info(UP, 20, U32(250)), "number 250"),
    ("quantized norm", info(NORM, 12, U32(8)), "one axis and type Q8_0"),
    ("offset beyond", info(UP, 24, U64(1 << 59)), "truncated"),
    ("offset odd", info(UP, 24, U64(1)), "not a multiple"),
    ("overlap", info(UP, 24, U64(0)), "overlaps"),
]


@pytest.mark.parametrize(
    ("change", "message"), [c[1:] for c in DAMAGED], ids=[c[0] for c in DAMAGED]
)
def test_damaged_files_are_refused(tmp_path: Path, change, message: str) -> None:
    path = tiny_gguf(tmp_path / "a.gguf", general={"x.list": [1, 2]})
    path.write_bytes(change(path.read_bytes()))
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=message) as error:
        open_gguf(path)
    assert time.monotonic() - start < 5
    assert "a.gguf" in str(error.value)
    assert "\n" not in str(error.value)


UNSUPPORTED = [
    ("gpt2", {}, {}, "general.architecture is 'gpt2'"),
    ("llama", {}, {"split.count": 3}, "one of the 3 parts of a split GGUF, but is not named so"),
    ("llama", {}, {"split.count": "3"}, "accepted: 1 to 99999 parts"),
    ("llama", {}, {"general.alignment": 48}, "power of two"),
    ("llama", {"block_count": None}, {}, "llama.block_count is missing"),
    ("llama", {"block_count": 1 << 31}, {}, "tensors; it is damaged"),
    ("llama", {"block_count": 0}, {}, "only a positive integer"),
    ("llama", {"attention.head_count_kv": [2, 1]}, {}, "one positive integer"),
    ("llama", {"attention.layer_norm_rms_epsilon": float("nan")}, {}, "positive finite"),
    ("llama", {"attention.key_length": None, "attention.head_count": 3}, {}, "not a multiple"),
    ("llama", {"rope.dimension_count": 32}, {}, "only the head's 64"),
    ("llama", {"attention.value_length": 32}, {}, "only the head's 64"),
    ("llama", {"vocab_size": 41}, {}, "disagrees with the 40 rows"),
    ("llama", {"expert_count": 8}, {}, "llama.expert_count = 8, which nothing reads"),
    ("llama", {"rope.scaling.type": "longrope"}, {}, "accepted: none, linear, yarn"),
    ("qwen3", {"rope.scaling.type": "yarn"}, {}, "rope.scaling.factor is missing"),
    ("gemma3", {"attention.sliding_window": None}, {}, "sliding_window is missing"),
]


@pytest.mark.parametrize(("arch", "metadata", "general", "message"), UNSUPPORTED)
def test_unsupported_models_are_refused(
    tmp_path: Path, arch: str, metadata: dict, general: dict, message: str
) -> None:
    path = tmp_path / "a.gguf"
    known = arch if arch in ("qwen3", "gemma3") else "llama"
    tensors = {name: stored(array, "F16") for name, array in values(known).items()}
    write_gguf(path, arch, tensors, metadata, general)
    with pytest.raises(CheckpointError, match=message):
        open_gguf(path)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"rope_freqs__weight": (np.full(32, 2, "f4"), "F32")}, "Llama 3.1's formula"),
        ({"rope_freqs__weight": (np.ones(16, "f4"), "F32")}, r"accepted: F32 \[32\]"),
        ({"blk__0__ffn_gate_exps__weight": (np.ones((2, 32), "f4"), "F32")}, "none of llama's"),
        ({"blk__0__attn_q__weight": (np.ones((100, HIDDEN), "f4"), "F32")}, "not a multiple"),
        ({"token_embd__weight": (np.ones(HIDDEN, "f4"), "F32")}, "token_embd.weight"),
    ],
)
def test_unsupported_tensors_are_refused(tmp_path: Path, extra: dict, message: str) -> None:
    path = tiny_gguf(tmp_path / "a.gguf", "llama", "F16", **extra)
    with pytest.raises(CheckpointError, match=message):
        open_gguf(path)


def test_the_package_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"pip install 'lmcast\[gguf\]'"):
        open_gguf(tmp_path / "a.gguf")


def test_a_fifo_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.gguf")
    with pytest.raises(CheckpointError, match="FIFO"):
        open_gguf(tmp_path / "a.gguf")
