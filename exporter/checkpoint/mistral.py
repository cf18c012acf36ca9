"""Mistral's own format of Mistral Large 3 and Small 4, params.json and its names of tensors, shown
as the Hugging Face checkpoint (mistral4, beside a tower mistral3) that it is the same model as."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.processors import PICTURES, WHOLE
from lmcast.exporter.checkpoint.tensors import StoredTensor
from lmcast.graphs.config.reading import ConfigError, Count, Experts, Layers, Positive, Size, parse
from lmcast.graphs.layouts.catalogue import KEY
from lmcast.graphs.towers.pixtral import ENCODER
from lmcast.graphs.weights.text_names import HUB

PARAMS = "params.json"
SINGLE = "consolidated.safetensors"
# Hugging Face's norms of the latents have this epsilon whatever the config says, those of vLLM and
# SGLang have norm_eps: only where it is the same is there one model.
LATENT_EPS = 1e-6
END = 2  # </s> in every tokenizer of Mistral's; params.json has no ids

Tensors = dict[str, StoredTensor]


@dataclass(frozen=True, kw_only=True)
class Yarn:
    factor: Positive
    original_max_position_embeddings: Size
    apply_scale: bool = True
    beta: Positive | None = None
    alpha: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class Temperature:
    original_max_position_embeddings: Size
    beta: float


@dataclass(frozen=True, kw_only=True)
class Mixture:
    num_experts: Experts
    num_experts_per_tok: Experts
    expert_hidden_dim: Size
    num_shared_experts: Size
    first_k_dense_replace: Count = 0
    route_every_n: Literal[1] = 1
    num_expert_groups: Experts = 1
    num_expert_groups_per_tok: Experts = 1
    routed_scale: Positive = 1.0
    expert_parallel: int | None = None  # how training was divided between machines
    expert_model_parallel: int | None = None


@dataclass(frozen=True, kw_only=True)
class Quantization:
    qformat_weight: Literal["fp8_e4m3"]
    qscheme_act: Literal["TENSOR", "NO_SCALES"] | None = None  # None: TENSOR


@dataclass(frozen=True, kw_only=True)
class Params:
    """The params.json of the one family that is read, but for vision_encoder."""

    dim: Size
    n_layers: Layers
    hidden_dim: Size
    n_heads: Size
    rope_theta: Positive
    norm_eps: Positive
    vocab_size: Size
    q_lora_rank: Size
    kv_lora_rank: Size
    qk_rope_head_dim: Size
    qk_nope_head_dim: Size
    v_head_dim: Size
    moe: Mixture
    head_dim: Size | None = None
    n_kv_heads: Size | None = None
    tied_embeddings: bool = False
    max_position_embeddings: Size | None = None
    max_seq_len: Size | None = None
    model_type: Literal["transformer"] = "transformer"
    llama_4_scaling: Temperature | None = None
    yarn: Yarn | None = None
    quantization: Quantization | None = None


WITHIN = {
    "moe": Mixture,
    "yarn": Yarn,
    "llama_4_scaling": Temperature,
    "quantization": Quantization,
}


def hugging_face_config(raw: Mapping[str, Any], shown: Path) -> dict[str, Any]:
    """Return the config.json that says what this params.json says; errors name `shown`.

    Raises CheckpointError for another model, for every key that nothing reads and for
    contradictions.
    """
    at = f"{shown}: "
    mixture = raw.get("moe")
    shared = mixture.get("num_shared_experts") if isinstance(mixture, dict) else None
    if not shared or raw.get("kv_lora_rank") is None:
        lacks = "moe.num_shared_experts" if not shared else "kv_lora_rank"
        raise CheckpointError(
            f"{at}{lacks} is missing, so this is neither Mistral Large 3 nor Small 4, whose experts"
            " and latent attention are all that is read in this format; give the checkpoint of"
            " another model in Hugging Face's, the directory with config.json"
        )
    vision = raw.get(ENCODER)
    if not isinstance(vision, dict | None):
        raise CheckpointError(f"{at}{ENCODER} is {vision!r:.80}; accepted: an object")
    own = {key: value for key, value in raw.items() if key != ENCODER}
    packed = own.get("quantization")
    if isinstance(packed, dict) and "quant_method" in packed:
        del own["quantization"]  # in the words of Hugging Face, not Mistral's
    else:
        packed = None
    _refuse_unread(own, Params, at)
    for key, cls in WITHIN.items():
        if isinstance(own.get(key), dict):
            _refuse_unread(own[key], cls, at, f"{key}.")
    try:
        params = parse(Params, own, at)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    config = _config(params, at)
    if vision:
        config = _around(config, vision)
    return config if packed is None else {**config, KEY: packed}


def _around(text: dict[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the multimodal model; its tower reads `vision` in Mistral's words."""
    outer = {key: text.pop(key) for key in (KEY, "architectures") if key in text}
    return {
        **outer,
        "architectures": ["Mistral3ForConditionalGeneration"],
        "model_type": "mistral3",
        "text_config": text,
        "tie_word_embeddings": text["tie_word_embeddings"],
        ENCODER: dict(vision),
    }


def processor_files(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return what Hugging Face's files would say of the pictures of such a config; nothing of a
    text, nor where the tower says no sizes and is refused for it."""
    vision = config.get(ENCODER)
    if not isinstance(vision, Mapping):
        return {}
    longest = vision.get("max_image_size") or vision.get("image_size")
    sizes = {key: vision.get(key) for key in ("patch_size", "spatial_merge_size")}
    if longest is None or None in sizes.values():
        return {}
    how = {"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": longest}}
    return {PICTURES: how, WHOLE: sizes}


def _refuse_unread(raw: Mapping[str, Any], cls: type, at: str, within: str = "") -> None:
    known = {field.name for field in dataclasses.fields(cls)}
    unread = sorted(key for key, value in raw.items() if key not in known and value is not None)
    if unread:
        raise CheckpointError(
            f"{at}sets {', '.join(f'{within}{key} = {raw[key]!r:.80}' for key in unread)}, which"
            " nothing reads; take out only what changes no result"
        )


def _config(p: Params, at: str) -> dict[str, Any]:
    _require_one_meaning(p, at)
    config: dict[str, Any] = {
        "architectures": ["Mistral4ForCausalLM"],
        "model_type": "mistral4",
        "vocab_size": p.vocab_size,
        "hidden_size": p.dim,
        "intermediate_size": p.hidden_dim,
        "moe_intermediate_size": p.moe.expert_hidden_dim,
        "num_hidden_layers": p.n_layers,
        "num_attention_heads": p.n_heads,
        "num_key_value_heads": p.n_heads,
        "n_shared_experts": p.moe.num_shared_experts,
        "n_routed_experts": p.moe.num_experts,
        "num_experts_per_tok": p.moe.num_experts_per_tok,
        "n_group": p.moe.num_expert_groups,
        "topk_group": p.moe.num_expert_groups_per_tok,
        "norm_topk_prob": True,
        "routed_scaling_factor": p.moe.routed_scale,
        "first_k_dense_replace": p.moe.first_k_dense_replace,
        "q_lora_rank": p.q_lora_rank,
        "kv_lora_rank": p.kv_lora_rank,
        "qk_nope_head_dim": p.qk_nope_head_dim,
        "qk_rope_head_dim": p.qk_rope_head_dim,
        "v_head_dim": p.v_head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": p.norm_eps,
        "max_position_embeddings": p.max_position_embeddings or p.max_seq_len,
        "rope_interleave": True,
        "rope_parameters": _rope(p),
        "tie_word_embeddings": p.tied_embeddings,
        "eos_token_id": END,
    }
    if p.quantization is not None:
        dynamic = p.quantization.qscheme_act == "NO_SCALES"
        config[KEY] = {
            "quant_method": "fp8",
            "activation_scheme": "dynamic" if dynamic else "static",
            "weight_block_size": None,
        }
    return config


def _require_one_meaning(p: Params, at: str) -> None:
    """Refuse keys that contradict each other, or of which nobody knows what they mean together."""
    width = p.qk_nope_head_dim + p.qk_rope_head_dim
    if p.head_dim not in (None, width):
        raise CheckpointError(
            f"{at}head_dim is {p.head_dim}, but qk_nope_head_dim + qk_rope_head_dim is {width}"
        )
    if p.n_kv_heads not in (None, p.n_heads):
        raise CheckpointError(
            f"{at}n_kv_heads is {p.n_kv_heads}, but n_heads is {p.n_heads}; latent attention has as"
            " many of both"
        )
    if p.norm_eps != LATENT_EPS:
        raise CheckpointError(
            f"{at}norm_eps is {p.norm_eps}; accepted: {LATENT_EPS}, which is all that"
            " implementations agree on for the norms of latents"
        )
    longest, asked = p.max_position_embeddings, p.max_seq_len
    if longest is None and asked is None:
        raise CheckpointError(f"{at}max_position_embeddings is missing")
    if longest is not None and asked is not None and asked > longest:
        raise CheckpointError(
            f"{at}max_seq_len is {asked}, beyond max_position_embeddings, {longest}"
        )
    lengths = [r.original_max_position_embeddings for r in (p.yarn, p.llama_4_scaling) if r]
    if len(set(lengths)) > 1:
        raise CheckpointError(
            f"{at}yarn.original_max_position_embeddings is {lengths[0]}, but that of"
            f" llama_4_scaling is {lengths[1]}; accepted: one length for both"
        )


def _rope(p: Params) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": p.rope_theta}
    rope["llama_4_scaling_beta"] = p.llama_4_scaling.beta if p.llama_4_scaling else 0.0
    for given in (p.llama_4_scaling, p.yarn):
        if given is not None:
            rope["original_max_position_embeddings"] = given.original_max_position_embeddings
    if p.yarn is not None:
        rope |= {"rope_type": "yarn", "factor": p.yarn.factor}
        betas = {"beta_fast": p.yarn.beta, "beta_slow": p.yarn.alpha}
        rope |= {key: value for key, value in betas.items() if value is not None}
        # Scaled, Hugging Face multiplies the softmax scale by (0.1 ln factor + 1)^2, and cos and
        # sin by a quotient that is 1; unscaled, nothing is multiplied.
        scaled = {"mscale": 1.0, "mscale_all_dim": 1.0}
        rope |= scaled if p.yarn.apply_scale else {"attention_factor": 1.0}
    return rope


OUTER = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attention_norm": "input_layernorm",
    "attention.wq_a": "self_attn.q_a_proj",
    "attention.q_a_norm": "self_attn.q_a_layernorm",
    "attention.wq_b": "self_attn.q_b_proj",
    "attention.wkv_a_with_mqa": "self_attn.kv_a_proj_with_mqa",
    "attention.kv_a_norm": "self_attn.kv_a_layernorm",
    "attention.wkv_b": "self_attn.kv_b_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "gate": "mlp.gate",
}
PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
# What FP8 weights are multiplied with, and what activations are divided by before their rounding.
SCALES = {"qscale_weight": "weight_scale_inv", "qscale_act": "activation_scale"}
# What compressed-tensors calls its tensors, in either naming of modules.
PACKED = (
    "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_global_scale",
    "input_scale", "input_global_scale",
)  # fmt: skip
LEAVES = {"weight": "weight", **SCALES, **{leaf: leaf for leaf in PACKED}}
NUMBER = r"(?:0|[1-9][0-9]{0,4})"
NAME = re.compile(rf"(?:layers\.({NUMBER})\.)?([a-z_0-9.]+)\.({'|'.join(LEAVES)})")
FEED_FORWARD = re.compile(rf"(feed_forward|shared_experts|experts\.{NUMBER})\.(w[123])")
# The vision model, and scales of a cache in FP8, which is none of the weights' business.
BESIDE = re.compile(
    r"(vision_encoder|vision_language_adapter|patch_merger|pre_mm_projector_norm)\..+"
    rf"|layers\.{NUMBER}\.attention\.(q|k|v|kv)_fake_quantizer\.qscale_act"
)


def hugging_face_tensors(tensors: Tensors, config: Mapping[str, Any], shown: Path) -> Tensors:
    """Return the tensors under Hugging Face's names; those of other models keep their own.

    Raises CheckpointError for a name that is no tensor of this format, and for a scale where the
    config says nothing of quantization; `shown` is where that comes from.
    """
    found: Tensors = {}
    for name, stored in tensors.items():
        theirs = name if BESIDE.fullmatch(name) else _renamed(name)
        if theirs is None:
            raise CheckpointError(
                f"{stored.file}: tensor {name!r} is none of Mistral Large 3 or Small 4 in this"
                " format; the checkpoint is of another model, or quantized as lmcast cannot read"
            )
        if KEY not in config and theirs.endswith((*SCALES.values(), *PACKED)):
            raise CheckpointError(
                f"{stored.file}: tensor {name!r} is of a quantized weight, but {shown} has no"
                " quantization"
            )
        if theirs != name and "text_config" in config:
            theirs = HUB(theirs)
        found[theirs] = dataclasses.replace(stored, name=theirs)
    return found


def _renamed(name: str) -> str | None:
    match = NAME.fullmatch(name)
    if match is None:
        return None
    layer, part, leaf = match.groups()
    if layer is None:
        module = OUTER.get(part)
    elif (block := FEED_FORWARD.fullmatch(part)) is not None:
        within = "mlp" if block[1] == "feed_forward" else f"mlp.{block[1]}"
        module = f"model.layers.{layer}.{within}.{PROJECTIONS[block[2]]}"
    else:
        module = f"model.layers.{layer}.{LAYER[part]}" if part in LAYER else None
    return None if module is None else f"{module}.{LEAVES[leaf]}"
