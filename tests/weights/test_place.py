"""The safetensors files of an engine: where their data begins."""

import json
from pathlib import Path

import pytest
from tiny.llama import tiny_llama

from lmcast.exporter import export
from lmcast.exporter.weights.place import Entry, aligned, ordered


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_data_begins_at_a_cache_line(dtype: str, tmp_path: Path):
    """Mapped files are read where they lie: kernels load aligned vectors of up to 64 bytes."""
    tiny_llama(tmp_path / "checkpoint")
    options = {"weights": "copy", "parity": False}
    engine = export(tmp_path / "checkpoint", tmp_path / "engine", "onnx", dtype, **options)
    files = sorted(engine.directory.glob("weights/*.safetensors"))
    assert files
    for file in files:
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        assert (8 + length) % 64 == 0
        written = json.loads(data[8 : 8 + length])
        assert len(json.dumps(written, separators=(",", ":"))) < length, "padded, not so by chance"


def test_what_is_multiplied_with_one_input_lies_side_by_side():
    """Codes of several weights, then their scales, then zeros; biases of theirs between none."""
    one = ("BF16", 1)
    kinds = {"plain": ("BF16", 2), "codes": ("U8", 1), "scales": one, "zeros": ("U8", 1)}
    entries = []
    for weight in ("q", "k"):
        for part, (dtype, axes) in (kinds | {"bias": one}).items():
            entries.append(Entry(f"{weight}.{part}", dtype, (4,) * axes, 4, lambda: iter(())))
    names = [entry.name for entry in aligned(ordered(entries))]
    wanted = ("plain", "scales", "bias", "codes", "zeros")
    assert names == [f"{weight}.{part}" for part in wanted for weight in ("q", "k")]
