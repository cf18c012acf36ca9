"""A tiny valid checkpoint that takes pictures, with all its files; and pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models

from tiny import llama

MARKS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
TEMPLATE = (
    "<s>{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content %}{% if p.type == 'image' %}[IMG]{% else %}{{ p.text }}"
    "{% endif %}{% endfor %}{% endif %}{% endfor %}{{ reasoning_effort }}[assistant]"
)
UNIT, LONGEST = 8, 32  # pixels: of a token's side, and of the longest side of a picture
TOWER: dict[str, Any] = {
    "model_type": "pixtral",
    "hidden_size": 16,
    "image_size": LONGEST,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": 1,
    "patch_size": UNIT // 2,
}


def tower_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of Pixtral's tower, and of what brings it to the text's width."""
    layer = {
        **dict.fromkeys((f"attention.{n}_proj" for n in "qkvo"), (16, 16)),
        **dict.fromkeys(("feed_forward.gate_proj", "feed_forward.up_proj"), (24, 16)),
        "feed_forward.down_proj": (16, 24),
        **dict.fromkeys(("attention_norm", "ffn_norm"), (16,)),
    }
    return {
        "vision_tower.patch_conv.weight": (16, 3, 4, 4),
        "vision_tower.ln_pre.weight": (16,),
        **{f"vision_tower.transformer.layers.0.{n}.weight": shape for n, shape in layer.items()},
        "multi_modal_projector.norm.weight": (16,),
        "multi_modal_projector.patch_merger.merging_layer.weight": (16, 64),
        "multi_modal_projector.linear_1.weight": (32, 16),
        "multi_modal_projector.linear_2.weight": (32, 32),
    }


def tiny_mistral3(folder: Path, template: bool = True, context: int = 256) -> None:
    """Fill an empty or absent directory with a checkpoint of Mistral 3."""
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(0)
    tokens = ["<s>", "</s>", *MARKS, *map(chr, range(32, 127))]
    text = {**llama.shapes(), llama.EMBED: (len(tokens), 32), llama.HEAD: (len(tokens), 32)}
    shapes = {f"language_model.{name}": shape for name, shape in text.items()} | tower_shapes()
    weights = {name: torch.randn(shape, generator=random) * 0.2 for name, shape in shapes.items()}
    for name in weights:
        if "norm" in name or "ln_pre" in name:
            weights[name] += 1
    save_file(weights, folder / llama.WEIGHTS, metadata={"format": "pt"})
    dropped = ("architectures", "torch_dtype")
    config = {k: v for k, v in llama.CONFIG.items() if k not in dropped} | {
        "model_type": "mistral",
        "vocab_size": len(tokens),
        "max_position_embeddings": context,
        "sliding_window": None,
    }
    llama.write_json(
        folder / "config.json",
        {
            "model_type": "mistral3",
            "architectures": ["Mistral3ForConditionalGeneration"],
            "torch_dtype": "float32",
            "text_config": config,
            "vision_config": TOWER,
            "image_token_index": tokens.index("[IMG]"),
            "spatial_merge_size": 2,
            "vision_feature_layer": -1,
            "multimodal_projector_bias": False,
            "projector_hidden_act": "gelu",
            "tie_word_embeddings": False,
        },
    )
    write_texts(folder, tokens)
    if template:
        (folder / "chat_template.jinja").write_text(TEMPLATE)


def write_texts(folder: Path, tokens: list[str]) -> None:
    """Write a tokenizer of these tokens, and what says how pictures are prepared."""
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<s>", "</s>", *MARKS])
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    llama.write_json(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    llama.write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})
    llama.write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "PixtralImageProcessor",
            "size": {"longest_edge": LONGEST},
            "patch_size": {"height": 4, "width": 4},
        },
    )
    llama.write_json(
        folder / "processor_config.json",
        {"processor_class": "PixtralProcessor", "patch_size": 4, "spatial_merge_size": 2},
    )


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a picture uint8 [height, width, 3] of noise."""
    drawn = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return drawn.astype(np.uint8)
