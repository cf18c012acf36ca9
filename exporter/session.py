"""A batch of sequences in one engine: the states, the lengths, and appending to them.

Letters: B rows, T tokens of one call, R rows of logits, V vocabulary, C capacity in tokens.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from lmcast.plugins.errors import InputError

FIRST_CAPACITY = 256  # tokens; buffers double from here
NUMPY = {"float32": np.float32, "float16": np.float16, "int64": np.int64}


class SessionError(InputError, IndexError):
    """Token ids or lengths that the engine cannot take."""


class Runner(Protocol):
    """What a backend offers."""

    def run(
        self, inputs: Mapping[str, np.ndarray], states: Sequence[tuple[str, np.ndarray]]
    ) -> list[np.ndarray]: ...


class Session:
    """Sequences that grow by `append`; their caches stay in place between calls."""

    def __init__(
        self, runner: Runner, graph: Mapping[str, Any], context: int, vocab: int, batch: int
    ):
        if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
            raise SessionError(f"batch is {batch!r}; accepted: an integer from 1")
        self.context, self.batch = context, batch
        self._runner, self._graph, self._vocab = runner, graph, vocab
        self._require_memory(min(FIRST_CAPACITY, context))
        self.lengths = np.zeros(batch, np.int64)  # tokens held per row
        self._capacity = 0
        self._states: list[tuple[str, np.ndarray]] = []

    def append(self, input_ids: Any, counts: Any = None) -> np.ndarray:
        """Add tokens to every row and return float32 B,V: logits at each row's last new token.

        input_ids: integers B,T; counts: integers B, how many of the T are valid (rows padded on
        the right), None for all. Raises SessionError before anything changes.
        """
        ids, counts = self._checked(input_ids, counts)
        rows = (counts - 1)[:, None]
        return self.run(ids, counts, rows)[:, 0]

    def check_room(self, tokens: int) -> None:
        """Refuse to hold more than the context; raises SessionError."""
        longest = int(self.lengths.max()) + tokens
        if longest > self.context:
            raise SessionError(
                f"a row would hold {longest} tokens; the context of this engine is {self.context}"
            )

    def run(self, ids: np.ndarray, counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Add checked tokens; return float32 B,R,V: logits at positions `rows` B,R of this call."""
        self.reserve(int(self.lengths.max()) + ids.shape[1])
        fresh = not self.lengths.any() and bool((counts == ids.shape[1]).all())
        if self._graph["append"] == "row" and ids.shape[1] > 1 and self.batch > 1 and not fresh:
            # The kernel takes rows of different lengths in single tokens only. A row's states are
            # a contiguous slice, so nothing is copied, and no padding is computed.
            parts = []
            for b in range(self.batch):
                count, row = int(counts[b]), slice(b, b + 1)
                kept = np.minimum(rows[row], count - 1)
                parts.append(self._call(row, ids[row, :count], counts[row], kept))
            logits = np.concatenate(parts)
        else:
            logits = self._call(slice(0, self.batch), ids, counts, rows)
        self.lengths += counts
        return logits.astype(np.float32, copy=False)

    def _call(
        self, rows: slice, ids: np.ndarray, counts: np.ndarray, wanted: np.ndarray
    ) -> np.ndarray:
        inputs = {
            "input_ids": np.ascontiguousarray(ids),
            "cache_lengths": np.ascontiguousarray(self.lengths[rows]),
            "token_counts": np.ascontiguousarray(counts),
            "logit_rows": np.ascontiguousarray(wanted),
        }
        states = [(name, array[rows]) for name, array in self._states]
        return self._runner.run(inputs, states)[0]

    def _checked(self, input_ids: Any, counts: Any) -> tuple[np.ndarray, np.ndarray]:
        ids = check_ids(input_ids, self._vocab)
        if ids.shape[0] != self.batch:
            raise SessionError(f"input_ids has {ids.shape[0]} rows; the session has {self.batch}")
        if counts is None:
            valid = np.full(self.batch, ids.shape[1], np.int64)
        else:
            valid = _integers("counts", counts)
            if valid.shape != (self.batch,):
                raise SessionError(
                    f"counts has shape {list(valid.shape)}; accepted: [{self.batch}]"
                )
            if valid.min() < 1 or valid.max() > ids.shape[1]:
                raise SessionError(
                    f"counts holds {valid.min()} to {valid.max()}; accepted: 1 to {ids.shape[1]}"
                )
        longest = int((self.lengths + valid).max())
        self.check_room(longest - int(self.lengths.max()))
        return ids[:, : int(valid.max())], valid

    def reserve(self, tokens: int) -> list[tuple[str, np.ndarray]]:
        """Make room for `tokens` per row and return the states by name, as they lie in memory.

        Raises SessionError if this machine's memory cannot hold them.
        """
        if tokens <= self._capacity:
            return self._states
        # Padding may lie beyond the context, so the last step is as long as the call needs.
        doubled = max(FIRST_CAPACITY, 2 * self._capacity)
        capacity = max(tokens, min(doubled, self.context))
        declared = self._graph["states"]
        self._require_memory(capacity)
        # Zeroed: attention multiplies what it masks by 0, and 0 times NaN is NaN.
        fresh = [
            (s["name"], np.zeros(self._shape(s, capacity), NUMPY[s["dtype"]])) for s in declared
        ]
        for (_, old), (_, new) in zip(self._states, fresh, strict=False):
            new[tuple(slice(0, n) for n in old.shape)] = old
        self._states, self._capacity = fresh, capacity
        return fresh

    def _require_memory(self, capacity: int) -> None:
        need = sum(
            math.prod(self._shape(state, capacity)) * np.dtype(NUMPY[state["dtype"]]).itemsize
            for state in self._graph["states"]
        )
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if need > have:
            raise SessionError(
                f"{self.batch} rows of {capacity} tokens need {need:,} bytes of state; this machine"
                f" has {have:,} bytes of memory"
            )

    def _shape(self, state: Mapping[str, Any], capacity: int) -> tuple[int, ...]:
        axes = {"B": self.batch, "C": capacity}
        return tuple(axes.get(n, n) for n in state["shape"])


def check_ids(input_ids: Any, vocab: int) -> np.ndarray:
    """Return integers B,T as int64; raises SessionError for ids outside 0..vocab-1."""
    ids = _integers("input_ids", input_ids)
    if ids.ndim != 2 or not ids.size:
        raise SessionError(
            f"input_ids has shape {list(ids.shape)}; accepted: [rows, tokens], not empty"
        )
    if ids.min() < 0 or ids.max() >= vocab:
        wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise SessionError(f"input_ids holds {wrong}; accepted: 0 to {vocab - 1}")
    return ids


def _integers(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise SessionError(f"{name} is not a rectangular array of integers: {error}") from None
    if array.size and array.dtype.kind not in "iu":  # numpy makes floats of an empty list
        raise SessionError(f"{name} holds {array.dtype}; accepted: integers")
    return array.astype(np.int64)
