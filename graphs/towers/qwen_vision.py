"""The tower of Qwen3.5 and Qwen3-VL: a learned grid of places that is interpolated, rotation on two
axes, LayerNorms, and pairs of frames as patches."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lmcast.graphs.blocks.ffn import ActivationName, PlainMLP
from lmcast.graphs.blocks.patch_attention import PatchAttention, PatchRope, frequencies
from lmcast.graphs.blocks.rope import rotate_wide
from lmcast.graphs.blocks.step import ROPE_POSITIONS
from lmcast.graphs.blocks.tower import (
    ConcatMerger,
    MixedRows,
    PatchEmbed,
    Tower,
    TowerLayer,
    TowerPart,
    tower_inputs,
)  # fmt: skip
from lmcast.graphs.config.older_spellings import axial_rope
from lmcast.graphs.config.reading import Count, Layers, Size
from lmcast.graphs.config.rope_parameters import AxialRope
from lmcast.graphs.towers.record import TowerArch, side_by_side
from lmcast.graphs.weights.bind import Entry, Table

EPS = 1e-6  # of every norm; no key says it
TAPS = 4  # bilinear


@dataclass(frozen=True, kw_only=True)
class VisionKeys:
    depth: Layers = 27
    hidden_size: Size = 1152
    hidden_act: ActivationName = "gelu_pytorch_tanh"
    intermediate_size: Size = 4304
    num_heads: Size = 16
    in_channels: Literal[3] = 3
    patch_size: Size = 16
    spatial_merge_size: Size = 2
    temporal_patch_size: Size = 2
    out_hidden_size: Size = 3584
    num_position_embeddings: Size = 2304
    rope_parameters: AxialRope = field(default_factory=AxialRope)

    def __post_init__(self) -> None:
        if isqrt(self.num_position_embeddings) ** 2 != self.num_position_embeddings:
            raise ValueError(
                f"num_position_embeddings is {self.num_position_embeddings}; accepted: the square"
                " of a number, for places lie on a square grid"
            )
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"hidden_size is {self.hidden_size}; accepted: a multiple of 4 times num_heads,"
                f" {4 * self.num_heads}, for heads rotate in pairs on two axes"
            )


@dataclass(frozen=True, kw_only=True)
class VisionConfig(VisionKeys):
    # Files have the name of the whole model, too, and that of the one without experts.
    model_type: Literal[
        "qwen3_5_vision", "qwen3_5", "qwen3_5_moe_vision", "qwen3_5_moe"
    ] = "qwen3_5_vision"  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    image_token_id: Count = 248056
    video_token_id: Count = 248057
    vision_start_token_id: Count = 248053
    vision_end_token_id: Count = 248054
    vision_config: VisionConfig = VisionConfig()


@dataclass(frozen=True, kw_only=True)
class DeepstackVisionConfig(VisionKeys):
    """Of Qwen3-VL, whose features of some blocks are added behind the first layers of the text."""

    model_type: Literal[
        "qwen3_vl_vision", "qwen3_vl", "qwen3_vl_moe_vision", "qwen3_vl_moe"
    ] = "qwen3_vl_vision"  # fmt: skip
    deepstack_visual_indexes: tuple[Count, ...] = (8, 16, 24)

    def __post_init__(self) -> None:
        super().__post_init__()
        found = self.deepstack_visual_indexes
        if list(found) != sorted({*found}) or not all(index < self.depth for index in found):
            raise ValueError(
                f"deepstack_visual_indexes is {list(found)}; accepted: ascending indices below the"
                f" depth, {self.depth}"
            )


@dataclass(frozen=True, kw_only=True)
class DeepstackConfig:
    image_token_id: Count = 151655
    video_token_id: Count = 151656
    vision_start_token_id: Count = 151652
    vision_end_token_id: Count = 151653
    vision_config: DeepstackVisionConfig = DeepstackVisionConfig()


class DeepMerger(TowerPart):
    """The features of the last block, and behind them on the last axis those of earlier blocks,
    each merged by weights of its own: N*M,H for each."""

    def __init__(self, last: ConcatMerger, deep: Sequence[ConcatMerger]):
        super().__init__()
        self.last, self.deep = last, nn.ModuleList(deep)

    def forward(self, x: Tensor, *kept: Tensor) -> Tensor:
        """x, kept: N,S,D -> N*M,(1 + depth)*H."""
        features = [merger(of) for merger, of in zip(self.deep, kept, strict=True)]
        return torch.cat([self.last(x), *features], -1)


def _rope(width: int, theta: float) -> PatchRope:
    """Rows turn the first half of the pairs, columns the second, by the same frequencies."""
    own = frequencies(theta, width // 2)
    still = torch.zeros_like(own)
    return PatchRope(torch.cat([own, still]), torch.cat([still, own]))


def build(c: Config | DeepstackConfig, text: Any) -> Tower:
    """text: a Config with hidden_size."""
    v = c.vision_config
    if v.out_hidden_size != text.hidden_size:
        raise ValueError(
            f"vision_config.out_hidden_size is {v.out_hidden_size}; accepted: the hidden_size of"
            f" text_config, {text.hidden_size}"
        )
    deepstack = v.deepstack_visual_indexes if isinstance(v, DeepstackVisionConfig) else ()
    dim, patch, merged = v.hidden_size, v.patch_size, v.spatial_merge_size**2
    kernel, side = (3, v.temporal_patch_size, patch, patch), isqrt(v.num_position_embeddings)

    def norm(width: int = dim) -> nn.LayerNorm:
        return nn.LayerNorm(width, EPS)

    def layer() -> TowerLayer:
        return TowerLayer(
            pre_attention=norm(),
            attention=PatchAttention(dim, v.num_heads, rotation=rotate_wide, bias=True),
            pre_ffn=norm(),
            ffn=PlainMLP(dim, v.intermediate_size, act=v.hidden_act, bias=True),
        )

    def deep() -> ConcatMerger:
        return ConcatMerger(dim, merged, text.hidden_size, late_norm=norm(merged * dim))

    merger = ConcatMerger(dim, merged, text.hidden_size, norm=norm())
    return Tower(
        inputs=tower_inputs(3 * v.temporal_patch_size * patch * patch, merged, taps=TAPS),
        embed=PatchEmbed(dim, kernel, bias=True, places=MixedRows((side * side,), dim)),
        positions=_rope(dim // v.num_heads, v.rope_parameters.rope_theta),
        blocks=[layer() for _ in range(v.depth)],
        merger=DeepMerger(merger, [deep() for _ in deepstack]) if deepstack else merger,
        keeps=deepstack,
    )


def weights(c: Config | DeepstackConfig) -> Table:
    blocks, dim = "visual.blocks.{i}", c.vision_config.hidden_size
    table: dict[str, Entry] = {
        "embed": "visual.patch_embed.proj",
        "embed.places": "visual.pos_embed",
        "blocks.{i}.pre_attention": f"{blocks}.norm1",
        "blocks.{i}.pre_ffn": f"{blocks}.norm2",
        "blocks.{i}.attention.o": f"{blocks}.attn.proj",
        "blocks.{i}.ffn.up": f"{blocks}.mlp.linear_fc1",
        "blocks.{i}.ffn.down": f"{blocks}.mlp.linear_fc2",
    }
    table |= side_by_side("blocks.{i}.attention", f"{blocks}.attn.qkv", dim)
    mergers = {
        "merger": "visual.merger",
        "merger.last": "visual.merger",
        "merger.deep.{i}": "visual.deepstack_merger_list.{i}",
    }
    for ours, theirs in mergers.items():
        table |= {
            f"{ours}.norm": f"{theirs}.norm",
            f"{ours}.late_norm": f"{theirs}.norm",
            f"{ours}.up": f"{theirs}.linear_fc1",
            f"{ours}.down": f"{theirs}.linear_fc2",
        }
    return table


TOWER = TowerArch(
    name="qwen_vision",
    config=Config,
    build=build,
    modules=("visual",),
    weights=weights,
    tidy=axial_rope,
    text_inputs=(ROPE_POSITIONS,),
)


def depth(c: DeepstackConfig) -> int:
    return len(c.vision_config.deepstack_visual_indexes)


DEEPSTACK = replace(TOWER, config=DeepstackConfig, depth=depth)
