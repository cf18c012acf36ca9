"""What the text graphs of some families take of a prompt with pictures besides rows of features."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmcast.exporter.vision.processor import Places


@dataclass(frozen=True)
class Piece:
    """The tokens of one grid in a prompt: a picture, a tile, a frame pair or a clip.

    at: int64 [M], where they stand. rows, columns: of the merged tokens, M = rows * columns.
    """

    at: np.ndarray
    rows: int
    columns: int


def visible_ends(found: Places, pieces: Sequence[Piece], start: int, rope_delta: int) -> Places:
    """Let tokens of a piece see all of it: the last position that each may see (Gemma 3)."""
    ends = start + np.arange(len(found.image_rows))
    for piece in pieces:
        ends[piece.at] = start + piece.at[-1]
    return replace(found, visible_ends=ends)


def rope_positions(found: Places, pieces: Sequence[Piece], start: int, rope_delta: int) -> Places:
    """Count time, row and column for the rotation (Qwen3-VL): text goes on in all three; a piece
    has one time, and its longer side is how far it takes the count."""
    length = len(found.image_rows)
    positions = np.empty((length, 3), np.int64)
    done, count = 0, start + rope_delta
    for piece in sorted(pieces, key=lambda piece: int(piece.at[0])):
        first = int(piece.at[0])
        positions[done:first] = (count + np.arange(first - done))[:, None]
        count += first - done
        rows, columns = np.indices((piece.rows, piece.columns)).reshape(2, -1)
        positions[piece.at] = count + np.stack([np.zeros_like(rows), rows, columns], axis=1)
        count += max(piece.rows, piece.columns)
        done = int(piece.at[-1]) + 1
    positions[done:] = (count + np.arange(length - done))[:, None]
    count += length - done
    return replace(found, rope_positions=positions, rope_delta=count - start - length)
