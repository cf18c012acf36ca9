"""Gemma 3n's multimodal files around its text model.

Hugging Face's multimodal class needs timm to be built at all; its text path is the text class with
the same config, and the embedders of ids that are of pictures and sound, which are the oracle here.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models
from torch import Tensor

from lmcast.graphs.towers import mobilenet_v5, usm
from tiny.mobilenet_v5 import drawn, stored

TOWERS = {"vision_tower.": mobilenet_v5.TOWER, "audio_tower.": usm.TOWER}
EMBEDDERS = ("embed_vision", "embed_audio")


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


def embedder(settings: dict[str, Any], name: str) -> Any:
    """Return what Hugging Face embeds ids of pictures or of sound with."""
    from transformers import Gemma3nAudioConfig, Gemma3nTextConfig, Gemma3nVisionConfig
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nMultimodalEmbedder

    key = name.replace("embed", "").strip("_") + "_config"
    config = (Gemma3nAudioConfig if "audio" in name else Gemma3nVisionConfig)(**settings[key])
    text = Gemma3nTextConfig.from_dict(settings["text_config"])
    return Gemma3nMultimodalEmbedder(config, text).eval()


def towers(settings: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of the towers, which no text reads."""
    text = SimpleNamespace(hidden_size=settings["text_config"]["hidden_size"])
    found = {}
    for prefix, arch in TOWERS.items():
        with torch.device("meta"):
            tower = arch.build(arch.read(settings, "gemma3n"), text)
        shapes = stored(arch, tower)
        own = (name for name in shapes if name.startswith(f"model.{prefix}"))
        found |= {name: drawn(name, shapes[name]).float() for name in own}
    return found


def write(settings: dict[str, Any], directory: Path, seed: int) -> Path:
    """Write config.json and model.safetensors, the same for the same seed."""
    from tiny import randomise

    made = model(settings)
    randomise(made, seed)
    tensors = towers(settings)
    for number, name in enumerate(EMBEDDERS):
        other = embedder(settings, name)
        randomise(other, seed + 1 + number)
        tensors |= {f"model.{name}.{n}": p.detach() for n, p in other.named_parameters()}
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

    settings = json.loads((directory / "config.json").read_text())
    every = load_file(directory / "model.safetensors")
    text = "model.language_model."
    tensors = {n.replace(text, "model."): t for n, t in every.items() if n.startswith(text)}
    tensors |= {n: t for n, t in every.items() if n == "lm_head.weight"}
    # As from_pretrained: a head that is stored, and another than the embedding, is used.
    head, embedding = (tensors.get(f"{n}.weight") for n in ("lm_head", "model.embed_tokens"))
    untied = head is not None and not torch.equal(head, embedding)
    made = model(settings, untied)
    missing, unexpected = made.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    made.tie_weights()
    made.to(dtype)
    with torch.no_grad():
        x = made.get_input_embeddings()(ids)
        for name in EMBEDDERS:
            other = embedder(settings, name)
            own = {n.removeprefix(f"model.{name}."): t for n, t in every.items() if name in n}
            other.load_state_dict(own)
            first = other.vocab_offset
            taken = other.to(dtype)(input_ids=ids.clamp(first, first + other.vocab_size - 1))
            x = torch.where((ids >= first)[..., None], taken, x)
        more = made.model.get_per_layer_inputs(ids)
        return made(inputs_embeds=x, per_layer_inputs=more, use_cache=False).logits


CHARACTERS = ["\n", *map(chr, range(32, 109))]
MARKS = {
    80: "<start_of_image>",
    81: "<start_of_audio>",
    86: "<end_of_image>",
    87: "<image_soft_token>",
    91: "<end_of_audio>",
    92: "<audio_soft_token>",
}


def write_texts(folder: Path) -> None:
    """Write a tokenizer of characters, and what says how pictures and sounds are prepared."""
    tokens = {0: "<s>", 1: "</s>", **dict(enumerate(CHARACTERS, 2)), **MARKS}
    vocabulary = {tokens.get(i, f"<unused{i}>"): i for i in range(97)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<s>", "</s>", *MARKS.values()])
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    files: dict[str, dict[str, Any]] = {
        "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>"},
        "preprocessor_config.json": {
            "image_processor_type": "SiglipImageProcessor",
            "feature_extractor_type": "Gemma3nAudioFeatureExtractor",
            "do_normalize": False,
            "size": {"height": 96, "width": 96},
        },
        "processor_config.json": {"image_seq_length": 4, "audio_seq_length": 6},
    }
    for name, said in files.items():
        (folder / name).write_text(json.dumps(said))
