"""Pixtral of Mistral Small 3.1 and later: rotation on two axes, RMS norms, gated feed-forwards, and
a learned merge of patches."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lmcast.graphs.blocks.ffn import ACTIVATIONS, ActivationName, GatedMLP
from lmcast.graphs.blocks.norm import RMSNorm
from lmcast.graphs.blocks.patch_attention import PatchAttention, PatchRope, frequencies
from lmcast.graphs.blocks.rope import Rotation, rotate, rotate_pairs
from lmcast.graphs.blocks.tower import PatchEmbed, Tower, TowerLayer, TowerPart, tower_inputs
from lmcast.graphs.config.older_spellings import axial_rope, renamed
from lmcast.graphs.config.reading import ConfigError, Count, Layers, Positive, Size, parse
from lmcast.graphs.config.rope_parameters import AxialRope
from lmcast.graphs.towers.record import TowerArch
from lmcast.graphs.weights.bind import Table

EPS = 1e-5  # of every norm of the tower; no key says it


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    model_type: Literal["pixtral"] = "pixtral"
    hidden_size: Size = 1024
    intermediate_size: Size = 4096
    num_hidden_layers: Layers = 24
    num_attention_heads: Size = 16
    head_dim: Size | None = None
    num_channels: Literal[3] = 3
    image_size: Size = 1024
    patch_size: Size = 16
    hidden_act: ActivationName = "gelu"
    rope_parameters: AxialRope = field(default_factory=AxialRope)

    def __post_init__(self) -> None:
        width, rest = divmod(self.hidden_size, self.num_attention_heads)
        if rest or self.head_dim not in (None, width):
            raise ValueError(
                f"head_dim is {self.head_dim}, of {self.num_attention_heads} heads that divide a"
                f" hidden_size of {self.hidden_size}; accepted: hidden_size / num_attention_heads"
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    image_token_index: Count = 10
    projector_hidden_act: ActivationName = "gelu"
    vision_feature_layer: int = -1
    multimodal_projector_bias: bool = False
    spatial_merge_size: Size = 2
    vision_config: VisionConfig = VisionConfig(patch_size=14, image_size=1540)

    @property
    def layers(self) -> int:
        """How many layers are run: the projector reads what the last of them gives."""
        layers, chosen = self.vision_config.num_hidden_layers, self.vision_feature_layer
        return chosen if chosen >= 0 else layers + 1 + chosen

    def __post_init__(self) -> None:
        layers = self.vision_config.num_hidden_layers
        if not 1 <= self.layers <= layers:
            raise ValueError(
                f"vision_feature_layer is {self.vision_feature_layer}; accepted: one of the"
                f" {layers} layers, 1 to {layers} or -1 to -{layers}"
            )


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    out = renamed(raw, {"image_token_id": "image_token_index"})
    chosen = out.get("vision_feature_layer")
    if isinstance(chosen, list):  # of several, the projector's norm fits none in Hugging Face
        if len(chosen) != 1:
            raise ConfigError(
                f"config.json: vision_feature_layer is {chosen!r:.80}; accepted: a number, or a"
                " list of one"
            )
        out["vision_feature_layer"] = chosen[0]
    return axial_rope(out)


class Merger(TowerPart):
    """Norm, one linear map of the patches that merge, channel by channel, then the projector."""

    def __init__(self, c: Config, hidden_size: int, eps: float):
        super().__init__()
        dim, self.merged = c.vision_config.hidden_size, c.spatial_merge_size**2
        bias = c.multimodal_projector_bias
        self.norm = RMSNorm(dim, eps)
        self.merge = nn.Linear(dim * self.merged, dim, bias=False)
        self.up = nn.Linear(dim, hidden_size, bias=bias)
        self.down = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.act = c.projector_hidden_act

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).unflatten(1, (-1, self.merged)).transpose(2, 3)  # N,M,D,K
        x = self.merge(x.flatten(2)).flatten(0, 1)  # N*M,D
        down: Tensor = self.down(ACTIVATIONS[self.act](self.up(x)))
        return down


def _rope(width: int, theta: float) -> PatchRope:
    """Rows turn by every other frequency, in the first half of the pairs; columns by the rest."""
    own = frequencies(theta, width)
    if len(own) % 2:
        raise ValueError(f"heads of {width} numbers do not divide among two axes of pairs")
    still = torch.zeros_like(own[0::2])
    return PatchRope(torch.cat([own[0::2], still]), torch.cat([still, own[1::2]]))


def build(rotation: Rotation, c: Config, text: Any) -> Tower:
    """rotation: of the pairs of a head as they are stored. text: a Config with hidden_size and
    rms_norm_eps."""
    v = c.vision_config
    dim, patch, merged = v.hidden_size, v.patch_size, c.spatial_merge_size**2

    def layer() -> TowerLayer:
        return TowerLayer(
            pre_attention=RMSNorm(dim, EPS),
            attention=PatchAttention(dim, v.num_attention_heads, rotation=rotation),
            pre_ffn=RMSNorm(dim, EPS),
            ffn=GatedMLP(dim, v.intermediate_size, act=v.hidden_act),
        )

    return Tower(
        inputs=tower_inputs(3 * patch * patch, merged),
        embed=PatchEmbed(dim, (3, patch, patch), bias=False, norm=RMSNorm(dim, EPS)),
        positions=_rope(dim // v.num_attention_heads, v.rope_parameters.rope_theta),
        blocks=[layer() for _ in range(c.layers)],
        merger=Merger(c, text.hidden_size, text.rms_norm_eps),
    )


def beside(c: Config) -> tuple[str, ...]:
    """Layers behind the one that the projector reads."""
    unread = range(c.layers, c.vision_config.num_hidden_layers)
    return tuple(f"vision_tower.transformer.layers.{i}" for i in unread)


LAYERS = "vision_tower.transformer.layers.{i}"
WEIGHTS: Table = {
    "embed": "vision_tower.patch_conv",
    "embed.norm": "vision_tower.ln_pre",
    "blocks.{i}.pre_attention": f"{LAYERS}.attention_norm",
    "blocks.{i}.pre_ffn": f"{LAYERS}.ffn_norm",
    **{f"blocks.{{i}}.attention.{x}": f"{LAYERS}.attention.{x}_proj" for x in "qkvo"},
    **{f"blocks.{{i}}.ffn.{x}": f"{LAYERS}.feed_forward.{x}_proj" for x in ("gate", "up", "down")},
    "merger.norm": "multi_modal_projector.norm",
    "merger.merge": "multi_modal_projector.patch_merger.merging_layer",
    "merger.up": "multi_modal_projector.linear_1",
    "merger.down": "multi_modal_projector.linear_2",
}


@dataclass(frozen=True, kw_only=True)
class VisionEncoder:
    """The vision_encoder of Mistral's own params.json."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    patch_size: Size
    spatial_merge_size: Size
    rope_theta: Positive
    adapter_bias: bool
    mm_projector_id: Literal["patch_merge"]
    add_pre_mm_projector_layer_norm: Literal[True]
    num_channels: Literal[3] = 3
    image_size: Size = 1540
    max_image_size: Size | None = None
    image_token_id: Count = 10
    image_break_token_id: Count = 12
    image_end_token_id: Count = 13


def of_params(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with a vision_encoder in Hugging Face's words."""
    out = dict(raw)
    encoder = out.pop(ENCODER, None)
    if not isinstance(encoder, Mapping):
        raise ConfigError(f"config.json: {ENCODER} is {encoder!r:.80}; accepted: an object")
    v = parse(VisionEncoder, encoder, f"config.json: {ENCODER}.")
    return {
        **out,
        "image_token_index": v.image_token_id,
        "multimodal_projector_bias": v.adapter_bias,
        "spatial_merge_size": v.spatial_merge_size,
        "vision_config": {
            "hidden_size": v.hidden_size,
            "intermediate_size": v.intermediate_size,
            "num_hidden_layers": v.num_hidden_layers,
            "num_attention_heads": v.num_attention_heads,
            "image_size": v.max_image_size or v.image_size,
            "patch_size": v.patch_size,
            "hidden_act": "silu",
            "rope_parameters": {"rope_theta": v.rope_theta},
        },
    }


ENCODER = "vision_encoder"
OWN_LAYERS = f"{ENCODER}.transformer.layers.{{i}}"
OWN = TowerArch(  # Mistral's own format, which has queries and keys in pairs
    name="pixtral",
    config=Config,
    build=partial(build, rotate_pairs),
    modules=(ENCODER, "pre_mm_projector_norm", "patch_merger", "vision_language_adapter"),
    weights={
        "embed": f"{ENCODER}.patch_conv",
        "embed.norm": f"{ENCODER}.ln_pre",
        "blocks.{i}.pre_attention": f"{OWN_LAYERS}.attention_norm",
        "blocks.{i}.pre_ffn": f"{OWN_LAYERS}.ffn_norm",
        **{f"blocks.{{i}}.attention.{x}": f"{OWN_LAYERS}.attention.w{x}" for x in "qkvo"},
        "blocks.{i}.ffn.gate": f"{OWN_LAYERS}.feed_forward.w1",
        "blocks.{i}.ffn.up": f"{OWN_LAYERS}.feed_forward.w3",
        "blocks.{i}.ffn.down": f"{OWN_LAYERS}.feed_forward.w2",
        "merger.norm": "pre_mm_projector_norm",
        "merger.merge": "patch_merger.merging_layer",
        "merger.up": "vision_language_adapter.w_in",
        "merger.down": "vision_language_adapter.w_out",
    },
    tidy=of_params,
)
TOWER = TowerArch(
    name="pixtral",
    config=Config,
    build=partial(build, rotate),
    modules=("vision_tower", "multi_modal_projector"),
    weights=WEIGHTS,
    tidy=tidy,
    beside=beside,
    forms={f"{ENCODER}.": OWN},
)
