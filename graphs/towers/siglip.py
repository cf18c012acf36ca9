"""SigLIP of Gemma 3: learned places on a fixed grid, and the mean of blocks of patches."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmcast.graphs.blocks.ffn import ActivationName, PlainMLP
from lmcast.graphs.blocks.norm import WideRMSNorm
from lmcast.graphs.blocks.patch_attention import PatchAttention
from lmcast.graphs.blocks.step import ENDS
from lmcast.graphs.blocks.tower import PatchEmbed, Tower, TowerLayer, TowerPart, tower_inputs
from lmcast.graphs.config.older_spellings import renamed
from lmcast.graphs.config.reading import Count, Layers, Positive, Size
from lmcast.graphs.towers.record import TowerArch
from lmcast.graphs.weights.bind import Table
from lmcast.graphs.weights.sources import View


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    model_type: Literal["siglip_vision_model"] = "siglip_vision_model"
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: Layers = 12
    num_attention_heads: Size = 12
    num_channels: Literal[3] = 3
    image_size: Size = 224
    patch_size: Size = 16
    hidden_act: ActivationName = "gelu_pytorch_tanh"
    layer_norm_eps: Positive = 1e-6
    vision_use_head: bool = True  # of a head that no feature comes from

    @property
    def side(self) -> int:
        """Patches in a row."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class Config:
    mm_tokens_per_image: Size = 256
    boi_token_index: Count = 255999
    eoi_token_index: Count = 256000
    image_token_index: Count = 262144
    vision_config: VisionConfig = field(default_factory=VisionConfig)

    @property
    def block(self) -> int:
        """Patches in a row of those that become one token."""
        return self.vision_config.side // isqrt(self.mm_tokens_per_image)

    def __post_init__(self) -> None:
        v, tokens = self.vision_config, isqrt(self.mm_tokens_per_image)
        whole = v.side and v.side % tokens == 0 and v.image_size % v.patch_size == 0
        if tokens**2 != self.mm_tokens_per_image or not whole:
            raise ValueError(
                f"mm_tokens_per_image is {self.mm_tokens_per_image}, of an image_size of"
                f" {v.image_size} in patches of {v.patch_size}; accepted: a square of tokens among"
                " which the patches divide"
            )


TOKENS = {f"{name}_token_id": f"{name}_token_index" for name in ("boi", "eoi", "image")}


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    return renamed(raw, TOKENS)


class GridRows(TowerPart):
    """A learned vector for each place of a grid of `side` columns."""

    takes = ("rows", "columns")

    def __init__(self, side: int, dim: int):
        super().__init__()
        self.side, self.weight = side, nn.Parameter(torch.empty(side * side, dim))

    def forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        """rows, columns M,K int64 -> S,D."""
        return F.embedding((rows * self.side + columns).flatten(), self.weight)


class Merger(TowerPart):
    """Norm, the mean of the patches that become one token, Gemma's norm and one linear map."""

    def __init__(self, dim: int, hidden_size: int, merged: int, eps: float):
        super().__init__()
        self.norm, self.merged = nn.LayerNorm(dim, eps), merged
        self.late_norm = WideRMSNorm(dim, eps, offset=1.0)
        self.weight = nn.Parameter(torch.empty(dim, hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).unflatten(1, (-1, self.merged)).mean(2)  # N,M,D
        return torch.matmul(self.late_norm(x).flatten(0, 1), self.weight)  # N*M,H


def build(c: Config, text: Any) -> Tower:
    """text: a Config with hidden_size."""
    v = c.vision_config
    dim, patch, eps = v.hidden_size, v.patch_size, v.layer_norm_eps

    def layer() -> TowerLayer:
        return TowerLayer(
            pre_attention=nn.LayerNorm(dim, eps),
            attention=PatchAttention(dim, v.num_attention_heads, bias=True),
            pre_ffn=nn.LayerNorm(dim, eps),
            ffn=PlainMLP(dim, v.intermediate_size, act=v.hidden_act, bias=True),
        )

    return Tower(
        inputs=tower_inputs(3 * patch * patch, c.block**2),
        embed=PatchEmbed(dim, (3, patch, patch), bias=True, places=GridRows(v.side, dim)),
        positions=None,
        blocks=[layer() for _ in range(v.num_hidden_layers)],
        merger=Merger(dim, text.hidden_size, c.block**2, eps),
    )


def weights(tower: str) -> Table:
    """tower: the module within the checkpoint."""
    layers = f"{tower}.encoder.layers.{{i}}"
    return {
        "embed": f"{tower}.embeddings.patch_embedding",
        "embed.places": f"{tower}.embeddings.position_embedding",
        "blocks.{i}.pre_attention": f"{layers}.layer_norm1",
        "blocks.{i}.pre_ffn": f"{layers}.layer_norm2",
        **{f"blocks.{{i}}.attention.{x}": f"{layers}.self_attn.{x}_proj" for x in "qkv"},
        "blocks.{i}.attention.o": f"{layers}.self_attn.out_proj",
        "blocks.{i}.ffn.up": f"{layers}.mlp.fc1",
        "blocks.{i}.ffn.down": f"{layers}.mlp.fc2",
        "merger.norm": f"{tower}.post_layernorm",
        "merger.late_norm": "multi_modal_projector.mm_soft_emb_norm",
        "merger.weight": View("multi_modal_projector.mm_input_projection_weight"),
    }


LATER = TowerArch(  # as transformers 5 writes it
    name="siglip",
    config=Config,
    build=build,
    modules=("vision_tower", "multi_modal_projector"),
    weights=weights("vision_tower"),
    tidy=tidy,
    beside=("vision_tower.head",),
    text_inputs=(ENDS,),
)
HUB = "vision_tower.vision_model"
TOWER = replace(
    LATER,
    weights=weights(HUB),
    beside=(f"{HUB}.head",),
    forms={f"vision_tower.{module}.": LATER for module in ("embeddings", "encoder")},
)
