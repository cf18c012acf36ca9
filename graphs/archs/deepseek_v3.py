"""DeepSeek V3, V3.1 and R1: latent attention; groups of experts, a bias that selects them."""

from dataclasses import dataclass

from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.config.reading import Arch, Experts, Positive
from lmcast.graphs.families.latents import Latents, beside, tidy, weights
from lmcast.graphs.families.routing import GroupedRouting


@dataclass(frozen=True, kw_only=True)
class Config(Latents, GroupedRouting):
    n_group: Experts = 8
    topk_group: Experts = 4
    routed_scaling_factor: Positive | None = 2.5


def build(c: Config) -> Decoder:
    rope, layers = c.rope(), range(c.num_hidden_layers)
    mixers = [c.attention(rope) for _ in layers]
    return c.decoder(mixers, [i >= c.first_k_dense_replace for i in layers])


ARCH = Arch(
    name="deepseek_v3", config=Config, build=build, weights=weights, tidy=tidy, beside=beside
)
