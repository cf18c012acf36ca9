"""What is given in place of a checkpoint or an engine is named as what it is, with what to do."""

from pathlib import Path

import pytest
from tiny.llama import WEIGHTS, tiny_llama

from lmcast.exporter import export
from lmcast.exporter.checkpoint import CheckpointError, open_checkpoint
from lmcast.exporter.engine.manifest import EngineError, read_manifest

# What lies in a directory -> what it is.
DIRECTORIES: dict[str, tuple[list[str], str]] = {
    "diffusers": (["model_index.json", "unet/config.json"], "a diffusers pipeline"),
    "diffusers, one file too": (["model_index.json", "all.safetensors"], "a diffusers pipeline"),
    "TensorRT-LLM": (["config.json", "rank0.engine"], "a TensorRT-LLM engine"),
    "TensorRT-LLM, to build": (["config.json", "rank0.safetensors"], "a TensorRT-LLM checkpoint"),
    "ONNX": (["model.onnx", "model.onnx.data"], "an ONNX model"),
    "ONNX of optimum": (["config.json", "tokenizer.json", "model.onnx"], "an ONNX model"),
    "ONNX in a folder": (["config.json", "onnx/model_q4.onnx"], "an ONNX model"),
    "ONNX Runtime GenAI": (["genai_config.json", "model.onnx"], "an ONNX Runtime GenAI model"),
    "OpenVINO": (
        ["config.json", "openvino_model.xml", "openvino_model.bin"], "an OpenVINO model",
    ),
    "Core ML": (["model.mlpackage/Manifest.json"], "a Core ML model"),
    "MLX, older": (["config.json", "weights.npz"], "a model in MLX's older format"),
    "MLC": (["mlc-chat-config.json", "params_shard_0.bin"], "an MLC model"),
    "ExecuTorch": (["model.pte"], "an ExecuTorch program"),
    "LiteRT": (["model.litertlm"], "a LiteRT model"),
    "CTranslate2": (["config.json", "model.bin", "vocabulary.json"], "a CTranslate2 model"),
    "TensorFlow": (["config.json", "tf_model.h5"], "TensorFlow or Flax weights"),
    "a plan": (["llm.plan"], "a TensorRT plan"),
}  # fmt: skip
FILES = {
    "model.onnx": "an ONNX model",
    "model.plan": "a TensorRT plan",
    "model.safetensors": "a file of tensors",
    "pytorch_model.bin": "a PyTorch file",
    "consolidated.00.pth": "a PyTorch file",
    "openvino_model.xml": "an OpenVINO model",
    "model.mlmodel": "a Core ML model",
}
# These hold what others do besides, and are read, or refused for another reason.
NAMED_AS_BEFORE = {
    "with ONNX beside": (["config.json", "model.safetensors", "onnx/model.onnx"], None),
    "older weights of all kinds": (
        ["config.json", "pytorch_model.bin", "tf_model.h5", "model.onnx"], "pickle only",
    ),
    "an engine of others": (["config.json", "engine.json", "pytorch_model.bin"], "pickle only"),
    "weights of all kinds": (
        ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5",
         "flax_model.msgpack", "model.onnx", "openvino_model.xml", "original/consolidated.00.pth",
         "rank0.engine", "consolidated.safetensors", "vocabulary.txt", "recipe.json",
         "engine.json"], None,
    ),
    "a GGUF file with ONNX beside": (["model.gguf", "model.onnx"], "model.gguf"),
}  # fmt: skip


def fill(folder: Path, names: list[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return folder


@pytest.mark.parametrize("name", DIRECTORIES)
def test_directories(name: str, tmp_path: Path):
    names, what = DIRECTORIES[name]
    fill(tmp_path, names)
    with pytest.raises(CheckpointError, match=f": is {what}, not a checkpoint; .*give the direc"):
        open_checkpoint(tmp_path)
    with pytest.raises(EngineError, match=f"is {what}: it is no lmcast engine"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, tmp_path: Path):
    (path := tmp_path / name).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=f": is {FILES[name]}, not a checkpoint; .*give "):
        open_checkpoint(path)
    with pytest.raises(EngineError, match=f"is {FILES[name]}: it is no lmcast engine"):
        read_manifest(path)


@pytest.mark.parametrize("name", NAMED_AS_BEFORE)
def test_what_else_lies_beside_a_checkpoint_tells_nothing(name: str, tmp_path: Path):
    names, message = NAMED_AS_BEFORE[name]
    fill(tmp_path, [n for n in names if n != WEIGHTS])
    if message is None:
        tiny_llama(tmp_path)
        assert open_checkpoint(tmp_path).tensors
    else:
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path)


def test_an_engine_and_a_checkpoint_in_each_others_place(tmp_path: Path, lmcast):
    checkpoint, engine, recipe = (tmp_path / name for name in ("checkpoint", "engine", "recipe"))
    tiny_llama(checkpoint)
    export(checkpoint, engine, weights="copy", parity=False)
    fill(recipe, ["weights/0.safetensors"])
    fields = {"version": 1, "source": [], "weights": {}, "inputs": {}, "caches": {}, "report": {}}
    (recipe / "recipe.json").write_text(str(fields).replace("'", '"'))
    for given, what in ((engine, "an lmcast engine"), (recipe, "a recipe of lmcast calibrate")):
        status, _, error = lmcast("export", given, "-o", tmp_path / "new")
        assert status == 2
        assert f"{given}: is {what}, not a checkpoint; " in error
    for command in (["generate", "hi"], ["verify"], ["parity", "--against", checkpoint]):
        for given, what in ((checkpoint, "a checkpoint"), (recipe, "a recipe of lmcast calib")):
            status, _, error = lmcast(command[0], given, *command[1:])
            assert (status, error.count("\n")) == (2, 1)
            assert f"{given} is {what}" in error
            assert "`lmcast export" in error
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "engine", "recipe"}
