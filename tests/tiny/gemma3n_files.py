"""Gemma 3n's multimodal files around its text model.

Hugging Face's multimodal class needs timm to be built at all; its text path is the text class with
the same config, which is the oracle here.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

OTHERS = {  # two of each other model, named as on the hub
    "model.vision_tower.timm_model.conv_stem.conv.weight": (4, 3, 3, 3),
    "model.vision_tower.timm_model.conv_stem.bn.weight": (4,),
    "model.audio_tower.subsample_conv_projection.conv_0.conv.weight": (4, 1, 3, 3),
    "model.audio_tower.conformer.0.norm.weight": (4,),
    "model.embed_vision.embedding.weight": (5, 4),
    "model.embed_vision.embedding_projection.weight": (32, 4),
    "model.embed_audio.embedding.weight": (5, 4),
    "model.embed_audio.embedding_projection.weight": (32, 4),
}


def model(settings: dict[str, Any], untied: bool = False) -> Any:
    """Return Hugging Face's text model of a multimodal config, with eager attention.

    untied: whatever the config says.
    """
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    config = Gemma3nTextConfig.from_dict(settings["text_config"])
    config.tie_word_embeddings = settings.get("tie_word_embeddings", config.tie_word_embeddings)
    config.tie_word_embeddings &= not untied
    config._attn_implementation = "eager"
    return Gemma3nForCausalLM(config).eval()


def write(settings: dict[str, Any], directory: Path, seed: int) -> Path:
    """Write config.json and model.safetensors, the same for the same seed."""
    from tiny import randomise

    made = model(settings)
    randomise(made, seed)
    tensors = {name: torch.zeros(shape) for name, shape in OTHERS.items()}
    for name, parameter in made.named_parameters():
        trunk = f"model.language_model.{name.removeprefix('model.')}"
        tensors[trunk if name.startswith("model.") else name] = parameter.detach().contiguous()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(settings, indent=2))
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def logits(directory: Path, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Return B,T,V for ids B,T."""
    from safetensors.torch import load_file

    tensors = {
        name.replace("model.language_model.", "model."): tensor
        for name, tensor in load_file(directory / "model.safetensors").items()
        if name not in OTHERS
    }
    # As from_pretrained: a head that is stored, and another than the embedding, is used.
    head, embedding = (tensors.get(f"{n}.weight") for n in ("lm_head", "model.embed_tokens"))
    untied = head is not None and not torch.equal(head, embedding)
    made = model(json.loads((directory / "config.json").read_text()), untied)
    missing, unexpected = made.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    made.tie_weights()
    with torch.no_grad():
        return made.to(dtype)(ids, use_cache=False).logits
