"""MoonViT of Kimi K2.5: a learned grid of places that is interpolated, a vector for each frame of a
clip, rotation in pairs on two axes, and the mean over the frames."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lmcast.graphs.blocks.ffn import ActivationName, PlainMLP
from lmcast.graphs.blocks.patch_attention import PatchAttention, PatchRope, frequencies
from lmcast.graphs.blocks.rope import Rotation, rotate_pairs, rotate_wide
from lmcast.graphs.blocks.tower import (
    ConcatMerger,
    MixedRows,
    PatchEmbed,
    Tower,
    TowerLayer,
    TowerPart,
    tower_inputs,
)  # fmt: skip
from lmcast.graphs.config.older_spellings import axial_rope, renamed
from lmcast.graphs.config.reading import ConfigError, Count, Layers, Positive, Size
from lmcast.graphs.config.rope_parameters import AxialRope
from lmcast.graphs.towers.record import TowerArch, side_by_side
from lmcast.graphs.weights.bind import Entry, Table
from lmcast.graphs.weights.sources import View

EPS = 1e-5  # of the norms of the tower; no key says it
TAPS = 16  # bicubic
MERGED = 4  # two by two
THETA = 10000.0  # of the frames, whatever turns the patches


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    model_type: Literal["kimi_k25_vision", "kimi_k25", "moonvit3d", ""] = "kimi_k25_vision"
    patch_size: Size = 14
    pos_emb_height: Size = 64
    pos_emb_width: Size = 64
    pos_emb_time: Size = 4
    num_attention_heads: Size = 16
    num_hidden_layers: Layers = 27
    hidden_size: Size = 1152
    intermediate_size: Size = 4304
    hidden_act: ActivationName = "gelu_pytorch_tanh"
    merge_kernel_size: tuple[Literal[2], Literal[2]] = (2, 2)
    rope_parameters: AxialRope = field(default_factory=AxialRope)
    text_hidden_size: Size | None = None

    def __post_init__(self) -> None:
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size is {self.hidden_size}; accepted: a multiple of 4 times"
                f" num_attention_heads, {4 * self.num_attention_heads}, for heads rotate in pairs"
                " on two axes"
            )
        # Hugging Face interpolates as on a square, and takes the height for both.
        if self.pos_emb_height != self.pos_emb_width:
            raise ValueError(
                f"pos_emb_height is {self.pos_emb_height}, pos_emb_width {self.pos_emb_width};"
                " accepted: one number"
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    image_token_id: Count = 163605
    video_token_id: Count = 163840
    vision_start_token_id: Count = 163602
    vision_end_token_id: Count = 163604
    video_placeholder: str = "<|kimi_k25_video_placeholder|>"
    projection_hidden_size: Size | None = None
    projection_layer_norm_eps: Positive = 1e-5
    vision_config: VisionConfig = field(default_factory=VisionConfig)

    def __post_init__(self) -> None:
        width = self.vision_config.hidden_size
        if self.projection_hidden_size not in (None, width):
            raise ValueError(
                f"projection_hidden_size is {self.projection_hidden_size}; accepted: the"
                f" hidden_size of vision_config, {width}"
            )


# Spellings of the hub -> Hugging Face's: of the tower; and of what lies beside it there.
OF_VISION = {
    **{f"init_pos_emb_{axis}": f"pos_emb_{axis}" for axis in ("height", "width", "time")},
    **{
        f"vt_{key}": key
        for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    },
}
OF_PROJECTOR = {
    "mm_hidden_size": "projection_hidden_size",
    "projector_ln_eps": "projection_layer_norm_eps",
}


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    out = renamed(raw, {"media_placeholder_token_id": "image_token_id"})
    vision = out.get("vision_config")
    if not isinstance(vision, Mapping):
        return out
    try:
        own = renamed(vision, OF_VISION)
    except ConfigError as error:
        message = str(error).replace("config.json: ", "config.json: vision_config.", 1)
        raise ConfigError(message) from None
    # None of a released file, which names no type.
    if own.get("model_type", "") is None:
        del own["model_type"]
    outer = {f"vision_config.{key}": own.pop(key) for key in OF_PROJECTOR if key in own}
    names = {f"vision_config.{key}": name for key, name in OF_PROJECTOR.items()}
    return axial_rope(renamed({**out, **outer, "vision_config": own}, names))


class Places(TowerPart):
    """The mixed rows of a learned grid, and for clips one sinusoid of each frame."""

    takes = (*MixedRows.takes, "frames")

    def __init__(self, grid: tuple[int, int], dim: int):
        super().__init__()
        self.grid = MixedRows(grid, dim)
        self.frequency = frequencies(THETA, dim)

    def forward(self, taps: Tensor, weights: Tensor, frames: Tensor) -> Tensor:
        """taps, weights: of MixedRows. frames M,K int64: 0 for a picture, from 1 on in a clip ->
        S,D."""
        counted = frames.flatten()[:, None]  # S,1
        angle = (counted - 1).float() * self.frequency.to(frames.device)  # S,D/2
        time = torch.cat([angle.sin(), angle.cos()], -1)
        time = torch.where(counted > 0, time, 0.0)
        return (self.grid(taps, weights) + time).to(self.grid.weight.dtype)


class Merger(TowerPart):
    """Norm, the mean over the frames of a clip, then four patches side by side."""

    takes = ("frames",)

    def __init__(self, dim: int, hidden_size: int, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim, EPS)
        self.project = ConcatMerger(dim, MERGED, hidden_size, norm=nn.LayerNorm(dim, eps))

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        """x N,S,D; frames M,K, of which only the sizes count -> N*M,H."""
        x = self.norm(x).unflatten(1, frames.shape)  # N,M,K,D
        x = x.unflatten(2, (-1, MERGED)).mean(2)  # N,M,4,D
        merged: Tensor = self.project(x.flatten(1, 2))
        return merged


def _rope(width: int, theta: float) -> PatchRope:
    """Columns turn the even pairs, rows the odd ones, by the same frequencies."""
    own = frequencies(theta, width // 2)
    still = torch.zeros_like(own)
    rows, columns = torch.stack([still, own], 1), torch.stack([own, still], 1)
    return PatchRope(rows.flatten(), columns.flatten())


def build(rotation: Rotation, c: Config, text: Any) -> Tower:
    """rotation: of the pairs of a head as they are stored. text: a Config with hidden_size."""
    v = c.vision_config
    if v.text_hidden_size not in (None, text.hidden_size):
        raise ValueError(
            f"vision_config.text_hidden_size is {v.text_hidden_size}; accepted: the hidden_size of"
            f" text_config, {text.hidden_size}"
        )
    dim, patch = v.hidden_size, v.patch_size
    places = Places((v.pos_emb_height, v.pos_emb_width), dim)

    def layer() -> TowerLayer:
        return TowerLayer(
            pre_attention=nn.LayerNorm(dim, EPS),
            attention=PatchAttention(dim, v.num_attention_heads, rotation=rotation, bias=True),
            pre_ffn=nn.LayerNorm(dim, EPS),
            ffn=PlainMLP(dim, v.intermediate_size, act=v.hidden_act, bias=True),
        )

    return Tower(
        inputs=tower_inputs(3 * patch * patch, "K", taps=TAPS, frames=True),
        embed=PatchEmbed(dim, (3, patch, patch), bias=True, places=places),
        positions=_rope(dim // v.num_attention_heads, v.rope_parameters.rope_theta),
        blocks=[layer() for _ in range(v.num_hidden_layers)],
        merger=Merger(dim, text.hidden_size, c.projection_layer_norm_eps),
    )


def weights(c: Config) -> Table:
    """As files of the hub have them."""
    blocks = "vision_tower.encoder.blocks.{i}"
    table: dict[str, Entry] = {
        "embed": "vision_tower.patch_embed.proj",
        "embed.places.grid": "vision_tower.patch_embed.pos_emb",
        "blocks.{i}.pre_attention": f"{blocks}.norm0",
        "blocks.{i}.pre_ffn": f"{blocks}.norm1",
        "blocks.{i}.attention.o": f"{blocks}.wo",
        "blocks.{i}.ffn.up": f"{blocks}.mlp.fc0",
        "blocks.{i}.ffn.down": f"{blocks}.mlp.fc1",
        "merger.norm": "vision_tower.encoder.final_layernorm",
        "merger.project.norm": "mm_projector.pre_norm",
        "merger.project.up": "mm_projector.proj.0",
        "merger.project.down": "mm_projector.proj.2",
    }
    return table | side_by_side(
        "blocks.{i}.attention", f"{blocks}.wqkv", c.vision_config.hidden_size
    )


LAYERS = "vision_tower.layers.{i}"
BY_MODULE: Table = {
    "embed": "vision_tower.patch_embed.proj",
    "embed.places.grid.weight": View("vision_tower.patch_embed.pos_emb.position_embeddings"),
    "blocks.{i}.pre_attention": f"{LAYERS}.norm1",
    "blocks.{i}.pre_ffn": f"{LAYERS}.norm2",
    **{f"blocks.{{i}}.attention.{x}": f"{LAYERS}.attn.{x}_proj" for x in "qkv"},
    "blocks.{i}.attention.o": f"{LAYERS}.attn.proj",
    "blocks.{i}.ffn.up": f"{LAYERS}.mlp.fc1",
    "blocks.{i}.ffn.down": f"{LAYERS}.mlp.fc2",
    "merger.norm": "vision_tower.final_layernorm",
    "merger.project.norm": "mm_projector.pre_norm",
    "merger.project.up": "mm_projector.in_proj",
    "merger.project.down": "mm_projector.out_proj",
}
# As Hugging Face's modules have it, which reorder queries and keys from pairs to halves.
MODULES = TowerArch(
    name="moonvit",
    config=Config,
    build=partial(build, rotate_wide),
    modules=("vision_tower", "mm_projector"),
    weights=BY_MODULE,
    tidy=tidy,
    inert={
        "ignore_index": int,
        "use_unified_vision_chunk": bool,
        **{
            f"vision_config.{key}": Literal[value]
            for key, value in {
                "merge_type": "sd2_tpool",
                "mm_projector_type": "patchmerger",
                "pos_emb_type": "divided_fixed",
                "projector_hidden_act": "gelu",
                "video_attn_type": "spatial_temporal",
            }.items()
        },
    },
)
TOWER = replace(
    MODULES,
    build=partial(build, rotate_pairs),
    weights=weights,
    forms={"vision_tower.layers.": MODULES},
)
