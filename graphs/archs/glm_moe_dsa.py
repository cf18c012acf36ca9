"""GLM-5, 5.1 and 5.2: DeepSeek V3.2's layers, whose indexers rotate pairs; some attend where an
earlier layer does (arXiv 2603.12201)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.blocks.rope import rotate_interleaved
from lmcast.graphs.config.layer_types import one_each
from lmcast.graphs.config.older_spellings import renamed
from lmcast.graphs.config.reading import Arch, ConfigError, Positive, Size
from lmcast.graphs.families.indexed import Indexed, IndexerType
from lmcast.graphs.families.latents import beside, weights
from lmcast.graphs.families.latents import tidy as latents

LETTERS = {"F": "full", "S": "shared"}


@dataclass(frozen=True, kw_only=True)
class Config(Indexed):
    index_n_heads: Size = 32
    indexer_types: tuple[IndexerType, ...] | None = None
    index_topk_freq: Size = 1  # without indexer_types
    index_skip_topk_offset: int = 2
    max_position_embeddings: Size = 202752
    rms_norm_eps: Positive = 1e-5
    indexer_rope_interleave: Literal[True] = True

    def kinds(self) -> tuple[IndexerType, ...]:
        """Return for every layer whether it has an indexer."""
        layers, offset = self.num_hidden_layers, self.index_skip_topk_offset
        if self.indexer_types is not None:
            return one_each("indexer_types", self.indexer_types, layers)
        since = (max(i - offset + 1, 0) for i in range(layers))
        return tuple("shared" if n % self.index_topk_freq else "full" for n in since)


def tidy(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Also with index_topk_pattern, a word or a list, as indexer_types."""
    pattern = raw.get("index_topk_pattern")
    if isinstance(pattern, str):
        if not set(pattern) <= LETTERS.keys():
            raise ConfigError(
                f"config.json: index_topk_pattern is {pattern!r:.80}; accepted: a word of F (full)"
                " and S (shared)"
            )
        raw = {**raw, "index_topk_pattern": [LETTERS[letter] for letter in pattern]}
    return latents(renamed(raw, {"index_topk_pattern": "indexer_types"}))


def build(c: Config) -> Decoder:
    return c.indexed(c.kinds(), rotate_interleaved)


ARCH = Arch(
    name="glm_moe_dsa", config=Config, build=build, weights=weights, tidy=tidy, beside=beside
)
