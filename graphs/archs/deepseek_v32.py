"""DeepSeek V3.2: V3 with an indexer in every layer, which rotates halves where attention rotates
pairs."""

from dataclasses import dataclass
from typing import Literal

from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.blocks.rope import rotate
from lmcast.graphs.config.reading import Arch, Experts, Size
from lmcast.graphs.families.indexed import Indexed, IndexerType
from lmcast.graphs.families.latents import beside, tidy, weights


@dataclass(frozen=True, kw_only=True)
class Config(Indexed):
    n_group: Experts = 8
    topk_group: Experts = 4
    max_position_embeddings: Size = 163840
    indexer_rope_interleave: Literal[False] = False


def build(c: Config) -> Decoder:
    kinds: list[IndexerType] = ["full"] * c.num_hidden_layers
    return c.indexed(kinds, rotate)


ARCH = Arch(
    name="deepseek_v32", config=Config, build=build, weights=weights, tidy=tidy, beside=beside
)
