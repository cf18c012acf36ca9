"""The Universal Speech Model (arXiv 2303.01037): the sound of Gemma 3n, by a conformer.

Letters: N clips of one length, L frames of 10 ms, S frames within the tower, M tokens of a clip, D
width of the tower, H width of the text.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lmcast.graphs.blocks.conformer import ConformerBlock, LightConv, NearAttention, Subsampling
from lmcast.graphs.blocks.multimodal_embedder import HardTokens, SoftTokens, hard_weights
from lmcast.graphs.blocks.tower import Tower, TowerPart
from lmcast.graphs.config.inert import at_any_value
from lmcast.graphs.config.reading import Count, Layers, Positive, Size
from lmcast.graphs.towers.record import TowerArch
from lmcast.graphs.weights.bind import Table
from lmcast.graphs.weights.sources import View

Pair = tuple[Size, Size]  # of frames and bands


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    model_type: Literal["gemma3n_audio"] = "gemma3n_audio"
    vocab_size: Size = 128
    vocab_offset: Count = 262272
    input_feat_size: Size = 128
    hidden_size: Size = 1536
    rms_norm_eps: Positive = 1e-6
    gradient_clipping: Positive = 1e10
    conf_attention_context_left: Count = 13  # with the frame itself
    conf_attention_context_right: Count = 0
    conf_attention_logit_cap: Positive = 50.0
    conf_num_attention_heads: Size = 8
    conf_num_hidden_layers: Layers = 12
    conf_conv_kernel_size: Size = 5
    conf_reduction_factor: Size = 4
    conf_residual_weight: float = 0.5
    sscp_conv_channel_size: tuple[Size, Size] = (128, 32)
    sscp_conv_group_norm_eps: Positive = 1e-3
    sscp_conv_kernel_size: tuple[Pair, Pair] = ((3, 3), (3, 3))
    sscp_conv_stride_size: tuple[Pair, Pair] = ((2, 2), (2, 2))


@dataclass(frozen=True, kw_only=True)
class Config:
    audio_token_id: Count = 262273
    boa_token_id: Count = 256000
    eoa_token_id: Count = 262272
    audio_soft_tokens_per_image: Size = 188
    audio_config: AudioConfig = AudioConfig()


class Stem(TowerPart):
    """Log-mel frames N,L,Q in fp32 -> N,S,D: two convolutions that stride, and a linear map."""

    takes = ("mel",)

    def __init__(self, a: AudioConfig):
        super().__init__()
        channels, bands, steps = 1, a.input_feat_size, []
        for out, kernel, stride in zip(
            a.sscp_conv_channel_size,
            a.sscp_conv_kernel_size,
            a.sscp_conv_stride_size,
            strict=True,
        ):
            steps.append(Subsampling(channels, out, kernel, stride, a.sscp_conv_group_norm_eps))
            channels, bands = out, steps[-1].bands(bands)
        self.steps = nn.ModuleList(steps)
        self.project = nn.Linear(channels * bands, a.hidden_size, bias=False)

    def forward(self, mel: Tensor) -> Tensor:
        x = mel.to(self.project.weight.dtype)[:, None]
        for step in self.steps:
            x = step(x)
        x = x.transpose(1, 2).transpose(2, 3).flatten(2)  # N,S,bands * channels
        y: Tensor = self.project(x)
        return y


class Merger(TowerPart):
    """Every `step`-th frame, into the text."""

    def __init__(self, step: int, into: SoftTokens):
        super().__init__()
        self.step, self.into = step, into

    def forward(self, x: Tensor) -> Tensor:
        """x N,S,D -> N*M,H."""
        y: Tensor = self.into(x[:, :: self.step].flatten(0, 1))
        return y


def tokens(c: Config, text: Any) -> HardTokens:
    """Return the ids around sounds; text: a Config with hidden_size and vocab_size.

    Raises ValueError where the text's last id, which fills up short sounds, is not the last of
    these.
    """
    a = c.audio_config
    if a.vocab_offset + a.vocab_size != text.vocab_size:
        raise ValueError(
            f"vocab_size is {text.vocab_size}, and ids of audio_config are {a.vocab_size} from"
            f" {a.vocab_offset} on; accepted: ids that end there, too"
        )
    own = a.vocab_offset, a.vocab_size, a.hidden_size
    return HardTokens(*own, text.hidden_size, a.rms_norm_eps)


def build(c: Config, text: Any) -> Tower:
    """text: a Config with hidden_size."""
    a = c.audio_config
    dim, most = a.hidden_size, a.gradient_clipping

    def block() -> ConformerBlock:
        attention = NearAttention(
            dim,
            a.conf_num_attention_heads,
            past=max(a.conf_attention_context_left - 1, 0),
            future=a.conf_attention_context_right,
            cap=a.conf_attention_logit_cap,
        )
        conv = LightConv(dim, a.conf_conv_kernel_size, a.rms_norm_eps, most)
        return ConformerBlock(attention, conv, dim, a.conf_residual_weight, most)

    return Tower(
        inputs={"mel": (("N", "L", a.input_feat_size), torch.float32)},
        embed=Stem(a),
        positions=None,
        blocks=[block() for _ in range(a.conf_num_hidden_layers)],
        merger=Merger(a.conf_reduction_factor, SoftTokens(dim, text.hidden_size, a.rms_norm_eps)),
    )


BLOCK = "audio_tower.conformer.{i}"
PARTS = {
    **{
        f"{ours}.{part}": f"ffw_layer_{theirs}.{name}"
        for ours, theirs in (("first", "start"), ("last", "end"))
        for part, name in (
            ("pre", "pre_layer_norm"),
            ("up", "ffw_layer_1"),
            ("down", "ffw_layer_2"),
            ("post", "post_layer_norm"),
        )
    },
    "pre": "attention.pre_attn_norm",
    **{f"attention.{x}": f"attention.attn.{x}_proj" for x in "qkv"},
    "attention.position": "attention.attn.relative_position_embedding.pos_proj",
    "o": "attention.post",
    "post": "attention.post_norm",
    "conv.pre": "lconv1d.pre_layer_norm",
    "conv.start": "lconv1d.linear_start",
    "conv": "lconv1d.depthwise_conv1d",
    "conv.post": "lconv1d.conv_norm",
    "conv.end": "lconv1d.linear_end",
    "norm": "norm",
}
STEM = "audio_tower.subsample_conv_projection"
WEIGHTS: Table = {
    "embed.steps.{i}": f"{STEM}.conv_{{i}}.conv",
    "embed.steps.{i}.norm": f"{STEM}.conv_{{i}}.norm",
    "embed.project": f"{STEM}.input_proj_linear",
    **{f"blocks.{{i}}.{ours}": f"{BLOCK}.{theirs}" for ours, theirs in PARTS.items()},
    "blocks.{i}.attention.scales": View(f"{BLOCK}.attention.attn.per_dim_scale"),
    "merger.into.norm": "embed_audio.soft_embedding_norm",
    "merger.into.project": "embed_audio.embedding_projection",
}

INERT = """
boi_token_id eoi_token_id image_token_id vision_config vision_soft_tokens_per_image
audio_config.conf_attention_chunk_size audio_config.conf_positional_bias_size
audio_config.sscp_conv_eps
"""

TOWER = TowerArch(
    name="usm",
    config=Config,
    build=build,
    modules=("audio_tower", "embed_audio"),
    weights=WEIGHTS,
    inert=at_any_value(INERT.split()),
    beside=("embed_audio.embedding", "embed_audio.hard_embedding_norm"),  # of tokens
    tokens=tokens,
    token_weights=hard_weights("embed_audio"),
)
