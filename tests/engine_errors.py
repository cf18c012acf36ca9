"""How far an engine is from fp64, and how far it may be: by eager PyTorch in the same calls."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tiny import prompt
from torch import Tensor

from lmcast.exporter import Engine
from lmcast.graphs.blocks.rope import Rope

TOKENS = 37  # longer than the windows of the cases
WORST = 1e-3  # the bound of the main job, whatever the oracle's own gap

PREFILL = "prefill"
# Calls of a session by the tokens of each row. Several tokens, then several more behind them, then
# one by one past the window; and rows of different lengths from the first call on, each with what
# it would have alone.
CALLS: dict[str, list[tuple[int, ...]]] = {
    "step by step": [(11, 11), (5, 5), *[(1, 1)] * (TOKENS - 16)],
    "ragged of 3": [(20, 7, 1), (1, 1, 1), (3, 9, 14), *[(1, 1, 1)] * 5],
}


@dataclass(frozen=True)
class Errors:
    """Of each way of running an engine its largest error from fp64, and the bound of all: four
    times what eager fp32 itself is off by in any of the same calls, and 2e-5. Where a model
    amplifies rounding, what it is off by in a single way is luck."""

    error: dict[str, float]
    bound: float

    @property
    def share(self) -> float:
        """The largest error in units of its bound: 1 is still right."""
        return float(np.max([error / self.bound for error in self.error.values()]))

    def row(self, **case: str) -> dict[str, Any]:
        return {**case, **self.error, "of bound": self.share}


def errors(
    engine: Engine, rough: torch.nn.Module, exact: torch.nn.Module, *without: str, seed: int = 0
) -> Errors:
    """Run an engine, and its definition in fp32 and fp64, in every way but some."""
    calls = {way: given for way, given in CALLS.items() if way not in without}
    ids = prompt(2, TOKENS, seed)
    got = {PREFILL: engine.logits(ids), **{w: ran(engine, c, seed) for w, c in calls.items()}}
    # Of one place that amplifies rounding, eager is off by another amount in a batch of other rows.
    near = {PREFILL: rough(ids)}
    for way, given in calls.items():
        near |= stepped(rough, {way: given}, seed)
    want = {PREFILL: exact(ids), **stepped(exact, calls, seed)}
    off = max((near[way].double() - want[way]).abs().max().item() for way in want)
    return Errors(
        {way: float(np.abs(got[way] - want[way].numpy()).max()) for way in want},
        min(WORST, 4 * off + 2e-5),
    )


def ran(engine: Engine, calls: list[tuple[int, ...]], seed: int) -> np.ndarray:
    """Return the logits behind each call, N,B,V."""
    rows = len(calls[0])
    ids, lengths = prompt(rows, TOKENS, seed), torch.zeros(rows, dtype=torch.int64)
    session, got = engine.session(rows), []
    for call in calls:
        part, counts = cut(ids, lengths, call)
        got.append(session.append(part, None if len(set(call)) == 1 else counts))
        lengths = lengths + counts
    assert session.lengths.tolist() == lengths.tolist()
    return np.stack(got)


def stepped(
    eager: torch.nn.Module, calls: dict[str, list[tuple[int, ...]]], seed: int
) -> dict[str, Tensor]:
    """Return the same of eager, the rows of these ways in one batch: they do not see each other.

    Rows of which no more calls are wanted go on, and are not looked at.
    """
    most, widths = max(map(len, calls.values())), [len(way[0]) for way in calls.values()]
    ids = torch.cat([prompt(rows, TOKENS, seed) for rows in widths])
    lengths = torch.zeros(len(ids), dtype=torch.int64)
    past, got = eager.empty_states(len(ids), 3 * TOKENS), []
    for number in range(most):
        call = [way[number] if number < len(way) else (1,) * len(way[0]) for way in calls.values()]
        part, counts = cut(ids, lengths, tuple(n for counts in call for n in counts))
        logits, past = eager.step(part, lengths, counts, past)
        got.append(logits[torch.arange(len(ids)), counts - 1])
        lengths = lengths + counts
        for r, length in enumerate(lengths.tolist() if begins_anew(eager) else ()):
            if length <= TOKENS:
                got[-1][r] = eager(ids[r : r + 1, :length])[0, -1]
    parts = torch.stack(got).split(widths, 1)
    return {way: p[: len(given)] for (way, given), p in zip(calls.items(), parts, strict=True)}


def begins_anew(eager: torch.nn.Module) -> bool:
    """Whether a row that grows beyond some length is another from its beginning (LongRoPE)."""
    return any(table.switch for table in eager.tables() if isinstance(table, Rope))


def cut(ids: Tensor, lengths: Tensor, call: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the next tokens of each row, and how many they are."""
    part = torch.full((len(ids), max(call)), 3)  # padding that would show if it were read
    for r, n in enumerate(call):
        own = ids[r, lengths[r] : lengths[r] + n]
        part[r, : len(own)] = own
    return part, torch.tensor(call)
