"""Llama 4's tower: a class token behind the patches, learned places and rotation in pairs, and two
feed-forwards behind a merge side by side."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmcast.graphs.blocks.ffn import PlainMLP
from lmcast.graphs.blocks.patch_attention import PatchAttention, PatchRope, frequencies
from lmcast.graphs.blocks.rope import rotate_pairs
from lmcast.graphs.blocks.tower import Tower, TowerLayer, TowerPart, tower_inputs
from lmcast.graphs.config.older_spellings import axial_rope, renamed
from lmcast.graphs.config.reading import Count, Layers, Size
from lmcast.graphs.config.rope_parameters import AxialRope
from lmcast.graphs.towers.record import TowerArch
from lmcast.graphs.weights.bind import Table
from lmcast.graphs.weights.sources import View
from lmcast.plugins.annotations import Range

EPS = 1e-5  # of every norm, whatever norm_eps says
GELU: Literal["gelu"] = "gelu"  # of every feed-forward, whatever hidden_act says
MERGED = 4  # two by two


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    model_type: Literal["llama4_vision_model"] = "llama4_vision_model"
    hidden_size: Size = 768
    intermediate_size: Size = 5632
    num_hidden_layers: Layers = 34
    num_attention_heads: Size = 16
    num_channels: Literal[3] = 3
    vision_output_dim: Size = 7680
    image_size: Size = 448
    patch_size: Size = 14
    pixel_shuffle_ratio: Annotated[float, Range(0.5, 0.5)] = 0.5
    projector_input_dim: Size = 4096
    projector_output_dim: Size = 4096
    rope_parameters: AxialRope = field(default_factory=AxialRope)

    @property
    def side(self) -> int:
        """Patches in a row of a tile."""
        return self.image_size // self.patch_size

    def __post_init__(self) -> None:
        if self.side < 2 or self.side % 2 or self.image_size % self.patch_size:
            raise ValueError(
                f"image_size is {self.image_size} in patches of {self.patch_size}; accepted: an"
                " even number of patches in a row, of which two by two become one token"
            )
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size is {self.hidden_size}; accepted: a multiple of 4 times"
                f" num_attention_heads, {4 * self.num_attention_heads}, for heads rotate in pairs"
                " on two axes"
            )
        # One key says the width of the layers' feed-forwards and that of four patches.
        if self.intermediate_size != MERGED * self.hidden_size:
            raise ValueError(
                f"intermediate_size is {self.intermediate_size}; accepted: 4 times hidden_size,"
                f" {MERGED * self.hidden_size}, the width of the patches that become one token"
            )
        widths = {self.projector_input_dim, self.projector_output_dim, self.vision_output_dim}
        if len(widths) > 1:
            raise ValueError(
                f"projector_input_dim, projector_output_dim and vision_output_dim are"
                f" {self.projector_input_dim}, {self.projector_output_dim} and"
                f" {self.vision_output_dim}; accepted: one number, for each is the width of what"
                " the next takes"
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    boi_token_index: Count = 200080
    eoi_token_index: Count = 200081
    image_token_index: Count = 200092
    vision_config: VisionConfig


TOKENS = {f"{name}_token_id": f"{name}_token_index" for name in ("boi", "eoi", "image")}


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    return axial_rope(renamed(raw, TOKENS))


class Embed(TowerPart):
    """The projected patches and the class token behind them, with their places, normed."""

    takes = ("patches", "rows", "columns")

    def __init__(self, dim: int, patch: int, side: int):
        super().__init__()
        self.side = side
        self.proj = nn.Linear(3 * patch * patch, dim, bias=False)
        self.token = nn.Parameter(torch.empty(dim))
        self.places = nn.Parameter(torch.empty(side * side + 1, dim))  # the last: of the token
        self.norm = nn.LayerNorm(dim, EPS)

    def forward(self, patches: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """patches N,M,K,E in fp32, rows and columns M,K int64 -> x N,S,D."""
        x = self.proj(patches.to(self.places.dtype).flatten(1, 2))
        x = x + F.embedding((rows * self.side + columns).flatten(), self.places)
        token = (self.token + self.places[-1]).expand(x.shape[0], 1, -1)
        return self.norm(torch.cat([x, token], 1))


class Merger(TowerPart):
    """Norm, four patches side by side, two linear maps with an exact GELU each, one without."""

    def __init__(self, c: VisionConfig, hidden_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(c.hidden_size, EPS)
        self.up = nn.Linear(MERGED * c.hidden_size, c.projector_input_dim, bias=False)
        self.down = nn.Linear(c.projector_output_dim, c.projector_output_dim, bias=False)
        self.proj = nn.Linear(c.vision_output_dim, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x[:, :-1]).unflatten(1, (-1, MERGED)).flatten(2).flatten(0, 1)  # N*M,4*D
        proj: Tensor = self.proj(F.gelu(self.down(F.gelu(self.up(x)))))
        return proj


def _rope(width: int, theta: float) -> PatchRope:
    """Columns turn the first half of the pairs, rows the second; both count from 1."""
    own = frequencies(theta, width // 2)
    still = torch.zeros_like(own)
    return PatchRope(torch.cat([still, own]), torch.cat([own, still]), first=1, unturned=1)


def build(c: Config, text: Any) -> Tower:
    """text: a Config with hidden_size."""
    v = c.vision_config
    dim, patch = v.hidden_size, v.patch_size

    def layer() -> TowerLayer:
        return TowerLayer(
            pre_attention=nn.LayerNorm(dim, EPS),
            attention=PatchAttention(dim, v.num_attention_heads, rotation=rotate_pairs, bias=True),
            pre_ffn=nn.LayerNorm(dim, EPS),
            ffn=PlainMLP(dim, v.intermediate_size, act=GELU, bias=True),
        )

    return Tower(
        inputs=tower_inputs(3 * patch * patch, MERGED),
        embed=Embed(dim, patch, v.side),
        positions=_rope(dim // v.num_attention_heads, v.rope_parameters.rope_theta),
        blocks=[layer() for _ in range(v.num_hidden_layers)],
        merger=Merger(v, text.hidden_size),
    )


LAYERS = "vision_model.model.layers.{i}"
WEIGHTS: Table = {
    "embed.proj": "vision_model.patch_embedding.linear",
    "embed.token": View("vision_model.class_embedding"),
    "embed.places": View("vision_model.positional_embedding_vlm"),
    "embed.norm": "vision_model.layernorm_pre",
    "blocks.{i}.pre_attention": f"{LAYERS}.input_layernorm",
    "blocks.{i}.pre_ffn": f"{LAYERS}.post_attention_layernorm",
    **{f"blocks.{{i}}.attention.{x}": f"{LAYERS}.self_attn.{x}_proj" for x in "qkvo"},
    "blocks.{i}.ffn.up": f"{LAYERS}.mlp.fc1",
    "blocks.{i}.ffn.down": f"{LAYERS}.mlp.fc2",
    "merger.norm": "vision_model.layernorm_post",
    "merger.up": "vision_model.vision_adapter.mlp.fc1",
    "merger.down": "vision_model.vision_adapter.mlp.fc2",
    "merger.proj": "multi_modal_projector.linear_1",
}

TOWER = TowerArch(
    name="llama4_vision",
    config=Config,
    build=build,
    modules=("vision_model", "multi_modal_projector"),
    weights=WEIGHTS,
    tidy=tidy,
    inert={
        f"vision_config.{key}": accepted
        for key, accepted in {
            "hidden_act": Literal["gelu"],
            "multi_modal_projector_bias": Literal[False],
            "norm_eps": float,
            "projector_dropout": float,
            "vision_feature_layer": Literal[-1],
            "vision_feature_select_strategy": Literal["default"],
        }.items()
    },
)
