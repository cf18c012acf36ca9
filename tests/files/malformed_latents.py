"""Checkpoints with latent attention that must be refused, each one change away from a good one."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny.llama import (
    CONFIG,
    DROP,
    WEIGHTS,
    Build,
    config,
    poke,
    set_tensor,
    shapes,
    steps,
    write_json,
)

from files.malformed import Malformed
from files.malformed_moe import experts_of, without

DIM, HEADS, RANK, QUERY_RANK, WIDTH, TURNED, VALUE = 32, 4, 16, 24, 12, 8, 10
INDEX_HEADS, INDEX_WIDTH = 4, 16
KINDS = ("full", "shared", "full")
GLM: dict[str, Any] = {
    **{key: value for key, value in CONFIG.items() if key != "head_dim"},
    "architectures": ["GlmMoeDsaForCausalLM"],
    "model_type": "glm_moe_dsa",
    "num_hidden_layers": 3,
    "num_key_value_heads": HEADS,
    "q_lora_rank": QUERY_RANK,
    "kv_lora_rank": RANK,
    "qk_nope_head_dim": WIDTH,
    "qk_rope_head_dim": TURNED,
    "v_head_dim": VALUE,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "index_topk": 8,
    "index_head_dim": INDEX_WIDTH,
    "index_n_heads": INDEX_HEADS,
    "indexer_types": list(KINDS),
    "num_nextn_predict_layers": 1,
}
ATTENTION = "model.layers.0.self_attn"
UP, DOWN = f"{ATTENTION}.kv_b_proj.weight", f"{ATTENTION}.kv_a_proj_with_mqa.weight"
NEXT = "model.layers.3"  # behind the last


def attention_of(layer: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one layer's attention and of its indexer, where it has one."""
    at, whole = f"model.layers.{layer}.self_attn", WIDTH + TURNED
    found: dict[str, tuple[int, ...]] = {
        f"{at}.q_a_proj.weight": (QUERY_RANK, DIM),
        f"{at}.q_a_layernorm.weight": (QUERY_RANK,),
        f"{at}.q_b_proj.weight": (HEADS * whole, QUERY_RANK),
        f"{at}.kv_a_proj_with_mqa.weight": (RANK + TURNED, DIM),
        f"{at}.kv_a_layernorm.weight": (RANK,),
        f"{at}.kv_b_proj.weight": (HEADS * (WIDTH + VALUE), RANK),
        f"{at}.o_proj.weight": (DIM, HEADS * VALUE),
    }
    if KINDS[layer] == "full":
        found |= {
            f"{at}.indexer.wq_b.weight": (INDEX_HEADS * INDEX_WIDTH, QUERY_RANK),
            f"{at}.indexer.wk.weight": (INDEX_WIDTH, DIM),
            f"{at}.indexer.k_norm.weight": (INDEX_WIDTH,),
            f"{at}.indexer.k_norm.bias": (INDEX_WIDTH,),
            f"{at}.indexer.weights_proj.weight": (INDEX_HEADS, DIM),
        }
    return found


def tiny_glm(folder: Path) -> None:
    """Make the tiny llama a tiny GLM-5, which must be accepted."""
    wanted = {n: s for n, s in shapes().items() if ".layers." not in n}
    for layer in range(len(KINDS)):
        at = f"model.layers.{layer}"
        wanted |= attention_of(layer)
        wanted |= {f"{at}.{x}_layernorm.weight": (DIM,) for x in ("input", "post_attention")}
        if layer:
            wanted |= experts_of(layer)
            wanted[f"{at}.mlp.gate.e_score_correction_bias"] = (4,)
        dense, inner = (f"{at}.mlp.shared_experts", 24) if layer else (f"{at}.mlp", 48)
        wanted |= {f"{dense}.{x}_proj.weight": (inner, DIM) for x in ("gate", "up")}
        wanted[f"{dense}.down_proj.weight"] = (DIM, inner)
    random = torch.Generator().manual_seed(0)
    values = {n: torch.randn(s, generator=random) * 0.1 for n, s in wanted.items()}
    for name in values:
        if "norm.weight" in name:
            values[name] += 1
    save_file(values, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / "config.json", GLM)


def other(name: str, *shape: int) -> Build:
    return set_tensor(name, lambda _: torch.ones(shape))


ROWS: list[tuple[str, Build, str]] = [
    ("rank_other", config(kv_lora_rank=12), r"kv_b_proj.*\[88, 16\].*\[4, 12, 12\]"),
    ("rank_zero", config(kv_lora_rank=0), "kv_lora_rank is 0; accepted: 1"),
    ("rank_null", config(kv_lora_rank=None), "kv_lora_rank is None; accepted: an integer"),
    ("rank_huge", config(kv_lora_rank=10**9), "kv_lora_rank is 1000000000; accepted"),
    ("rank_of_queries_other", config(q_lora_rank=20), r"q_a_proj.*\[24, 32\].*\[20, 32\]"),
    ("rank_of_queries_null", config(q_lora_rank=None), "q_lora_rank is None; accepted: an integer"),
    ("rank_of_queries_dropped", config(q_lora_rank=DROP), "q_lora_rank is missing"),
    ("latents_wider", other(DOWN, RANK + TURNED + 1, DIM), r"kv_a_proj.*\[25, 32\].*\[24, 32\]"),
    ("latents_norm_wider", other(f"{ATTENTION}.kv_a_layernorm.weight", 17), r"kv_a_l.*\[17\]"),
    ("up_of_another_rank", other(UP, 88, 20), r"kv_b_proj.*\[88, 20\].*\[4, 12, 16\]"),
    ("up_of_another_width", other(UP, 84, RANK), r"kv_b_proj.*\[84, 16\].*\[4, 10, 16\]"),
    ("up_of_no_whole_heads", other(UP, 90, RANK), r"kv_b_proj.*\[90, 16\].*4 equal runs"),
    ("up_flat", other(UP, 88 * RANK), r"kv_b_proj.*\[1408\]"),
    ("up_missing", without(UP), r"kv_b_proj\.weight is missing"),
    ("up_nan", poke(UP, 170, float("nan")), r"kv_b_proj.*nan.*index 170"),
    ("width_other", config(qk_nope_head_dim=10), r"kv_b_proj.*\[88, 16\].*\[4, 10, 16\]"),
    ("turned_other", config(qk_rope_head_dim=4), r"q_b_proj.*\[80, 24\].*\[64, 24\]"),
    ("turned_odd", config(qk_rope_head_dim=7), "rotary width is 7"),
    ("value_other", config(v_head_dim=8), r"kv_b_proj.*\[88, 16\]|o_proj"),
    ("whole_width_other", config(qk_head_dim=21), "qk_head_dim is 21, but .* make it 20"),
    ("heads_shared", config(num_key_value_heads=2), "num_key_value_heads is 2; accepted: .* 4"),
    ("half_of_pairs", config(rope_interleave=False), "rope_interleave is False; implemented: True"),
    ("partial", config(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
    ("layers_between", config(moe_layer_freq=2), "moe_layer_freq is 2; implemented: 1"),
    ("top_k_zero", config(index_topk=0), "index_topk is 0; accepted: 1"),
    ("top_k_negative", config(index_topk=-8), "index_topk is -8; accepted: 1"),
    ("top_k_string", config(index_topk="8"), "index_topk is '8'; accepted: an integer"),
    ("index_narrow", config(index_head_dim=4), "index_head_dim is 4; accepted: from .*, 8"),
    ("index_wider", config(index_head_dim=32), r"indexer\.wq_b.*\[64, 24\].*\[128, 24\]"),
    ("index_heads_other", config(index_n_heads=8), r"indexer\.\w+.*\[4, 32\]|wq_b.*\[64, 24\]"),
    ("index_heads_zero", config(index_n_heads=0), "index_n_heads is 0; accepted: 1"),
    ("index_halves", config(indexer_rope_interleave=False), "indexer_rope_interleave is False"),
    ("index_bias_missing", without(f"{ATTENTION}.indexer.k_norm.bias"), r"k_norm\.bias is missing"),
    (
        "index_missing",
        without(*(name for name in attention_of(0) if "indexer" in name)),
        r"0\.self_attn\.indexer\.\S+ is missing",
    ),
    (
        "index_where_it_is_shared",
        other("model.layers.1.self_attn.indexer.wk.weight", INDEX_WIDTH, DIM),
        r"layers\.1\.self_attn\.indexer\.wk\.weight.*nothing reads",
    ),
    (
        "shared_before_any",
        config(indexer_types=["shared", "full", "full"]),
        r"indexer_types\[0\] is 'shared'; accepted: 'full'",
    ),
    ("kinds_short", config(indexer_types=["full"]), "indexer_types has 1 entries; .* is 3"),
    (
        "kinds_other",
        config(indexer_types=["full", "half", "full"]),
        r"indexer_types\[1\] is 'half'",
    ),
    ("kinds_string", config(indexer_types="full"), "indexer_types is 'full'; accepted: a list"),
    (
        "pattern_other",
        config(indexer_types=DROP, index_topk_pattern="FXF"),
        "index_topk_pattern is 'FXF'; accepted: a word of F",
    ),
    (
        "pattern_differs",
        config(index_topk_pattern="FFF"),
        "indexer_types is .* but index_topk_pattern, which means the same",
    ),
    (
        "pattern_short",
        config(indexer_types=DROP, index_topk_pattern="FS"),
        "indexer_types has 2 entries; .* is 3",
    ),
    (
        "every_zero",
        config(indexer_types=DROP, index_topk_freq=0),
        "index_topk_freq is 0; accepted: 1",
    ),
    ("layer_kinds_other", config(layer_types=["full_attention"] * 3), r"layer_types\[0\] is 'full"),
    ("layer_kinds_short", config(layer_types=["indexed_attention"]), "layer_types has 1 entries"),
    (
        "predictors_unmarked",
        other(f"{NEXT}.self_attn.kv_b_proj.weight", 88, RANK),
        r"layers\.3\.self_attn\.kv_b_proj\.weight.*nothing reads",
    ),
    (
        "predictors_more_than_stated",
        steps(config(num_nextn_predict_layers=0), other(f"{NEXT}.eh_proj.weight", DIM, 2 * DIM)),
        r"layers\.3\.eh_proj.*nothing reads",
    ),
    (
        "factor_missing",
        config(
            rope_parameters={"rope_type": "yarn", "rope_theta": 100.0, "mscale_all_dim": 1.0},
            rope_theta=DROP,
        ),
        "rope_type 'yarn' needs factor",
    ),
]

MALFORMED_LATENTS = [
    Malformed(f"glm_moe_dsa_{name}", steps(tiny_glm, build), message, "export")
    for name, build, message in ROWS
]
