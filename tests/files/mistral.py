"""Tiny Mistral Large 3 checkpoints in Mistral's own format, and Hugging Face's models of them."""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import randomise
from torch import Tensor

LENGTH = 16  # of what yarn and the temperature count in: two and a bit of it are run
PARAMS: dict[str, Any] = {
    "dim": 32,
    "n_layers": 3,
    "head_dim": 20,
    "hidden_dim": 48,
    "n_heads": 4,
    "n_kv_heads": 4,
    "rope_theta": 100.0,
    "norm_eps": 1e-6,
    "vocab_size": 97,
    "tied_embeddings": False,
    "max_position_embeddings": 64,
    "model_type": "transformer",
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "kv_lora_rank": 16,
    "v_head_dim": 10,
    "llama_4_scaling": {"original_max_position_embeddings": LENGTH, "beta": 0.4},
    "yarn": {
        "original_max_position_embeddings": LENGTH,
        "factor": 4,
        "apply_scale": False,
        "beta": 0.5,  # with alpha: the ramp is from pair 1 to 3 of the four
        "alpha": 0.1,
    },
    "moe": {
        "expert_parallel": 1,
        "expert_model_parallel": 1,
        "route_every_n": 1,
        "first_k_dense_replace": 1,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "num_expert_groups": 2,
        "num_expert_groups_per_tok": 1,
        "routed_scale": 1.5,
        "expert_hidden_dim": 20,
        "num_shared_experts": 2,
    },
}
# The same in the words of Hugging Face's Mistral4Config, written down by themselves: a mistake in
# lmcast's translation must not be repeated by one that it makes itself.
ROPE: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": LENGTH,
    "beta_fast": 0.5,
    "beta_slow": 0.1,
    "attention_factor": 1.0,
    "mscale_all_dim": 0.0,
    "llama_4_scaling_beta": 0.4,
}
SETTINGS: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_shared_experts": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 2,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "rope_parameters": ROPE,
}
WORDS = [  # of Hugging Face, of Mistral
    (r"^model\.embed_tokens\.", "tok_embeddings."),
    (r"^lm_head\.", "output."),
    (r"^model\.norm\.", "norm."),
    (r"^model\.layers\.", "layers."),
    (r"\.input_layernorm\.", ".attention_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.self_attn\.", ".attention."),
    (r"\.q_a_proj\.", ".wq_a."),
    (r"\.q_a_layernorm\.", ".q_a_norm."),
    (r"\.q_b_proj\.", ".wq_b."),
    (r"\.kv_a_proj_with_mqa\.", ".wkv_a_with_mqa."),
    (r"\.kv_a_layernorm\.", ".kv_a_norm."),
    (r"\.kv_b_proj\.", ".wkv_b."),
    (r"\.o_proj\.", ".wo."),
    (r"\.mlp\.(gate|experts|shared_experts)\.", r".\1."),
    (r"\.mlp\.", ".feed_forward."),
    (r"\.gate_proj\.", ".w1."),
    (r"\.down_proj\.", ".w2."),
    (r"\.up_proj\.", ".w3."),
]


def oracle(settings: dict[str, Any], seed: int = 0) -> Any:
    """Return Hugging Face's model of SETTINGS and these, with values that show in the logits."""
    from transformers import Mistral4Config, Mistral4ForCausalLM

    config = Mistral4Config(**deepcopy({**SETTINGS, **settings}))
    config._attn_implementation = config._experts_implementation = "eager"
    model = Mistral4ForCausalLM(config).eval()
    randomise(model, seed)
    return model


def native(model: Any) -> dict[str, Tensor]:
    """Return the tensors of Hugging Face's model as Mistral stores them: an expert at a time."""
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        layer = name.rpartition(".mlp.experts.")[0]
        for expert, matrix in enumerate(tensor) if layer else ():
            at = f"{layer}.mlp.experts.{expert}"
            if name.endswith("gate_up_proj"):
                gate, up = matrix.chunk(2)
                found |= {f"{at}.gate_proj.weight": gate, f"{at}.up_proj.weight": up}
            else:
                found[f"{at}.down_proj.weight"] = matrix
        if not layer:
            found[name] = tensor
    return {mistral_name(name): tensor.clone() for name, tensor in found.items()}


def fill(name: str, values: Tensor, numbers: dict[str, Tensor]) -> None:
    """Write Mistral's tensors over one of Hugging Face's: what `native` does, back."""
    at = name.rpartition(".")[0]
    for expert, matrix in enumerate(values) if ".mlp.experts." in name else ():
        parts = ["gate_proj", "up_proj"] if name.endswith("gate_up_proj") else ["down_proj"]
        names = [mistral_name(f"{at}.{expert}.{part}.weight") for part in parts]
        matrix.copy_(torch.cat([numbers[n] for n in names]))
    if ".mlp.experts." not in name:
        values.copy_(numbers[mistral_name(name)])


def mistral_name(name: str) -> str:
    for theirs, word in WORDS:
        name = re.sub(theirs, word, name)
    return name


def write(
    folder: Path, params: dict[str, Any], tensors: dict[str, Tensor], shards: int = 1
) -> Path:
    """Write a checkpoint in Mistral's own format, in one file or with an index."""
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params, indent=4))
    if shards == 1:
        save_file(tensors, folder / "consolidated.safetensors")
        return folder
    places = {}
    for number in range(shards):
        file = f"consolidated-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "consolidated.safetensors.index.json").write_text(json.dumps(index))
    return folder


def in_fp8(tensors: dict[str, Tensor], activations: bool) -> dict[str, Tensor]:
    """Return tensors with the matrices that a release has in FP8, a scale to each."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, _ = name.rpartition(".")
        if tensor.dim() < 2 or module in ("tok_embeddings", "output") or module.endswith(".gate"):
            found[name] = tensor
            continue
        scale = tensor.abs().max() / 448  # the largest number of E4M3
        found |= {name: (tensor / scale).to(torch.float8_e4m3fn), f"{module}.qscale_weight": scale}
        if activations:
            found[f"{module}.qscale_act"] = torch.tensor(0.02)
    return found


def changed(**changes: Any) -> dict[str, Any]:
    """Return PARAMS with other values; objects are merged, and None in them removes a key."""
    out = deepcopy(PARAMS)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            value = {k: v for k, v in (out[key] | value).items() if v is not None}
        out[key] = value
    return {key: value for key, value in out.items() if value is not None}
