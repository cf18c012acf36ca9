"""The ways a session can run rows of tokens, and what eager PyTorch computes in each of them.

Ways round differently: a delta rule is computed in chunks or token by token, and LongRoPE rotates
by how far a call goes. What eager is off by in any of them bounds all: where a model amplifies
rounding, what it is off by in a single one is luck.

Letters: B rows, T tokens, R positions, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain as flat
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from lmcast.exporter.backends.runner import Limits
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.prove.eager_pass import Batch, full_passes
from lmcast.exporter.prove.parity_report import TELLING, bound
from lmcast.exporter.prove.scenarios import EXACT, PREFILL
from lmcast.graphs import Definition

SHORT, LONG = 24, 64  # tokens: at export, and for `lmcast parity`
PAST_WINDOW = 16  # tokens beyond a window that is exceeded at all
Row = list[int]
Place = tuple[int, int]  # a row, and a position in it
Logits = dict[Place, np.ndarray]  # V of each


@dataclass(frozen=True)
class Chain:
    """The calls of one session: rows by their numbers, and for each call the tokens of each, or of
    the first ones."""

    rows: list[int]
    calls: list[list[Row]]

    def places(self) -> Iterator[list[Place]]:
        """Yield where in each row each call ends."""
        held = [0] * len(self.rows)
        for call in self.calls:
            held = [n + len(tokens) for n, tokens in zip(held, call, strict=False)]
            yield [(row, n - 1) for row, n in zip(self.rows, held, strict=False)]


@dataclass(frozen=True)
class Reference:
    """What an engine is compared with in one way: what eager computes in the same calls.

    chains: the calls; none for whole rows, each alone. exact: in fp64. error: the largest of eager
    in the engine's format, in any way.
    """

    chains: Sequence[Chain]
    exact: Logits
    error: float

    @property
    def nothing(self) -> float:
        """The largest error of logits that say nothing, the less of two: of zeros, and of each
        token's for the next one."""
        exact = self.exact.values()  # one by one: of a large vocabulary each is megabytes
        others = np.max([np.abs(x - np.roll(x, 1)).max() for x in exact])
        return float(min(np.max([np.abs(x).max() for x in exact]), others))

    def tells(self, format: str) -> bool:
        """Whether the bound of an engine's error refuses such logits."""
        return bound(self.error, format) <= TELLING * self.nothing


def drawn(vocab: int, length: int) -> list[Row]:
    """Return three rows of different lengths; the same on every machine."""
    rng = np.random.Generator(np.random.PCG64(0))
    lengths = (length, max(1, length // 2), max(1, min(length - 3, SHORT)))
    return [rng.integers(0, vocab, n).tolist() for n in lengths]


def watched(length: int) -> list[int]:
    """Return the positions of a row to compare: all of a short one, else the end and a few."""
    if length <= LONG:
        return list(range(length))
    spread = np.linspace(0, length - 1, PAST_WINDOW, dtype=int).tolist()
    return sorted({*spread, *range(length - 2 * PAST_WINDOW, length)})


def one_by_one(rows: list[Row]) -> list[Chain]:
    """Each row alone, token by token.

    For one token, ONNX Runtime's fp32 MatMulNBits sums as exactly as torch. For several at once,
    1.31 sums in one chain, with up to 2.8 times the error (K = 1536).
    """
    return [Chain([r], [[[token]] for token in row]) for r, row in enumerate(rows)]


def steps(rows: list[Row]) -> list[Chain]:
    """The start of each row at once, three tokens at once, the rest one by one."""
    chains = []
    for r, row in enumerate(rows):
        first = max(1, len(row) - PAST_WINDOW)
        cuts = [0, *sorted({first, *range(min(first + 3, len(row)), len(row) + 1)})]
        chains.append(Chain([r], [[row[a:b]] for a, b in pairwise(cuts)]))
    return chains


def ragged(rows: list[Row], limits: Limits | None = None) -> list[Chain]:
    """All rows in one batch, padded; the rest of each in single tokens.

    A plan for fewer rows gets them in several batches.
    """
    most = len(rows) if limits is None else limits.rows
    numbers = range(len(rows))
    chains = []
    for part in (list(numbers[start : start + most]) for start in range(0, len(rows), most)):
        held = min(4, min(len(rows[r]) for r in part) - 1)
        calls = [[rows[r][: len(rows[r]) - held] for r in part]]
        calls += [[[rows[r][len(rows[r]) - held + i]] for r in part] for i in range(held)]
        chains.append(Chain(part, calls))
    return chains


def padded(call: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of a call B,T, and how many of each row B are valid."""
    counts = np.array([len(tokens) for tokens in call])
    ids = np.zeros((len(call), int(counts.max())), np.int64)
    for r, tokens in enumerate(call):
        ids[r, : len(tokens)] = tokens
    return ids, counts


def references(
    plain: Definition,
    rough: Definition,
    source: Checkpoint,
    rows: list[Row],
    ways: Mapping[str, list[Chain]],
    dtype: torch.dtype,
    anew: tuple[int, ...] = (),
    alone: bool = False,
) -> dict[str, Reference]:
    """Return what to compare with in each way.

    plain: what fp64 computes, without rounding to low precision; rough: what eager computes in
    `dtype`, with it. anew: lengths beyond which a session computes a row anew, in one call: then
    one call is what eager does. alone: what eager computes without rounding as well, token by
    token: 'exact'.
    """
    every = {**({EXACT: one_by_one(rows)} if alone else {}), **ways}
    # In fp64 the ways are the same up to 1e-12.
    whole_rows, wide = {PREFILL: list[Chain]()}, torch.float64
    begins = any(length < len(row) for row in rows for length in anew)
    first, own = ({n: c for n, c in every.items() if (n == EXACT) is one} for one in (True, False))
    own, first = (whole_rows, first and whole_rows) if begins else (own, first)
    asked = [(plain, wide, whole_rows), (rough, dtype, own), *([(plain, dtype, first)] * alone)]
    logits, others, *one = _computed(asked, source, rows)
    eager = dict.fromkeys(every, others) | ({EXACT: one[0]} if one else {})
    found = {}
    for name, chains in every.items():
        near, exact = eager[name][PREFILL if begins else name], logits[PREFILL]
        places = [at for at in _places(chains, rows, anew) if at in near]
        error = float(np.max([np.abs(near[at] - exact[at]).max() for at in places]))
        found[name] = Reference(chains, {at: exact[at] for at in places}, error)
    worst = max(one.error for name, one in found.items() if name != EXACT)
    found |= {n: replace(one, error=worst) for n, one in found.items() if n != EXACT}
    return found


def _places(chains: list[Chain], rows: list[Row], anew: tuple[int, ...]) -> Iterator[Place]:
    """Yield what is compared in a way: of whole rows the watched positions; of calls their ends,
    but for those whose row begins anew after them, of which one pass over all of it says nothing.
    """
    if not chains:
        yield from ((r, t) for r, row in enumerate(rows) for t in watched(len(row)))
    for chain in chains:
        for r, t in flat(*chain.places()):
            if not any(t < length < len(rows[r]) for length in anew):
                yield r, t


def _computed(
    asked: Sequence[tuple[Definition, torch.dtype, Mapping[str, list[Chain]]]],
    source: Checkpoint,
    rows: list[Row],
) -> list[dict[str, Logits]]:
    """Return the eager logits of definitions in dtypes in the ways asked for of each."""
    beside, taken = [_side_by_side(ways) for _, _, ways in asked], []
    batches = [
        [*([whole(rows)] if PREFILL in ways else []), *_batches(chain, rows)]
        for (_, _, ways), (chain, _) in zip(asked, beside, strict=True)
    ]
    given = [(*one[:2], own) for one, own in zip(asked, batches, strict=True)]
    for (_, _, ways), (chain, names), logits in zip(
        asked, beside, full_passes(given, source), strict=True
    ):
        own = {name: Logits() for name in ways}
        left = iter(logits)
        if PREFILL in own:
            own[PREFILL] = _of_whole(next(left), rows)
        for ends, places in zip(left, chain.places(), strict=True):
            for name, place, last in zip(names, places, _numbers(ends), strict=False):
                if len(last) and place[1] in watched(len(rows[place[0]])):
                    own[name][place] = last[0]
        taken.append(own)
    return taken


def _side_by_side(ways: Mapping[str, list[Chain]]) -> tuple[Chain, list[str]]:
    """Return all chains as one, and the way of each row: rows are independent of each other in
    eager, and fewer calls cost less. Those that end before others come last, and go on no more."""
    each = [(name, chain) for name, chains in ways.items() for chain in chains]
    each.sort(key=lambda pair: -len(pair[1].calls))
    most = len(each[0][1].calls) if each else 0
    calls = [
        [tokens for _, chain in each if i < len(chain.calls) for tokens in chain.calls[i]]
        for i in range(most)
    ]
    rows = [(name, row) for name, chain in each for row in chain.rows]
    return Chain([row for _, row in rows], calls), [name for name, _ in rows]


def whole(rows: list[Row]) -> Batch:
    """Return whole rows as a batch, with logits wanted at the watched positions."""
    ids, counts = padded(rows)
    at, _ = padded([watched(len(row)) for row in rows])
    return Batch(torch.from_numpy(ids), torch.from_numpy(counts), wanted=torch.from_numpy(at))


def _batches(chain: Chain, rows: list[Row]) -> Iterator[Batch]:
    """Yield the calls of a chain, with logits wanted at the last token of each row."""
    for number, (call, places) in enumerate(zip(chain.calls, chain.places(), strict=True)):
        ids, counts = (torch.from_numpy(array) for array in padded(call))
        taken = any(t in watched(len(rows[r])) for r, t in places)
        last = counts[:, None] - 1
        yield Batch(ids, counts, continues=number > 0, wanted=last if taken else last[:, :0])


def _of_whole(logits: Tensor, rows: list[Row]) -> Logits:
    numbers = _numbers(logits)
    return {
        (r, t): numbers[r, i] for r, row in enumerate(rows) for i, t in enumerate(watched(len(row)))
    }


def _numbers(logits: Tensor) -> np.ndarray:
    """Return logits in a dtype that numpy has, every number the same."""
    array: np.ndarray = (logits if logits.dtype == torch.float64 else logits.float()).numpy()
    return array
