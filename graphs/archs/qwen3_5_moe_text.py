"""Qwen3.5 (text) with experts in every layer, one of them shared."""

from dataclasses import dataclass
from typing import Literal

from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.blocks.delta import Inputs
from lmcast.graphs.config.reading import Arch, Size
from lmcast.graphs.families.delta_nets import BESIDE, Qwen35, SparseDeltaNets, sparse_weights, tidy


@dataclass(frozen=True, kw_only=True)
class Config(Qwen35, SparseDeltaNets):
    norm_topk_prob: Literal[True] = True
    intermediate_size: Size | None = None  # in some files, read by nothing: no layer is dense


def build(c: Config) -> Decoder:
    return c.decoder(Inputs, lambda _: c.experts())


ARCH = Arch(
    name="qwen3_5_moe_text",
    config=Config,
    build=build,
    weights=sparse_weights,
    tidy=tidy,
    beside=BESIDE,
)
