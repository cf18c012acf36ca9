"""Pictures in a prompt: which tokens they stand at, and what a text graph is given of them.

Letters: B rows, T tokens, F features, W numbers of each: the width of the text, and as many for
each layer that takes features of its own.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lmcast.exporter.backends.images import FEATURES, Taken, without
from lmcast.exporter.backends.runner import SessionError
from lmcast.exporter.runtime.arrays import within
from lmcast.exporter.runtime.given import IDS, ROPE_POSITIONS, ROWS, VISIBLE_ENDS, Given
from lmcast.plugins.arguments import ArgumentError, shown

if TYPE_CHECKING:
    from lmcast.exporter.vision.processor import Encoded


@dataclass(eq=False)
class Picture:
    """A picture, a video or a sound as one engine takes it; its features are computed once.

    encoded: what its processor makes of it; the inputs of the tower go when it has run. rows: of
    features. digest: tells it from others. features: float rows,W; None before the tower has run.
    """

    encoded: "tuple[Encoded, ...]"
    rows: int
    digest: bytes
    features: np.ndarray | None = None

    @property
    def medium(self) -> str:
        """What it is: image, video or audio."""
        return self.encoded[0].medium if self.encoded else "image"

    @property
    def tokens(self) -> int:
        """How many tokens of a prompt stand for it; of a sound some have no features."""
        return sum(each.tokens for each in self.encoded) if self.encoded else self.rows

    @classmethod
    def of(cls, encoded: "Sequence[Encoded]") -> "Picture":
        """Return a picture that a tower has yet to see."""
        hashed = hashlib.sha256()
        for each in encoded:
            hashed.update(repr((each.medium, each.grid, each.continued)).encode())
            for name, array in sorted(each.inputs.items()):
                hashed.update(repr((name, array.shape, array.dtype)).encode())
                hashed.update(np.ascontiguousarray(array).data)
        return cls(tuple(encoded), sum(each.features for each in encoded), hashed.digest())

    @classmethod
    def of_features(cls, features: np.ndarray) -> "Picture":
        """Return a picture whose features, float F,W, are known; a tower need not see it."""
        kept = np.ascontiguousarray(features)
        digest = hashlib.sha256(repr((kept.shape, kept.dtype)).encode() + kept.tobytes()).digest()
        return cls((), len(kept), digest, kept)

    def seen(self, features: np.ndarray) -> None:
        """Take what the tower gives; what it was given is needed no longer."""
        self.features = features
        self.encoded = tuple(replace(each, inputs={}) for each in self.encoded)


@dataclass(frozen=True, eq=False)
class Images:
    """The pictures of one row of a session, among T tokens that are appended to it.

    pictures: in the order of the rows of their features.
    image_rows: int64 T, the row that stands at each token, -1 for text.
    visible_ends: int64 T, the last position of the sequence that a token may see; rope_positions:
        int64 T,3, where the rotation takes it to stand in time, row and column: as the graph takes
        them, else None.
    see: computes the features of pictures that have none; None where all have them.

    Raises SessionError for arrays of other dtypes or sizes, and for rows that no picture has.
    """

    pictures: tuple[Picture, ...]
    image_rows: np.ndarray
    visible_ends: np.ndarray | None = None
    rope_positions: np.ndarray | None = None
    see: Callable[[Sequence[Picture]], None] | None = None

    def __post_init__(self) -> None:
        listed = isinstance(self.pictures, tuple)
        if not listed or not all(isinstance(each, Picture) for each in self.pictures):
            raise SessionError(f"pictures is {shown(self.pictures)}; accepted: a tuple of Pictures")
        tokens = getattr(self.image_rows, "shape", ())[:1]
        wanted = {ROWS: tokens, VISIBLE_ENDS: tokens, ROPE_POSITIONS: (*tokens, 3)}
        for name, shape in wanted.items():
            array = getattr(self, name)
            if array is None and name != ROWS:
                continue
            if not isinstance(array, np.ndarray) or not array.size or not tokens:
                raise SessionError(f"{name} is {shown(array)}; accepted: an array, not empty")
            if array.shape != shape or array.dtype != np.int64:
                found = f"{array.dtype} {list(array.shape)}"
                raise SessionError(f"{name} is {found}; accepted: int64 {list(shape)}")
        held = sum(picture.rows for picture in self.pictures)
        within(ROWS, self.image_rows + 1, held + 1)

    @property
    def tokens(self) -> tuple[int, ...]:
        """How many tokens of a prompt stand for each picture."""
        return tuple(picture.tokens for picture in self.pictures)

    def features(self) -> np.ndarray:
        """Return float F,W: the features of all pictures; those that have none see the tower."""
        unseen = [picture for picture in self.pictures if picture.features is None]
        if unseen and self.see is not None:
            self.see(unseen)
        found = [picture.features for picture in self.pictures if picture.features is not None]
        if len(found) < len(self.pictures):
            raise SessionError("images: a picture has no features, and there is no tower to see it")
        return np.concatenate(found)

    def after(self, tokens: int) -> "Images":
        """Return the images of the tokens behind so many, with those pictures alone."""
        rows, kept, at = self.image_rows[tokens:].copy(), list[Picture](), 0
        moved = rows.copy()
        for picture in self.pictures:
            own = (rows >= at) & (rows < at + picture.rows)
            at += picture.rows
            if own.any():
                kept.append(picture)
            else:
                moved[rows >= at] -= picture.rows
        ends, positions = self.visible_ends, self.rope_positions
        return Images(
            tuple(kept),
            moved,
            None if ends is None else ends[tokens:],
            None if positions is None else positions[tokens:],
            self.see,
        )

    def followed_by(self, tokens: int) -> "Images":
        """Return the images of the same tokens with so many of text behind them, none before."""
        ends, turned, count = self.visible_ends, self.rope_positions, len(self.image_rows)
        more = np.arange(tokens)
        if ends is not None:
            ends = np.concatenate([ends, count + more])
        if turned is not None:
            behind = np.repeat(turned.max() + 1 + more[:, None], 3, axis=1)
            turned = np.concatenate([turned, behind])
        rows = np.concatenate([self.image_rows, np.full(tokens, -1)])
        return replace(self, image_rows=rows, visible_ends=ends, rope_positions=turned)

    def keys(self, ids: Sequence[int]) -> list[int]:
        """Return T numbers that are equal where tokens are: the ids, and of pictures negative
        ones, by what is in the picture. Raises SessionError for another number of ids."""
        if len(ids) != len(self.image_rows):
            raise SessionError(
                f"images: are of {len(self.image_rows)} tokens; the row has {len(ids)}"
            )
        each = [
            (int.from_bytes(picture.digest[:8]) >> 1) ^ row
            for picture in self.pictures
            for row in range(picture.rows)
        ]
        return [
            ~each[row] if row >= 0 else id
            for id, row in zip(ids, self.image_rows.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class Inputs:
    """What a text graph takes of pictures, by name and axes; of a text model nothing."""

    taken: Taken

    @property
    def width(self) -> int:
        """W."""
        return int(self.taken[FEATURES][1])

    def fill(
        self, ids: np.ndarray, counts: np.ndarray, images: Any, before: np.ndarray, turn: np.ndarray
    ) -> Given:
        """Return what rows are given: ids int64 B,T, of which counts int64 B are valid.

        images: of each row Images or None; None for no pictures. before: int64 B, tokens that the
        rows hold. turn: int64 B, what the rotation of a text token adds to its position. Where
        features stand, ids are 0: those of placeholders may lie outside the vocabulary. Raises
        SessionError.
        """
        listed = as_images(images, len(ids))
        if not self.taken:
            if any(each is not None for each in listed):
                raise SessionError("images: the graph of this session takes no pictures")
            return Given({IDS: ids})
        texts = without(self.taken, before, ids.shape[1])
        filled = {IDS: ids.copy()} | {n: a for n, a in texts.items() if n != FEATURES}
        if ROPE_POSITIONS in filled:
            filled[ROPE_POSITIONS] = filled[ROPE_POSITIONS] + turn[:, None, None]
        tables = [np.zeros((0, self.width), np.float32)]
        for b, seen in enumerate(listed):
            if seen is None:
                continue
            count, at = int(counts[b]), sum(map(len, tables))
            self._check(seen, count, int(before[b]), f"images: row {b}")
            if seen.pictures:  # a turn may have none of those before it
                tables.append(self._table(seen, f"images: row {b}"))
            rows = seen.image_rows
            filled[ROWS][b, :count] = np.where(rows < 0, -1, rows + at)
            filled[IDS][b, :count][rows >= 0] = 0
            if VISIBLE_ENDS in filled:
                filled[VISIBLE_ENDS][b, :count] = seen.visible_ends
            if ROPE_POSITIONS in filled:
                filled[ROPE_POSITIONS][b, :count] = seen.rope_positions
        return Given(filled, np.concatenate(tables))

    def _check(self, seen: Images, count: int, before: int, where: str) -> None:
        """Refuse what the graph does not take, or lacks, and positions beyond the tokens."""
        if len(seen.image_rows) != count:
            raise SessionError(
                f"{where}: are of {len(seen.image_rows)} tokens; the row has {count} new ones"
            )
        for name, low in ((VISIBLE_ENDS, before + np.arange(count)), (ROPE_POSITIONS, 0)):
            array = getattr(seen, name)
            if (array is not None) != (name in self.taken):
                accepted = "an array" if name in self.taken else "None, as the graph has no such"
                raise SessionError(f"{where}: {name} is {shown(array)}; accepted: {accepted}")
            if array is not None and ((array < low).any() or array.max() >= before + count):
                raise SessionError(
                    f"{where}: {name} holds {array.min()} to {array.max()}; the row's last token"
                    f" is at {before + count - 1}, and no token ends before itself"
                )

    def _table(self, seen: Images, where: str) -> np.ndarray:
        """Return the features of a row's pictures; raises SessionError for those of another
        model."""
        found = seen.features()
        if found.ndim != 2 or found.shape[1] != self.width:
            raise SessionError(
                f"{where}: features are {list(found.shape)}; accepted: [features, {self.width}]"
            )
        return found

    def of_call(self, given: Given) -> dict[str, np.ndarray]:
        """Return the inputs of one call by name, contiguous."""
        inputs = {name: np.ascontiguousarray(array) for name, array in given.by_token.items()}
        return inputs if given.features is None else inputs | {FEATURES: given.features}


def as_images(images: Any, rows: int) -> Sequence[Images | None]:
    """Return the images of each row; raises ArgumentError for anything else, SessionError for
    another number of rows."""
    if images is None:
        return [None] * rows
    if not isinstance(images, list | tuple) or not all(
        each is None or isinstance(each, Images) for each in images
    ):
        raise ArgumentError(f"images is {shown(images)}; accepted: a list, Images or None each")
    if len(images) != rows:
        raise SessionError(f"images has {len(images)} rows; the session has {rows}")
    return images
