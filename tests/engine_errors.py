"""How far an engine is from eager PyTorch, and how far it may be."""

import numpy as np
import torch

from lmcast.exporter import Engine
from lmcast.graphs.blocks.rope import Rope

TOKENS = 37  # longer than the windows of the cases
WORST = 1e-3  # the bound of the main job, whatever the oracle's own gap


def bound(rough: torch.Tensor, exact: torch.Tensor) -> float:
    """Four times what eager fp32 itself is off, and 2e-5: the bound of the main job."""
    return min(WORST, 4 * (rough.double() - exact).abs().max().item() + 2e-5)


def prefill_error(engine: Engine, eager: torch.nn.Module, ids: torch.Tensor) -> float:
    return float(np.abs(engine.logits(ids) - eager(ids).numpy()).max())


def steps_error(engine: Engine, eager: torch.nn.Module, ids: torch.Tensor) -> float:
    """Several tokens, then several more behind them, then one by one past the window."""
    return session_error(engine, eager, ids, [(11,) * 2, (5,) * 2, *[(1,) * 2] * (TOKENS - 16)])


def ragged_error(engine: Engine, eager: torch.nn.Module, ids: torch.Tensor) -> float:
    """Rows of different lengths from the first call on, each with what it would have alone."""
    return session_error(engine, eager, ids, [(20, 7, 1), (1, 1, 1), (3, 9, 14), *[(1, 1, 1)] * 5])


def session_error(
    engine: Engine, eager: torch.nn.Module, ids: torch.Tensor, calls: list[tuple[int, ...]]
) -> float:
    rows = len(ids)
    session = engine.session(rows)
    lengths, past = torch.zeros(rows, dtype=torch.int64), eager.empty_states(rows, 2 * TOKENS)
    # With LongRoPE, a row that grows beyond some length is another from its beginning.
    anew = any(table.switch for table in eager.tables() if isinstance(table, Rope))
    worst = 0.0
    for call in calls:
        counts = torch.tensor(call)
        part = torch.full((rows, max(call)), 3)  # padding that would show if it were read
        for r, n in enumerate(call):
            part[r, :n] = ids[r, lengths[r] : lengths[r] + n]
        got = session.append(part, None if len(set(call)) == 1 else counts)
        if anew:
            ends = (lengths + counts).tolist()
            want = torch.cat([eager(ids[r : r + 1, :end])[:, -1] for r, end in enumerate(ends)])
        else:
            want, past = eager.step(part, lengths, counts, past)
            want = want[torch.arange(rows), counts - 1]
        worst = max(worst, float(np.abs(got - want.numpy()).max()))
        lengths = lengths + counts
    assert session.lengths.tolist() == lengths.tolist()
    return worst
