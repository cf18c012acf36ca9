"""MiniMax's files in both spellings, and what Hugging Face computes with their tensors.

Hugging Face reads its own spelling alone, and turns whole heads whatever `rotary_dim` says. Here
rows of queries and keys change places until the pairs of the first `rotary_dim` lie where it looks
for pairs, and all others turn by nothing.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiny.configs import COMMON_KEYS, SIZES

KINDS = ("linear_attention", "full_attention")
BRANCHES = {"full_attention": "full_attn", "linear_attention": "linear_attn", "mlp": "mlp"}


def as_hugging_face(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of MiniMaxConfig that a config.json of either spelling means."""
    out = {key: value for key, value in config.items() if key != "model_type"}
    for old, new in BRANCHES.items():
        for gain in ("alpha", "beta"):
            if f"layernorm_{old}_{gain}" in out:
                out[f"{new}_{gain}_factor"] = out.pop(f"layernorm_{old}_{gain}")
    if "attn_type_list" in out:
        out["layer_types"] = [KINDS[kind] for kind in out.pop("attn_type_list")]
    return out


def write(settings: dict[str, Any], directory: Path, seed: int) -> Path:
    """Write config.json and model.safetensors; settings with a model_type are config.json itself,
    and the tensors are then those that the files of the hub have."""
    import transformers
    from safetensors.torch import load_file, save_file

    from tiny import randomise

    whole = {**COMMON_KEYS, **SIZES, **settings}
    made = transformers.MiniMaxForCausalLM(transformers.MiniMaxConfig(**as_hugging_face(whole)))
    randomise(made, seed)
    made.save_pretrained(directory)
    if "model_type" in settings:
        (directory / "config.json").write_text(json.dumps(whole, indent=2))
        file = directory / "model.safetensors"
        tensors = load_file(file)
        stored = {n: t for n, t in tensors.items() if not n.endswith(("_decay", "slope_rate"))}
        save_file(stored, file, {"format": "pt"})
    return directory


@cache
def model(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Return Hugging Face's model of such files, in eager code, converted from fp32 to `dtype`."""
    import transformers

    config = json.loads((directory / "config.json").read_text())
    made = transformers.MiniMaxForCausalLM.from_pretrained(
        directory,
        config=transformers.MiniMaxConfig(**as_hugging_face(config)),
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    if config.get("rotary_dim"):
        turn_in_part(made, config["rotary_dim"])
    return made.to(dtype).eval()


@torch.no_grad()
def turn_in_part(model: Any, turned: int) -> None:
    layers = [layer.self_attn for layer in model.model.layers if hasattr(layer.self_attn, "q_proj")]
    width, theta = layers[0].head_dim, model.config.rope_parameters["rope_theta"]
    dims = torch.arange(width)
    first, second = dims[:turned].chunk(2)
    still = dims[turned:].chunk(2)
    order = torch.cat([first, still[0], second, still[1]])
    for layer in layers:
        for rows in (layer.q_proj.weight, layer.k_proj.weight):
            rows.copy_(rows.unflatten(0, (-1, width))[:, order].flatten(0, 1))
    frequency = 1 / theta ** (torch.arange(0, turned, 2).float() / turned)
    model.model.rotary_emb.inv_freq = torch.cat([frequency, torch.zeros(len(still[0]))])


def logits(directory: Path, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Return B,T,V for ids B,T."""
    with torch.no_grad():
        return model(directory, dtype)(ids, use_cache=False).logits
