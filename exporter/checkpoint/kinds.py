"""What a directory or a file is that is no checkpoint, or no engine: what its names tell."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ORIGINAL = (
    "give the directory of the model that it was made from, with config.json and *.safetensors"
)
CHECKPOINT = "a checkpoint"


@dataclass(frozen=True)
class Kind:
    """One kind of directory or file.

    names: patterns of file names in it, of which one tells; of a file, its own.
    instead: what to give where a checkpoint is wanted.
    whole: whether it is this kind even where there are safetensors beside.
    """

    what: str
    names: tuple[str, ...]
    instead: str = ORIGINAL
    whole: bool = False


# What lmcast writes.
OURS = (
    Kind("an lmcast engine", (r"engine\.json",), "`lmcast generate` runs it; to export again, give"
         " the checkpoint that it was made from"),
    Kind("a recipe of lmcast calibrate", (r"recipe\.json",), "give its checkpoint, and this as"
         " --recipe"),
)  # fmt: skip
# The first that fits.
KINDS = (
    Kind("a diffusers pipeline", ("model_index.json",), "lmcast casts language models: give"
         " the directory of one, such as a text_encoder/ of an architecture in the README",
         whole=True),
    Kind("a TensorRT-LLM checkpoint", (r"rank\d+\.safetensors",), whole=True),
    Kind("a TensorRT-LLM engine", (r"rank\d+\.engine",)),
    Kind("an MLC model", ("mlc-chat-config.json", "ndarray-cache.json", "tensor-cache.json")),
    Kind("an ONNX Runtime GenAI model", ("genai_config.json",)),
    Kind("an OpenVINO model", (r"openvino_.*\.xml",)),
    Kind("a Core ML model", (r".*\.(mlpackage|mlmodelc|mlmodel)",)),
    Kind("an ExecuTorch program", (r".*\.pte",)),
    Kind("a LiteRT model", (r".*\.(tflite|litertlm|task)",)),
    Kind("a model in MLX's older format", (r"weights(\.\d+)?\.npz",)),
    Kind("a CTranslate2 model", ("shared_vocabulary.json", r"vocabulary\.(json|txt)")),
    Kind("an ONNX model", (r".*\.onnx", "onnx")),
    Kind("TensorFlow or Flax weights", (r"tf_model\.h5", r"flax_model\.msgpack",
         "saved_model.pb")),
    Kind("a TensorRT plan", (r".*\.(engine|plan|trt)",)),
)  # fmt: skip
PICKLED = Kind(
    "a PyTorch file",
    (r".*\.(bin|pt|pth|ckpt|pkl)",),
    "pickles can run code and are not read: give the directory of a model that has *.safetensors",
)
TENSORS = Kind(
    "a file of tensors",
    (r".*\.safetensors",),
    "give its directory, which has config.json too",
)


def foreign(names: Sequence[str]) -> Kind | None:
    """Return the kind of a directory with these names; None where it may be a checkpoint."""
    read = (".safetensors", ".safetensors.index.json", ".gguf")
    tensors = any(name.endswith(read) or name.startswith("pytorch_model") for name in names)
    for kind in (*OURS, *KINDS):
        if (kind.whole or not tensors) and any(fits(kind, name) for name in names):
            return kind
    return None


def foreign_file(name: str) -> Kind | None:
    """Return the kind of a file that is no checkpoint; None where its name does not tell."""
    return next((kind for kind in (*KINDS, PICKLED, TENSORS) if fits(kind, name)), None)


def fits(kind: Kind, name: str) -> bool:
    """Say whether one name tells of a kind."""
    return any(re.fullmatch(pattern, name, re.IGNORECASE) for pattern in kind.names)


def what_it_is(path: Path) -> str | None:
    """Say what a path is that is no engine; None where its names do not tell."""
    try:
        names = os.listdir(path) if path.is_dir() else [path.name]
    except OSError:
        return None
    kind = foreign(names) if path.is_dir() else foreign_file(path.name)
    if kind is not None:
        return kind.what
    checkpoint = {"config.json", "params.json"} & {*names} or any(
        name.lower().endswith(".gguf") for name in names
    )
    return CHECKPOINT if checkpoint else None
