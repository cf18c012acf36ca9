"""The checkpoint of both benchmarks: random weights with the dimensions of Qwen3-0.6B."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models

LAYERS, HIDDEN, MLP, HEADS, KV_HEADS, WIDTH, VOCAB = 28, 1024, 3072, 16, 8, 128, 151936
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "head_dim": WIDTH,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": MLP,
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": VOCAB,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint; the head is tied to the embedding and not stored."""
    layer = {
        "input_layernorm": (HIDDEN,),
        "mlp.down_proj": (HIDDEN, MLP),
        "mlp.gate_proj": (MLP, HIDDEN),
        "mlp.up_proj": (MLP, HIDDEN),
        "post_attention_layernorm": (HIDDEN,),
        "self_attn.k_norm": (WIDTH,),
        "self_attn.k_proj": (KV_HEADS * WIDTH, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * WIDTH),
        "self_attn.q_norm": (WIDTH,),
        "self_attn.q_proj": (HEADS * WIDTH, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * WIDTH, HIDDEN),
    }
    outer = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    return outer | {
        f"model.layers.{i}.{name}.weight": shape
        for i in range(LAYERS)
        for name, shape in layer.items()
    }


def write(directory: str, dtype: str) -> None:
    """Write the checkpoint: 2.4 GB in float32, 1.2 GB in bfloat16."""
    folder = Path(directory)
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes().items():
        if "norm" in name:
            tensors[name] = torch.ones(shape, dtype=DTYPES[dtype])
        else:
            scale = 1 / math.sqrt(shape[-1])
            tensors[name] = (torch.randn(shape, generator=random) * scale).to(DTYPES[dtype])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = CONFIG | {"dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    """Every tool copies a tokenizer; the benchmarks speak in token ids."""
    words = ["<s>", "</s>", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind | special))
