"""A graph that is run in parts, with weights that are dequantized once, computes what its kernels
do, which dequantize them in every call."""

from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from files.rounded import round_weights
from tiny import case, make
from torch import nn

from lmcast.exporter import export
from lmcast.exporter.prove import in_parts
from lmcast.exporter.prove.cut import Cut, Part
from lmcast.exporter.prove.dequantized import wide_bytes
from lmcast.exporter.prove.rounding import exact_engine, exact_graph
from lmcast.exporter.runtime import session
from lmcast.exporter.runtime.engine import Engine

# Caches, of which some layers have a window; states of convolutions and of a scan, whose graphs
# read and write them at several places; and experts, which are in no piece. With how far off logits
# may be, of their spread: sums are in another order.
CASES = (
    ("gemma2/no caps, untied", "float32", 1e-5),
    ("gemma2/no caps, untied", "float16", 5e-3),
    ("bamba/plain", "float32", 1e-5),
    ("qwen3_moe/plain", "float32", 1e-5),
)
MOST = 4 << 10  # bytes: a part of a weight


@pytest.mark.parametrize(("name", "dtype", "most"), CASES)
def test_parts_compute_what_the_graph_does(
    name: str, dtype: str, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkpoint, formats = make(case(name), tmp_path / "checkpoint"), cycle(("int4", "int8"))

    def choose(name: str, weight: nn.Parameter) -> str | None:
        return next(formats) if weight.dim() > 1 and weight.shape[-1] % 32 == 0 else None

    recipe = round_weights(checkpoint, tmp_path / "recipe", choose)
    given = {"recipe": recipe, "tokenizer": False, "parity": False, "context": 64}
    engine = export(checkpoint, tmp_path / "engine", dtype=dtype, **given)
    monkeypatch.setattr(session, "FIRST_CAPACITY", 4)  # so that states move between calls
    found, cut = list[Part](), Cut.parts
    monkeypatch.setattr(Cut, "parts", lambda self, most: found.extend(cut(self, most)) or found)
    exact, graph = exact_engine(engine.directory, 1), exact_graph(engine.manifest)
    want = ask(exact)
    assert wide_bytes(graph) > 4 * MOST
    got = in_parts.computed(exact, graph, ask, MOST)
    assert len(found) > 4 and sum(bool(part.states) for part in found) > 1
    assert np.abs(got - want).max() < most * np.ptp(want)


def ask(engine: Engine) -> np.ndarray:
    """Return logits of several calls: of two sessions, with rows of different lengths, and long
    ones behind short ones."""
    random = np.random.default_rng(0)
    rows, one = engine.session(2), engine.session(1)
    found = []
    for tokens in (3, 1, 1, 9):
        ids = random.integers(0, engine.vocab_size, (2, tokens))
        found.append(rows.append(ids, np.array([tokens, max(1, tokens - 2)])))
        found.append(one.append(ids[:1, :1]))
    return np.concatenate(found)
