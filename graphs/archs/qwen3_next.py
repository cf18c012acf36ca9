"""Qwen3-Next: three Gated DeltaNets for each layer of gated attention; experts, one shared."""

from dataclasses import dataclass

from torch import nn

from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.blocks.delta import GroupedInputs
from lmcast.graphs.config.reading import Arch, Count, Size
from lmcast.graphs.families.delta_nets import BESIDE, SparseDeltaNets, sparse_weights, tidy


@dataclass(frozen=True, kw_only=True)
class Config(SparseDeltaNets):
    intermediate_size: Size  # of dense layers
    decoder_sparse_step: Size = 1
    mlp_only_layers: tuple[Count, ...] | None = None

    def is_sparse(self, layer: int) -> bool:
        dense = self.mlp_only_layers or ()
        return layer not in dense and (layer + 1) % self.decoder_sparse_step == 0


def build(c: Config) -> Decoder:
    def ffn(layer: int) -> nn.Module:
        return c.experts() if c.is_sparse(layer) else c.dense(c.intermediate_size)

    return c.decoder(GroupedInputs, ffn)


ARCH = Arch(
    name="qwen3_next", config=Config, build=build, weights=sparse_weights, tidy=tidy, beside=BESIDE
)
