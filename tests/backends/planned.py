"""Engines with plans of a fake library: models, and a comparison with the portable graph."""

import numpy as np

from lmcast.exporter.runtime.session import Session

CLOSE = 1e-5  # fp32 sums in another order, of logits near 1
VOCABULARY = 97
STEP = (1, 1, 1)
# What each has: caches alone; rings of windows beside one; matrices (by a plugin in place),
# convolutions' tails whose rows are of 1008 bytes, and one cache.
MODELS: dict[str, tuple[list[str], list[str]]] = {
    "llama": ([f"layers.{i}.{x}" for i in range(2) for x in ("key", "value")], []),
    "gemma3_text/layer types, linear": (["layers.1.key", "layers.1.value"], []),
    "qwen3_5_text/plain": (
        ["layers.3.key", "layers.3.value"],
        [f"layers.{i}.state" for i in range(3)],
    ),
}
LLAMA, RINGS, MATRICES = MODELS


def drawn(rows: int, tokens: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (rows, tokens))


def agree(ours: Session, theirs: Session, calls: list[tuple[int, ...]]) -> None:
    """Append calls of so many tokens of each row to both, and compare."""
    for seed, counts in enumerate(calls):
        ids = drawn(len(counts), max(counts), seed)
        got, want = ours.append(ids, counts), theirs.append(ids, counts)
        np.testing.assert_allclose(got, want, atol=CLOSE, err_msg=f"call {seed}: {counts}")
    assert ours.lengths.tolist() == theirs.lengths.tolist()
