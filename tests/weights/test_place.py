"""The safetensors files of an engine: where their data begins."""

import json
from pathlib import Path

import pytest
from tiny.llama import tiny_llama

from lmcast.exporter import export


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
