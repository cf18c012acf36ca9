"""Grok 2.5 by itself: what xAI's release computes, written out in plain torch, one token at a time.

From the published description: SGLang's models/grok.py (xAI's own way to run the release), the
router (its test: softmax of the capped logits over all experts, then the best, weights as they
are), and the attention kernels (the temperature multiplies capped scores of query i, counted from
0, by log2(i) / log2(length) where i > length). It shares nothing with lmcast.
"""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

KINDS = {"q": "num_attention_heads", "k": "num_key_value_heads", "v": "num_key_value_heads"}


def shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return every tensor of a checkpoint as the hub names it, and its shape, out first."""
    width, inner, expert = c["hidden_size"], c["intermediate_size"], c["moe_intermediate_size"]
    out: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (c["vocab_size"], width),
        "model.norm.weight": (width,),
        "lm_head.weight": (c["vocab_size"], width),
    }
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        for norm in ("pre_attn", "post_attn", "pre_moe", "post_moe"):
            out[f"{at}.{norm}_norm.weight"] = (width,)
        for kind, heads in KINDS.items():
            out[f"{at}.self_attn.{kind}_proj.weight"] = (c[heads] * c["head_dim"], width)
        out[f"{at}.self_attn.o_proj.weight"] = (width, c["num_attention_heads"] * c["head_dim"])
        out[f"{at}.block_sparse_moe.gate.weight"] = (c["num_local_experts"], width)
        for e in range(c["num_local_experts"]):
            name = f"{at}.block_sparse_moe.experts.{e}"
            out |= {f"{name}.w1.weight": (expert, width), f"{name}.w3.weight": (expert, width)}
            out[f"{name}.w2.weight"] = (width, expert)
        if c.get("residual_moe"):
            out |= {f"{at}.mlp.{x}_proj.weight": (inner, width) for x in ("gate", "up")}
            out[f"{at}.mlp.down_proj.weight"] = (width, inner)
    return out


def write(config: dict[str, Any], directory: Path, seed: int) -> Path:
    """Write config.json and a random model.safetensors, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        tensors[name] = 1 + 0.3 * noise if len(shape) == 1 else 1.5 * noise / shape[1] ** 0.5
    # Large router logits, or their cap would not show.
    tensors = {n: t * 10 if "moe.gate" in n else t for n, t in tensors.items()}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


@cache
def _checkpoint(directory: Path, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = json.loads((directory / "config.json").read_text())
    tensors = load_file(directory / "model.safetensors")
    return config, {name: tensor.to(dtype) for name, tensor in tensors.items()}


def logits(directory: Path, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Return B,T,V for ids B,T, every row by itself and every token after the one before it."""
    config, tensors = _checkpoint(directory, dtype)
    return torch.stack([torch.stack(_row(config, tensors, row.tolist())) for row in ids])


def _row(c: dict[str, Any], w: dict[str, Tensor], ids: list[int]) -> list[Tensor]:
    held: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(c["num_hidden_layers"])]
    out = []
    for position, token in enumerate(ids):
        x = w["model.embed_tokens.weight"][token] * c["embedding_multiplier_scale"]
        for i, past in enumerate(held):
            at = f"model.layers.{i}"

            def norm(name: str, y: Tensor, at: str = at) -> Tensor:
                return _norm(y, w[f"{at}.{name}_norm.weight"], c["rms_norm_eps"])

            x = x + norm("post_attn", _attend(c, w, at, norm("pre_attn", x), position, past))
            x = x + norm("post_moe", _feed_forward(c, w, at, norm("pre_moe", x)))
        x = _norm(x, w["model.norm.weight"], c["rms_norm_eps"])
        y = w["lm_head.weight"] @ x * c["output_multiplier_scale"]
        out.append(_cap(y, c.get("final_logit_softcapping")))
    return out


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean() + eps) * weight


def _cap(x: Tensor, cap: float | None) -> Tensor:
    return cap * torch.tanh(x / cap) if cap and cap > 0 else x


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _turn(head: Tensor, position: int, theta: float) -> Tensor:
    """Rotate dim j with dim j + width/2 by position * theta^(-2j/width)."""
    half = len(head) // 2
    angle = position * torch.tensor([float(int(theta)) ** (-j / half) for j in range(half)])
    cos, sin = angle.cos().to(head.dtype), angle.sin().to(head.dtype)
    a, b = head[:half], head[half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin])


def _attend(
    c: dict[str, Any],
    w: dict[str, Tensor],
    at: str,
    x: Tensor,
    position: int,
    past: list[tuple[Tensor, Tensor]],
) -> Tensor:
    width, theta = c["head_dim"], c.get("rope_theta", 10000)
    q, k, v = (
        (w[f"{at}.self_attn.{kind}_proj.weight"] @ x).reshape(c[heads], width)
        for kind, heads in KINDS.items()
    )
    past.append((torch.stack([_turn(head, position, theta) for head in k]), v))
    length = c.get("attn_temperature_len", -1)
    heat = math.log2(position) / math.log2(length) if 0 < length < position else 1.0
    share = c["num_attention_heads"] // c["num_key_value_heads"]
    heads = []
    for h, query in enumerate(q):
        turned = _turn(query, position, theta)
        scores = torch.stack([turned @ key[h // share] for key, _ in past]) / math.sqrt(width)
        weights = (_cap(scores, c.get("attn_logit_softcapping", 30.0)) * heat).softmax(0)
        heads.append(
            sum(p * value[h // share] for p, (_, value) in zip(weights, past, strict=True))
        )
    return w[f"{at}.self_attn.o_proj.weight"] @ torch.cat(heads)


def _feed_forward(c: dict[str, Any], w: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    scores = w[f"{at}.block_sparse_moe.gate.weight"] @ x
    scores = _cap(scores, c.get("router_logit_softcapping", 30.0)).softmax(0)
    out = torch.zeros_like(x)
    # By topk, as in the published code: of equal scores, which a low cap gives, another order takes
    # other experts.
    for e in scores.topk(c["num_experts_per_tok"]).indices.tolist():
        one, two, three = (w[f"{at}.block_sparse_moe.experts.{e}.w{n}.weight"] for n in (1, 2, 3))
        out = out + scores[e] * (two @ (_gelu(one @ x) * (three @ x)))
    if not c.get("residual_moe"):
        return out
    gate, up, down = (w[f"{at}.mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
    return (out + down @ (_gelu(gate @ x) * (up @ x))) / math.sqrt(2)
