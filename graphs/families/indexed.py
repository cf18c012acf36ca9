"""What a config.json says of an indexer beside latent attention (DSA)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.blocks.mla import Indexer, LatentAttention, choice
from lmcast.graphs.blocks.rope import Rotation
from lmcast.graphs.config.layer_types import FFNType, one_each, with_experts
from lmcast.graphs.config.reading import Positive, Size
from lmcast.graphs.families.latents import Latents
from lmcast.graphs.families.routing import GroupedRouting

IndexerType = Literal["full", "shared"]


@dataclass(frozen=True, kw_only=True)
class Indexed(Latents, GroupedRouting):
    """The keys under DeepSeek V3.2's names, for a Config to take over."""

    q_lora_rank: Size
    index_topk: Size = 2048
    index_head_dim: Size = 128
    index_n_heads: Size = 64
    routed_scaling_factor: Positive | None = 2.5
    mlp_layer_types: tuple[FFNType, ...] | None = None
    # Stored by Hugging Face with this value, and read by nothing.
    layer_types: tuple[Literal["indexed_attention"], ...] | None = None
    rope_interleave: Literal[True] = True

    def indexed(self, kinds: Sequence[IndexerType], rotation: Rotation) -> Decoder:
        """Return the model; `kinds`: whether a layer has an indexer, or attends where the last one
        did that has. The indexer rotates by `rotation`."""
        one_each("layer_types", self.layer_types or "indexed_attention", self.num_hidden_layers)
        rope, chosen = self.rope(), None
        mixers: list[LatentAttention] = []
        for i, kind in enumerate(kinds):
            if kind == "shared" and not i:
                raise ValueError(
                    "indexer_types[0] is 'shared'; accepted: 'full', as no layer before it has an"
                    " indexer"
                )
            if kind == "shared":
                mixers.append(self.attention(rope, chosen=chosen))
                continue
            chosen = choice() if "shared" in kinds[i + 1 : i + 2] else None
            indexer = Indexer(
                dim=self.hidden_size,
                query_rank=self.q_lora_rank,
                heads=self.index_n_heads,
                width=self.index_head_dim,
                top_k=self.index_topk,
                rotation=rotation,
            )
            mixers.append(self.attention(rope, indexer=indexer, chosen=chosen))
        layers, dense = self.num_hidden_layers, self.first_k_dense_replace
        return self.decoder(mixers, with_experts(self.mlp_layer_types, layers, dense))
