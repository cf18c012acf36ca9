"""What a parity consists of, by name; it needs no torch."""

from typing import Literal, get_args

# Ways in which a session can run rows of tokens; the last where an engine rounds to low precision:
# its graph without that.
PREFILL, STEPS, RAGGED, EXACT = "prefill", "step by step", "ragged batch", "exact"
# Of an engine that takes pictures: what its tower makes of them, and rows with features in them.
FEATURES, PICTURES = "features", "with pictures"
SCENARIOS = (PREFILL, STEPS, RAGGED, EXACT, FEATURES, PICTURES)

# What files and fields of texts are of.
Part = Literal["tokenizer", "chat template", "generation"]
PARTS: tuple[Part, ...] = get_args(Part)
