"""Qwen3.5 (text, dense): the layers of Qwen3-Next, with a matrix for each input of a DeltaNet."""

from dataclasses import dataclass

from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.blocks.delta import Inputs
from lmcast.graphs.config.reading import Arch, Size
from lmcast.graphs.families.delta_nets import BESIDE, WEIGHTS, Qwen35, tidy


@dataclass(frozen=True, kw_only=True)
class Config(Qwen35):
    intermediate_size: Size
    num_key_value_heads: Size = 4


def build(c: Config) -> Decoder:
    return c.decoder(Inputs, lambda _: c.dense(c.intermediate_size))


ARCH = Arch(
    name="qwen3_5_text", config=Config, build=build, weights=WEIGHTS, tidy=tidy, beside=BESIDE
)
