"""A batch of sequences in one engine: the states, the lengths, and appending to them.

Letters: B rows, T tokens of one call, R rows of logits, V vocabulary, C capacity in tokens.
"""

from typing import Annotated, Any

import numpy as np

from lmcast.exporter.backends.images import taken
from lmcast.exporter.backends.runner import Runner, SessionError, Shaped
from lmcast.exporter.engine.description import Graph
from lmcast.exporter.runtime.arrays import as_ids, as_integers, within
from lmcast.exporter.runtime.given import (
    IDS,
    ROPE_POSITIONS,
    Given,
    History,
    call_ends,
    longest_picture,
)
from lmcast.exporter.runtime.images import Inputs
from lmcast.plugins.annotations import Range, Rows
from lmcast.plugins.arguments import checked

FIRST_CAPACITY = 256  # tokens; buffers double from here
# Tokens of all rows in one call on a CPU, whose values take as much memory as there are tokens:
# SmolLM2-135M computes 256 to 512 at a time as fast as any number, in 40 MB; all of 4,000 take 290.
# Of experts, each of which gets few of the tokens and is read once a call, more. Kernels for few
# bits pack nothing in a call: of 1,024 tokens 256 at a time take 0.93 of the time of 512.
PIECE, PIECE_OF_EXPERTS, PIECE_OF_FEW_BITS = 512, 2048, 256
Tokens = Annotated[int, Range(0, 1 << 31)]


class Session:
    """Sequences that grow by `append`; their caches stay in place between calls."""

    @checked
    def __init__(self, runner: Runner, graph: Graph, context: int, vocab: int, batch: Rows):
        self._limits, self._trained, self._anew = runner.limits, context, graph.anew_beyond
        if self._limits is not None:
            context = min(context, self._limits.context)
            if batch > self._limits.rows:
                raise SessionError(
                    f"batch is {batch}; the plan of this engine takes up to {self._limits.rows}"
                    f" rows: `{self._limits.rebuild(max_batch=batch)}` makes one that takes more"
                )
        if graph.most_rows and batch > graph.most_rows:
            raise SessionError(
                f"batch is {batch}; this engine takes up to {graph.most_rows} rows in a session"
            )
        self._most = self._limits.tokens if self._limits else graph.most_tokens  # in a call; 0: any
        self._few = min(PIECE, PIECE_OF_FEW_BITS) if graph.prepack else PIECE
        if graph.split_experts:
            self._few = PIECE_OF_EXPERTS
        self._end = self._cut(self._most)
        self.context, self.batch = min(context, self._end or context), batch
        self.runner, self._graph, self._vocab = runner, graph, vocab
        self._inputs = Inputs(taken(graph))
        self._require_memory(context if self._limits else min(FIRST_CAPACITY, context))
        self.lengths = np.zeros(batch, np.int64)  # cached tokens per row
        # What the rotation of a text token adds to its position: pictures take fewer than tokens.
        self._turn = np.zeros(batch, np.int64)
        self._held = [History() for _ in range(batch)]  # all tokens, where rows begin anew
        self._capacity = 0
        self._states: Any = []
        self._unfinished = False

    def append(self, input_ids: Any, counts: Any = None, images: Any = None) -> np.ndarray:
        """Add tokens to every row and return float32 B,V: logits at each row's last new token.

        input_ids: integers B,T; counts: integers B, how many of the T are valid (rows padded on
        the right), None for all. images: for each row Images or None, None for no pictures. Raises
        SessionError before anything changes; after any other error some states may be of this
        call, and others of the one before, so no call follows.
        """
        given, valid = self._checked(input_ids, counts, images)
        return self._run(given, valid, (valid - 1)[:, None])[:, 0]

    def run(self, input_ids: Any, counts: Any, rows: Any, images: Any = None) -> np.ndarray:
        """Add tokens as `append` does and return float32 B,R,V: logits at the positions `rows`,
        integers B,R from 0 to T - 1, of this call."""
        given, valid = self._checked(input_ids, counts, images)
        wanted = as_integers("rows", rows)
        if wanted.ndim != 2 or wanted.shape[0] != self.batch or not wanted.size:
            raise SessionError(
                f"rows has shape {list(wanted.shape)}; accepted: [{self.batch}, positions]"
            )
        return self._run(given, valid, within("rows", wanted, given.tokens))

    @checked
    def check_room(self, tokens: Tokens) -> None:
        """Refuse to hold more than the context; raises SessionError."""
        longest = int(self.lengths.max()) + tokens
        if longest > self._trained:
            raise SessionError(
                f"a row would hold {longest} tokens; the context of this engine is {self._trained}"
            )
        if self._end is not None and longest > self._end:
            remedy = "export with another --target"
            if self._limits is not None:
                remedy = f"`{self._limits.rebuild(max_tokens=self._end + 1)}` makes one that does"
            raise SessionError(
                f"a row would hold {longest} tokens; the first call of one of more than {self._end}"
                f" has more, too (LongRoPE), and {self._most} are the most of one: {remedy}"
            )
        if self._limits is not None and longest > self.context:
            raise SessionError(
                f"a row would hold {longest} tokens; the plan of this engine holds {self.context}:"
                f" `{self._limits.rebuild(max_context=longest)}` makes one that holds more"
            )

    def _cut(self, most: int) -> int | None:
        """Return how long rows may be whose calls have parts of `most` tokens; None: any length.

        The first part must show that a row is longer than a length of `anew_beyond`.
        """
        return min((n for n in self._anew if 0 < most <= n), default=None)

    def _run(self, given: Given, counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
        longest = int((self.lengths + counts).max())
        most = self._piece(longest) if self._on_cpu else self._most
        if self._limits and rows.shape[1] > self._limits.logits:
            # A part with fewer tokens has fewer logits to ask for.
            most = min(most, self._limits.logits)
            if (end := self._cut(most)) is not None and longest > end:
                raise SessionError(
                    f"{rows.shape[1]} rows of logits of {longest} tokens; beyond {end} this plan"
                    f" gives up to {self._limits.logits} in a call"
                )
        self._require_whole(given, counts, most)
        self._reserve(int(self.lengths.max()) + given.tokens)
        self._unfinished = True
        logits = self._in_calls(given, counts, rows, most)
        if (positions := given.by_token.get(ROPE_POSITIONS)) is not None:
            last = [int(row[:count].max()) for row, count in zip(positions, counts, strict=True)]
            self._turn = np.array(last, np.int64) + 1 - self.lengths
        self._unfinished = False
        return logits

    def _require_whole(self, given: Given, counts: np.ndarray, most: int) -> None:
        """Refuse a picture that must be of one call and is longer than any; most: of this one."""
        longest = longest_picture(given.closed(self.lengths), counts)
        if self._limits and self._most >= longest > most:
            raise SessionError(
                f"a picture of {longest} tokens is of one call; this plan gives up to"
                f" {self._limits.logits} rows of logits in one: ask for so many at most"
            )
        if 0 < self._most < longest:
            remedy = "export with another --target"
            if self._limits is not None:
                remedy = f"`{self._limits.rebuild(max_tokens=longest)}` makes one that does"
            raise SessionError(
                f"a picture of {longest} tokens is of one call, and {self._most} are the most of"
                f" one: {remedy}"
            )

    def _in_calls(
        self, given: Given, counts: np.ndarray, rows: np.ndarray, most: int
    ) -> np.ndarray:
        """Add tokens in calls of up to `most`; a row that outgrows a length begins anew."""
        anew = np.zeros(self.batch, bool)
        for length in self._anew:
            anew |= (self.lengths > 0) & (self.lengths <= length) & (self.lengths + counts > length)
        if not anew.any():
            return self._in_parts(given, counts, rows, most)
        logits = np.empty((*rows.shape, self._vocab), np.float32)
        if not anew.all():
            rest, at = np.where(anew, 0, counts), np.where(anew[:, None], 0, rows)
            logits[~anew] = self._in_parts(given, rest, at, most)[~anew]
        for b in np.flatnonzero(anew).tolist():
            added = given.rows(slice(b, b + 1), int(counts[b]))
            logits[b] = self._begin_anew(b, added, rows[b], most)
        return logits

    def _begin_anew(self, row: int, added: Given, at: np.ndarray, most: int) -> np.ndarray:
        """Compute a row of a session from its first token on, with T more; return float32 R,V."""
        before, history = int(self.lengths[row]), self._held[row]
        self._held[row], self.lengths[row] = History(), 0
        whole = history.followed_by(added)
        counts = np.zeros(self.batch, np.int64)
        counts[row] = whole.tokens
        rows = np.zeros((self.batch, len(at)), np.int64)
        rows[row] = np.minimum(at + before, whole.tokens - 1)
        logits: np.ndarray = self._in_parts(whole.among(self.batch), counts, rows, most)[row]
        return logits

    def _in_parts(
        self, given: Given, counts: np.ndarray, rows: np.ndarray, most: int
    ) -> np.ndarray:
        """Add tokens in calls of up to `most`, 0 for one call; as `run`."""
        if not most or (self._limits is None and given.tokens <= most):
            return self._append(given, counts, rows)
        logits = np.empty((*rows.shape, self._vocab), np.float32)
        begins, closed = np.zeros(self.batch, np.int64), given.closed(self.lengths)
        rows = np.minimum(rows, np.maximum(counts, 1)[:, None] - 1)  # of padding nobody asks
        while (begins < counts).any():
            ends = call_ends(begins, counts, most, closed)
            held = ends - begins
            inside = (rows >= begins[:, None]) & (rows < ends[:, None])  # B,R
            wanted, places = distinct(rows - begins[:, None], inside)
            part = given.cut(begins, int(held.max()))
            logits[inside] = self._append(part, held, wanted)[places]
            begins = ends
        return logits

    def _append(self, given: Given, counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Add tokens in one call, or in one for each few rows where it must be; as `run`."""
        size, parts = self._rows_of_call(given.tokens, counts), []
        for first in range(0, self.batch, size):
            # Rows' states are a contiguous slice: nothing is copied, and little padding computed.
            group = slice(first, first + size)
            count = int(counts[group].max())
            if count:
                kept = np.minimum(rows[group], count - 1)
                parts.append(self._call(group, given.rows(group, count), counts[group], kept))
            else:
                parts.append(np.zeros((*rows[group].shape, self._vocab), np.float32))
        self.lengths += counts
        for b in np.flatnonzero(counts).tolist() if self._anew else ():
            piece = given.rows(slice(b, b + 1), int(counts[b]))
            self._held[b].add(piece.used(counts[b : b + 1]))
        logits = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return logits.astype(np.float32, copy=False)

    def _rows_of_call(self, tokens: int, counts: np.ndarray) -> int:
        """Return how many rows a call of so many tokens a row may have."""
        if self._in_rows(tokens, counts):
            return 1
        if tokens > 1 and self._on_cpu:
            return max(1, min(self.batch, self._few // tokens))
        return self.batch

    @property
    def _on_cpu(self) -> bool:
        return self.runner.gpu is None and self._limits is None

    def _piece(self, longest: int) -> int:
        """Return how many tokens a call has, 0 for all, where rows grow to `longest`."""
        if 0 < self._graph.whole_beyond < longest:
            return self._most
        # The first part must show that a row is longer than a length of `anew_beyond`.
        shown = [length + 1 for length in self._anew if length < longest]
        piece = max([self._few, *shown])
        return min(piece, self._most or piece)

    def _in_rows(self, tokens: int, counts: np.ndarray) -> bool:
        """Say whether a call must be one for each row."""
        if self.batch == 1:
            return False
        if np.count_nonzero(counts) == 1:
            return True  # nothing of the other rows is computed
        if self._limits is not None and int(self.lengths.max()) + tokens > self.context:
            return True  # padding would be written behind the end of the states
        if self._graph.append != "row":
            return False
        # With a row of no tokens, a kernel takes the last of those that it has for the new one.
        fresh = not self.lengths.any() and bool((counts == tokens).all())
        return not fresh if tokens > 1 else not counts.all()

    def _call(
        self, rows: slice, given: Given, counts: np.ndarray, wanted: np.ndarray
    ) -> np.ndarray:
        inputs = {
            **self._inputs.of_call(given.used(counts)),
            "cache_lengths": np.ascontiguousarray(self.lengths[rows]),
            "token_counts": np.ascontiguousarray(counts),
            "logit_rows": np.ascontiguousarray(wanted),
        }
        if self._graph.total_length:
            longest = int(self.lengths[rows].max()) + given.tokens
            inputs["total_length"] = np.array([longest], np.int32)
        return self.runner.run(inputs, self._states, rows=rows)[0]

    def _checked(self, input_ids: Any, counts: Any, images: Any) -> tuple[Given, np.ndarray]:
        if self._unfinished:
            raise SessionError(
                "a call of this session has failed, or is still running in another thread: begin"
                " another session"
            )
        ids = as_ids(input_ids)
        if ids.shape[0] != self.batch:
            raise SessionError(f"input_ids has {ids.shape[0]} rows; the session has {self.batch}")
        tokens = ids.shape[1]
        if counts is None:
            valid = np.full(self.batch, tokens, np.int64)
        else:
            valid = as_integers("counts", counts)
            if valid.shape != (self.batch,):
                raise SessionError(
                    f"counts has shape {list(valid.shape)}; accepted: [{self.batch}]"
                )
            if valid.min() < 1 or valid.max() > tokens:
                raise SessionError(
                    f"counts holds {valid.min()} to {valid.max()}; accepted: 1 to {tokens}"
                )
            valid = valid.astype(np.int64)
        longest = int((self.lengths + valid).max())
        self.check_room(longest - int(self.lengths.max()))
        given = self._inputs.fill(
            ids[:, : int(valid.max())], valid, images, self.lengths, self._turn
        )
        given.by_token[IDS] = within("input_ids", given.by_token[IDS], self._vocab)
        return given, valid

    @checked
    def reserve(self, tokens: Tokens) -> Any:
        """Make room for `tokens` per row and return the states as the backend keeps them.

        Raises SessionError if the memory cannot hold them.
        """
        return self._reserve(tokens)

    def _reserve(self, tokens: int) -> Any:
        if tokens <= self._capacity or (self._limits and self._capacity):
            return self._states
        # Padding may lie beyond the context, so the last step is as long as the call needs.
        least = max(tokens, self._graph.least_capacity)
        capacity = max(least, min(self._room(tokens), self.context))
        if self._limits:
            capacity = self.context
        elif not self._fits(capacity):
            capacity = least
        self._require_memory(capacity)
        kept = self._states if self._capacity else None
        self._states = self.runner.allocate(self._shaped(capacity), kept)
        self._capacity = capacity
        return self._states

    def _room(self, tokens: int) -> int:
        """Return a capacity that leaves room for what comes behind so many tokens: to move states
        takes as long as many steps."""
        doubled = max(FIRST_CAPACITY, 2 * self._capacity)
        if self.runner.gpu is None:
            return max(doubled, tokens + FIRST_CAPACITY)
        while doubled < tokens:
            doubled *= 2  # few sizes: a CUDA graph is captured for each
        return doubled

    def _fits(self, capacity: int) -> bool:
        need, have = self.runner.memory(self._shaped(capacity))
        return need <= have

    def _require_memory(self, capacity: int) -> None:
        need, have = self.runner.memory(self._shaped(capacity))
        if need > have:
            raise SessionError(
                f"{self.batch} rows of {capacity} tokens need {need:,} bytes of state;"
                f" {self.runner.place} has {have:,} bytes of memory"
            )

    def _shaped(self, capacity: int) -> list[Shaped]:
        axes = {"B": self.batch, "C": capacity}
        return [
            (s.name, tuple(axes[n] if isinstance(n, str) else n for n in s.shape), s.dtype)
            for s in self._graph.states
        ]


def distinct(rows: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return each row's distinct positions among those inside, padded with 0, and where they went.

    rows B,R integers, inside B,R bool -> positions B,P, P at least 1; indices into B,P of the
    positions inside, in their order.
    """
    each = [np.unique(row[kept]) for row, kept in zip(rows, inside, strict=True)]
    wanted = np.zeros((len(rows), max(1, *map(len, each))), np.int64)
    for row, positions in zip(wanted, each, strict=True):
        row[: len(positions)] = positions
    batch, _ = np.nonzero(inside)
    columns = [np.searchsorted(at, r[k]) for at, r, k in zip(each, rows, inside, strict=True)]
    return wanted, (batch, np.concatenate(columns))
