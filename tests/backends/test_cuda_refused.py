"""What target cuda refuses, and what its engines say where there is no GPU."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from files.quantized import write
from safetensors.torch import load_file

from lmcast.exporter import export, load
from lmcast.exporter.backends.cuda import DeviceError, require_gpu
from lmcast.exporter.backends.cuda_provider import kernels
from lmcast.exporter.backends.tensorrt.request import Sizes
from lmcast.exporter.engine.manifest import EngineError
from lmcast.plugins.errors import InputError

OPTIONS: dict[str, Any] = {"parity": False, "tokenizer": False, "dtype": "bfloat16"}

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "fp32, of the checkpoint": (
        "llama/plain", {"dtype": None},
        "dtype float32: ONNX Runtime's attention on GPUs takes 16 bits alone; use --dtype bfloat16",
    ),
    "fp32, asked for": ("llama/plain", {"dtype": "float32"}, "dtype float32"),
    "a B200": (
        "llama/plain", {"sms": (90, 100)},
        "SM100: ONNX Runtime's package has no kernels for such GPUs; accepted: 80, 86, 89, 90, 120;"
        " there runs --target tensorrt, built on such a GPU",
    ),
    "a B300": ("llama/plain", {"sms": (103,)}, "SM103: .*; there runs --target tensorrt"),
    "an Orin": ("llama/plain", {"sms": (87,)}, "SM87: .* accepted: 80, 86, 89, 90, 120$"),
    # These tests are run so themselves.
    "kernels that are interpreted": ("llama/plain", {}, "TRITON_INTERPRET is set, .*: unset it"),
    "sizes of a plan": (
        "llama/plain", {"sizes": Sizes(max_context=64)},
        "target cuda does not read --max-context; leave that out, or give --target tensorrt-rtx",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, checkpoint, tmp_path: Path):
    case, given, words = REFUSED[name]
    with pytest.raises(InputError, match=words):
        export(checkpoint(case), tmp_path / "engine", "cuda", **(OPTIONS | given))
    assert not list(tmp_path.iterdir())


def test_what_would_be_laid_out_anew_in_every_call_is_not_linked(checkpoint, tmp_path: Path):
    source = checkpoint("qwen3_moe/plain")
    tensors = load_file(source / "model.safetensors")
    short = write(
        tmp_path / "short",
        json.loads((source / "config.json").read_text()),
        {name: tensor.bfloat16() for name, tensor in tensors.items()},
    )
    words = (
        "is not laid out as the graph needs it, which would be done in every call, so weights in"
    )
    with pytest.raises(InputError, match=words):
        export(short, tmp_path / "engine", "cuda", weights="link", **OPTIONS)


def test_all_sms_by_default():
    assert kernels.choose_sms(()) == (80, 86, 89, 90, 120)
    assert kernels.choose_sms((120, 80)) == (120, 80)


def test_without_a_gpu(checkpoint, tmp_path: Path, lmcast):
    """Parity is left out with a warning; what would run the engine says what works instead."""
    try:
        require_gpu()
        pytest.skip("a GPU is here")
    except DeviceError:
        pass
    source = checkpoint("llama/biases, tied")  # whose graph has no kernel of ours
    arguments = ("export", source, "-o", tmp_path / "e", "--target", "cuda", "--dtype", "float16")
    status, _, told = lmcast(*arguments, "--no-tokenizer", "--sm", "80")
    assert status == 0
    assert re.search("parity is not proven: no NVIDIA GPU is here.*; run `lmcast parity` on", told)
    about = load(tmp_path / "e").manifest.about
    assert about.sms == (80,) and about.graph.weights == "copy" and about.dtype == "float16"
    for command in (
        ("generate", "--ids", "1 2"),
        ("bench", "--prompt-tokens", 4, "--new-tokens", 4),
    ):
        status, _, told = lmcast(command[0], tmp_path / "e", *command[1:])
        assert status == 2 and told.count("\n") == 1, told
        assert re.search("no NVIDIA GPU is here.*; without one `lmcast inspect`, `verify`", told)
    with pytest.raises(DeviceError, match="no NVIDIA GPU is here"):
        load(tmp_path / "e").logits([[1, 2]])
    with pytest.raises(EngineError, match="target cuda does not read --portable"):
        load(tmp_path / "e", portable=True)
    status, told, _ = lmcast("inspect", tmp_path / "e")
    assert status == 0 and "target        cuda for SM80, self-contained" in told
    assert lmcast("verify", tmp_path / "e")[0] == 0
