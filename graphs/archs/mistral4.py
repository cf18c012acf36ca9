"""Mistral Small 4 and Mistral Large 3 (text): DeepSeek V3's layers, routed by a softmax; queries
grow with the logarithm of the position."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.blocks.rope import temperature
from lmcast.graphs.config.reading import Arch, ConfigError, Count, Experts, Size
from lmcast.graphs.config.rope_parameters import TemperedRope
from lmcast.graphs.families.latents import Latents, beside
from lmcast.graphs.families.latents import tidy as latents
from lmcast.graphs.families.latents import weights as of_deepseek
from lmcast.graphs.weights.bind import PER_EXPERT, Table
from lmcast.graphs.weights.experts import either, out_first

# What Hugging Face takes where a config says nothing of positions.
POSITIONS = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 128.0,
    "original_max_position_embeddings": 8192,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


@dataclass(frozen=True, kw_only=True)
class Config(Latents):
    rope_parameters: TemperedRope
    num_experts_per_tok: Experts = 4
    first_k_dense_replace: Count = 0
    num_nextn_predict_layers: Count = 0
    max_position_embeddings: Size = 1048576


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Also without partial_rotary_factor: of the whole head, it says qk_rope_head_dim again."""
    given = raw.get("rope_scaling") or raw.get("rope_parameters")
    turned, rest = raw.get("qk_rope_head_dim", 0), raw.get("qk_nope_head_dim", 0)
    counts = type(turned) is int and type(rest) is int and turned > 0 and rest > 0
    share = turned / (turned + rest) if counts else 1.0
    out = latents(raw if given else {**raw, "rope_parameters": POSITIONS}, share)
    partial = out["rope_parameters"].pop("partial_rotary_factor", share)
    if partial != share:
        raise ConfigError(
            f"config.json: rope_parameters.partial_rotary_factor is {partial!r:.80}; accepted:"
            f" {share}, the share of qk_rope_head_dim in a head"
        )
    return out


def build(c: Config) -> Decoder:
    rope, layers = c.rope(), range(c.num_hidden_layers)
    tempered = temperature(c.rope_parameters, c.max_position_embeddings)
    mixers = [c.attention(rope, temperature=tempered) for _ in layers]
    return c.decoder(mixers, [i >= c.first_k_dense_replace for i in layers])


def weights(c: Config) -> Table:
    stacks = out_first("model.layers.{i}.mlp.experts", c.moe_intermediate_size)
    return {**of_deepseek(c), **either(stacks, PER_EXPERT)}


ARCH = Arch(name="mistral4", config=Config, build=build, weights=weights, tidy=tidy, beside=beside)
