"""A GGUF file, shown as the Hugging Face checkpoint that it was converted from."""

from pathlib import Path

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.tensors import Checkpoint


def open_gguf(path: Path) -> Checkpoint:
    """Return a GGUF file as a checkpoint with Hugging Face's config keys and tensor names.

    Reads the header only. F32, F16 and BF16 tensors that llama.cpp stores as Hugging Face does are
    linkable; the others are decoded row by row (quantized types to float32). Raises CheckpointError
    for whatever is damaged, unsupported or not understood; a tokenizer that is so is only wanting.
    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise CheckpointError(
            f"{path}: reading GGUF needs the gguf package; pip install 'lmcast[gguf]'"
        ) from None
    # These import the gguf package.
    from lmcast.exporter.checkpoint.gguf.architectures import find
    from lmcast.exporter.checkpoint.gguf.metadata import Metadata
    from lmcast.exporter.checkpoint.gguf.model import Model
    from lmcast.exporter.checkpoint.gguf.parts import read_whole
    from lmcast.exporter.checkpoint.gguf.tensors import hugging_face_tensors
    from lmcast.exporter.checkpoint.gguf.texts import hugging_face_texts

    header = read_whole(path)
    metadata = Metadata(header.path, header.metadata)
    model = Model(header, metadata)
    arch = find(model)
    config = arch.config(model)
    config |= {"architectures": [arch.model_class], "model_type": arch.model_type}
    tensors = hugging_face_tensors(model, arch)
    texts = hugging_face_texts(metadata, config["vocab_size"])
    unread = metadata.unread(metadata.architecture)
    if unread is not None:
        raise unread
    config |= {key: value for key, value in texts.generation.items() if key not in config}
    return Checkpoint(path, config, tensors, texts)
