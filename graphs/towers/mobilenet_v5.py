"""MobileNet v5 (timm's mobilenetv5_300m_enc): the pictures of Gemma 3n, by convolutions.

There is no paper of it; its blocks are those of MobileNet v4 (arXiv 2404.10518). Letters: N
pictures, S rows and columns of pixels, M tokens of a picture, H width of the text.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from lmcast.graphs.blocks.convolution import (
    ConvNorm,
    EdgeResidual,
    Fusion,
    InvertedBottleneck,
    MultiQueryAttention,
    SameConv,
)
from lmcast.graphs.blocks.multimodal_embedder import HardTokens, SoftTokens, hard_weights
from lmcast.graphs.blocks.tower import Tower, TowerPart
from lmcast.graphs.config.inert import at_any_value
from lmcast.graphs.config.reading import Count, Positive, Size
from lmcast.graphs.towers.record import TowerArch
from lmcast.graphs.weights.bind import Table
from lmcast.plugins.annotations import Range

EPS = 1e-6  # of every norm of the tower; that of the config is for what follows it
FEATURES = 2048  # channels that come out, at any multiplier
SHRINKS = 16  # rows of pixels to a row of places where the stages are fused
POOLS = 3  # and of those to a row of tokens: 768 pixels are 48 places are 16 tokens

Edge, Bottleneck = partial(EdgeResidual, expand=4), partial(InvertedBottleneck, expand=4)
Plain = partial(InvertedBottleneck, expand=2)  # of no depthwise convolution
Query = MultiQueryAttention
Block = Callable[[int, int, float], nn.Module]  # channels in and out, eps of norms
# Channels of each stage, and its blocks; the first halves rows and columns.
STAGES: tuple[tuple[int, tuple[Block, ...]], ...] = (
    (128, (partial(Edge, stride=2), Edge, Edge)),
    (
        256,
        (
            partial(InvertedBottleneck, start=3, middle=5, stride=2, expand=6),
            *(partial(Bottleneck, start=5), partial(Bottleneck, start=3)) * 2,
        ),
    ),
    (
        640,
        (
            partial(InvertedBottleneck, start=5, middle=5, stride=2, expand=6),
            *(partial(Bottleneck, start=5),) * 7,
            partial(InvertedBottleneck, expand=1),
            *(partial(Query, heads=12, width=64, down=2), Plain) * 14,
        ),
    ),
    (
        1280,
        (
            partial(InvertedBottleneck, start=5, middle=5, stride=2, expand=6),
            *(partial(Query, heads=16, width=96), Plain) * 19,
        ),
    ),
)
STEM = 64


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What config.json hands to timm."""

    channel_multiplier: Annotated[float, Range(1 / 64, 16)] = 1.0
    msfa_output_resolution: Annotated[int, Range(1, 64)] = 16

    def __post_init__(self) -> None:
        if self.msfa_output_resolution % 2:  # half as many places in the last stage
            raise ValueError(
                f"msfa_output_resolution is {self.msfa_output_resolution}; accepted: an even number"
            )

    def channels(self, usual: int) -> int:
        """Return the channels of what usually has so many: a multiple of 8."""
        asked = usual * self.channel_multiplier
        found = max(8, int(asked + 4) // 8 * 8)
        return found + 8 if found < 0.9 * asked else found


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    model_type: Literal["gemma3n_vision"] = "gemma3n_vision"
    architecture: Literal["mobilenetv5_300m_enc"] = "mobilenetv5_300m_enc"
    model_args: Arguments | None = None
    hidden_size: Literal[2048] = 2048
    rms_norm_eps: Positive = 1e-6
    vocab_size: Size = 128
    vocab_offset: Count = 262144

    @property
    def arguments(self) -> Arguments:
        return self.model_args or Arguments()


@dataclass(frozen=True, kw_only=True)
class Config:
    image_token_id: Count = 262145
    boi_token_id: Count = 255999
    eoi_token_id: Count = 262144
    vision_soft_tokens_per_image: Size = 256
    vision_config: VisionConfig = VisionConfig()

    def __post_init__(self) -> None:
        side = self.vision_config.arguments.msfa_output_resolution
        if self.vision_soft_tokens_per_image != side * side:
            raise ValueError(
                f"vision_soft_tokens_per_image is {self.vision_soft_tokens_per_image}; accepted:"
                f" {side * side}, of msfa_output_resolution {side}"
            )


class Stem(TowerPart):
    """Pixels N,3,S,S in fp32, 0 to 1 -> N,64,S/2,S/2."""

    takes = ("pixels",)

    def __init__(self, channels: int):
        super().__init__()
        self.conv = ConvNorm(SameConv(3, channels, 3, 2, bias=True), EPS)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.conv(pixels.to(self.conv.conv.weight.dtype))


class Merger(TowerPart):
    """The last two stages in one, and the way into the text."""

    def __init__(self, fusion: Fusion, into: SoftTokens):
        super().__init__()
        self.fusion, self.into = fusion, into

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """x: of the last stage; before: of that before it; N,C,R,R -> N*M,H."""
        x = self.fusion(before, x).flatten(2).transpose(1, 2).flatten(0, 1)  # N*M,2048
        y: Tensor = self.into(x * FEATURES**0.5)
        return y


def tokens(c: Config, text: Any) -> HardTokens:
    """Return the ids around pictures: text: a Config with hidden_size."""
    v = c.vision_config
    own = v.vocab_offset, v.vocab_size, v.hidden_size
    return HardTokens(*own, text.hidden_size, v.rms_norm_eps)


def build(c: Config, text: Any) -> Tower:
    """text: a Config with hidden_size."""
    v = c.vision_config
    arguments = v.arguments
    side = arguments.msfa_output_resolution
    pixels = side * POOLS * SHRINKS
    stem = max(STEM, arguments.channels(STEM))
    fused = sum(arguments.channels(usual) for usual, _ in STAGES[-2:])
    return Tower(
        inputs={"pixels": (("N", 3, pixels, pixels), torch.float32)},
        embed=Stem(stem),
        positions=None,
        blocks=list(_blocks(arguments, stem)),
        keeps=[sum(len(makers) for _, makers in STAGES[:-1]) - 1],
        merger=Merger(
            Fusion(fused, FEATURES, EPS, side),
            SoftTokens(FEATURES, text.hidden_size, v.rms_norm_eps),
        ),
    )


def _blocks(arguments: Arguments, channels: int) -> Iterator[nn.Module]:
    """Yield the blocks of all stages; channels: of what goes into the first."""
    for usual, makers in STAGES:
        for make in makers:
            out = arguments.channels(usual)
            yield make(channels, out, EPS)
            channels = out


# Parts of a block here and in timm.
PARTS: dict[str, str] = {
    "expand.conv": "pw_exp.conv",
    "expand.norm": "pw_exp.bn",
    "project.conv": "pw_proj.conv",
    "project.norm": "pw_proj.bn",
    "start.conv": "dw_start.conv",
    "start.norm": "dw_start.bn",
    "middle.conv": "dw_mid.conv",
    "middle.norm": "dw_mid.bn",
    "norm": "norm",
    "q": "attn.query.proj",
    "o": "attn.output.proj",
    "scale": "layer_scale",
    **{
        f"{ours}.{part}": f"attn.{theirs}.{name}"
        for ours, theirs in (("k", "key"), ("v", "value"))
        for part, name in (("down.conv", "down_conv"), ("down.norm", "norm"), ("project", "proj"))
    },
}
EDGE = {
    "expand.conv": "conv_exp",
    "expand.norm": "bn1",
    "project.conv": "conv_pwl",
    "project.norm": "bn2",
}
TIMM = "vision_tower.timm_model"


PLACES = [(s, b) for s, (_, makers) in enumerate(STAGES) for b in range(len(makers))]
WEIGHTS: Table = {
    "embed.conv.conv": f"{TIMM}.conv_stem.conv",
    "embed.conv.norm": f"{TIMM}.conv_stem.bn",
    **{
        f"blocks.{number}.{ours}": f"{TIMM}.blocks.{stage}.{block}.{theirs}"
        for number, (stage, block) in enumerate(PLACES)
        for ours, theirs in (PARTS if stage else EDGE).items()
    },
    **{f"merger.fusion.mix.{ours}": f"{TIMM}.msfa.ffn.{theirs}" for ours, theirs in PARTS.items()},
    "merger.fusion.norm": f"{TIMM}.msfa.norm",
    "merger.into.norm": "embed_vision.soft_embedding_norm",
    "merger.into.project": "embed_vision.embedding_projection",
}

INERT = """
audio_config audio_soft_tokens_per_image audio_token_id boa_token_id eoa_token_id
vision_config.do_pooling vision_config.label_names vision_config.num_classes
"""

TOWER = TowerArch(
    name="mobilenetv5_300m_enc",
    config=Config,
    build=build,
    modules=("vision_tower", "embed_vision"),
    weights=WEIGHTS,
    inert=at_any_value(INERT.split()),
    beside=("embed_vision.embedding", "embed_vision.hard_embedding_norm"),  # of tokens
    tokens=tokens,
    token_weights=hard_weights("embed_vision"),
)
