"""What a call of a text graph is given by token: ids, and what pictures add to them.

Letters: B rows, T tokens, F features, W numbers of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IDS, ROWS = "input_ids", "image_rows"
VISIBLE_ENDS, ROPE_POSITIONS = "visible_ends", "rope_positions"


@dataclass(frozen=True)
class Given:
    """Tokens of all rows of a session, or of some.

    by_token: int64 B,T, or B,T,3, by the names of the graph's inputs; input_ids always.
    features: F,W, of which image_rows holds rows; None where the graph takes none.
    """

    by_token: dict[str, np.ndarray]
    features: np.ndarray | None = None

    @property
    def tokens(self) -> int:
        """T."""
        return int(self.by_token[IDS].shape[1])

    def rows(self, rows: slice, tokens: int) -> "Given":
        """Return these rows, up to so many tokens."""
        kept = {name: array[rows, :tokens] for name, array in self.by_token.items()}
        return Given(kept, self.features)

    def cut(self, begins: np.ndarray, tokens: int) -> "Given":
        """Return so many tokens of each row from where it begins, int64 B; behind a row's end,
        any."""
        if (begins == begins[0]).all():
            start = int(begins[0])
            cut = {n: array[:, start : start + tokens] for n, array in self.by_token.items()}
            return Given(cut, self.features)
        at = np.minimum(begins[:, None] + np.arange(tokens), self.tokens - 1)
        rows = np.arange(len(begins))[:, None]
        return Given({n: array[rows, at] for n, array in self.by_token.items()}, self.features)

    def among(self, batch: int) -> "Given":
        """Return a batch whose rows are all these tokens of one row."""
        return Given(
            {n: np.repeat(array, batch, axis=0) for n, array in self.by_token.items()},
            self.features,
        )

    def used(self, counts: np.ndarray) -> "Given":
        """Return the same with those features alone that the first counts int64 B tokens of the
        rows use, each once; a graph takes at least one: zeros, where none is used."""
        if self.features is None:
            return self
        rows = self.by_token[ROWS]
        taken = (rows >= 0) & (np.arange(self.tokens) < counts[:, None])
        kept, places = np.unique(rows[taken], return_inverse=True)
        placed = np.full(rows.shape, -1, np.int64)
        placed[taken] = places.ravel()
        if len(kept):
            features = self.features[kept]
        else:
            features = np.zeros((1, self.features.shape[1]), self.features.dtype)
        return Given({**self.by_token, ROWS: placed}, features)

    def closed(self, lengths: np.ndarray) -> np.ndarray | None:
        """Return bool B,T: behind which tokens a call may end, of rows that hold lengths int64 B
        before; None: behind all.

        Tokens of a picture that see it whole must be of one call: its keys must be there.
        """
        ends = self.by_token.get(VISIBLE_ENDS)
        if ends is None:
            return None
        closed: np.ndarray = ends <= lengths[:, None] + np.arange(self.tokens)
        return closed


class History:
    """All tokens of one row so far, for a row that is computed anew."""

    MOST = 256  # pieces, one a step: fewer are copied often, more take as much as what they hold

    def __init__(self) -> None:
        self._pieces: list[Given] = []

    def add(self, piece: Given) -> None:
        """Add tokens of one row."""
        self._pieces.append(piece)
        if len(self._pieces) > self.MOST:
            self._pieces = [joined(self._pieces)]

    def followed_by(self, piece: Given) -> Given:
        """Return all tokens, and then these."""
        return joined([*self._pieces, piece])


def joined(pieces: Sequence[Given]) -> Given:
    """Return the tokens of pieces, at least one, after each other."""
    tables = [piece.features for piece in pieces if piece.features is not None]
    by_token = {
        name: np.concatenate([piece.by_token[name] for piece in pieces], axis=1)
        for name in pieces[0].by_token
    }
    if not tables:
        return Given(by_token)
    starts = np.cumsum([0, *map(len, tables)])
    by_token[ROWS] = np.concatenate(
        [
            np.where(p.by_token[ROWS] < 0, -1, p.by_token[ROWS] + start)
            for p, start in zip(pieces, starts, strict=False)
        ],
        axis=1,
    )
    return Given(by_token, np.concatenate(tables))


def call_ends(
    begins: np.ndarray, counts: np.ndarray, most: int, closed: np.ndarray | None
) -> np.ndarray:
    """Return int64 B where the calls of rows end that begin there, of `most` tokens if it can be.

    begins, counts: int64 B. closed: as of Given.closed. A call ends at the last place that is
    closed within `most`, or else at the first one behind.
    """
    ends: np.ndarray = np.minimum(begins + most, counts)
    if closed is None:
        return ends
    for b in np.flatnonzero(ends < counts).tolist():
        places = np.flatnonzero(closed[b, begins[b] : counts[b]]) + begins[b] + 1
        within = places[places <= ends[b]]
        ends[b] = within[-1] if within.size else places[0] if places.size else counts[b]
    return ends


def longest_picture(closed: np.ndarray | None, counts: np.ndarray) -> int:
    """Return the most tokens that must be of one call; closed: as of Given.closed."""
    if closed is None:
        return 1
    longest = 1
    for row, count in zip(closed, counts.tolist(), strict=True):
        places = np.flatnonzero(np.append(row[: max(count - 1, 0)], True))
        longest = max(longest, int(np.diff(places, prepend=-1).max()))
    return longest
