"""Sessions of a tiny engine, and what they are given."""

from dataclasses import replace
from typing import Any

import numpy as np

from lmcast.exporter import Engine
from lmcast.exporter.runtime.session import Session

CONTEXT, VOCABULARY = 1024, 97
CLOSE = 1e-5  # fp32 sums in another order, of logits near 1


def drawn(rows: int, tokens: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (rows, tokens))


def limited(engine: Engine, rows: int, **most: Any) -> Session:
    """Return a session of the same graph with kernels that count no further."""
    graph = replace(engine.manifest.about.graph, **most)
    return Session(engine.runner, graph, engine.context, engine.vocab_size, rows)
