"""Parity with pictures: what the tower makes of them, and rows with features among their tokens.

No picture is needed. A tower knows of places what its inputs say, so that any tokens of a grid are
a picture to it: few of them show all that it computes. Features of rows are drawn.

Letters: B rows, T tokens, N pictures of one grid, M merged tokens, F features, H width of the text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.dtypes import DTYPES
from lmcast.exporter.prove.compare import compare
from lmcast.exporter.prove.eager_pass import Batch, full_passes
from lmcast.exporter.prove.eager_tower import tower_pass
from lmcast.exporter.prove.parity_report import Result
from lmcast.exporter.prove.references import Logits, Reference, padded
from lmcast.exporter.prove.scenarios import FEATURES, PICTURES
from lmcast.exporter.runtime.engine import Engine
from lmcast.exporter.runtime.images import Images, Picture
from lmcast.exporter.vision import kinds
from lmcast.exporter.vision.pictures import open_picture
from lmcast.exporter.vision.positions import Piece
from lmcast.exporter.vision.processor import Encoded, Places, Processor, encode, encode_audio
from lmcast.graphs import Definition

SIDE = 256  # pixels of a picture that tokens are taken of
CALLS = ((1, 6), (2, 9), (3, 1))  # N and M of the calls of a tower
# Rows: so many tokens of text, or the rows and columns of the tokens of a picture.
ROWS: tuple[tuple[int | tuple[int, int], ...], ...] = (
    (3, (2, 3), 2, (1, 2), 4),
    ((2, 2), 5),
)
SAMPLES = (5000, 12000)  # of sounds
DRAWN = 4  # times, where rounding decides what is computed of the tokens of before


def compare_pictures(
    engine: Engine,
    plain: Definition,
    rough: Definition,
    source: Checkpoint,
    shown: Sequence[Encoded] = (),
) -> Iterator[Result]:
    """Run an engine's tower, and rows with pictures; nothing where it takes text alone.

    plain: what fp64 computes; rough: what eager computes in the engine's format, with the rounding
    of a recipe. shown: pictures for the tower; none: drawn. Raises PictureError for features that
    are not finite.
    """
    if engine.manifest.about.vision is None:
        return
    yield compare_features(engine, plain, source, shown)
    if engine.session(1).context >= min(map(tokens_of, ROWS)):
        yield compare_rows(engine, plain, rough, source)


def tokens_of(row: Sequence[int | tuple[int, int]]) -> int:
    """Return how many tokens one of ROWS has."""
    return sum(part if isinstance(part, int) else part[0] * part[1] for part in row)


def prepared(engine: Engine, files: Sequence[Path]) -> list[Encoded]:
    """Return pictures in files as an engine's tower takes them; raises InputError."""
    return encode(engine.tower.processor, [open_picture(file) for file in files]) if files else []


def compare_features(
    engine: Engine, found: Definition, source: Checkpoint, shown: Sequence[Encoded] = ()
) -> Result:
    """Compare what the tower makes of a few pictures, and that of sounds of a few."""
    about = engine.manifest.about
    assert about.vision is not None
    assert found.tower is not None
    format = DTYPES[about.dtype]
    given = [(found.tower, list(shown) or drawn_pictures(about.vision.processor))]
    if found.sounds is not None:
        given.append((found.sounds, drawn_sounds(about.vision.processor)))

    def eager(dtype: torch.dtype) -> Logits:
        calls = [(tower, [one.inputs for one in own]) for tower, own in given]
        each = [tower_pass(tower, source, inputs, dtype) for tower, inputs in calls]
        return _by_place([features for own in each for features in own])

    exact, near = eager(torch.float64), eager(format.torch)
    begin, pictures = perf_counter(), [Picture.of([one]) for _, own in given for one in own]
    engine.tower.see(pictures)
    seconds = perf_counter() - begin
    features = [torch.from_numpy(p.features) for p in pictures if p.features is not None]
    reference = Reference([], exact, _error(near, exact))
    result = compare(FEATURES, _by_place(features), reference, format.name)
    return replace(result, seconds=seconds)


def drawn_pictures(processor: Processor) -> list[Encoded]:
    """Return pictures of CALLS, of noise; the same on every machine."""
    rng = np.random.Generator(np.random.PCG64(1))
    whole = encode(processor, [rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)])[0]
    if "patches" not in whole.inputs:
        return [whole]
    _, most, *patch = whole.inputs["patches"].shape
    found = []
    for number, (pictures, tokens) in enumerate(CALLS):
        count = min(tokens, most)
        first = int(rng.integers(0, most - count + 1))
        own = {n: array[first : first + count] for n, array in whole.inputs.items()}
        shape = (pictures, count, *patch)
        own["patches"] = rng.standard_normal(shape, np.float32)
        own = {name: np.ascontiguousarray(own[name]) for name in whole.inputs}
        grid = (number, 1, count)  # one that no other has: each is a call of its own
        found.append(replace(whole, grid=grid, inputs=own, features=pictures * count))
    return found


def drawn_sounds(processor: Processor) -> list[Encoded]:
    """Return sounds of several lengths, of noise; the same on every machine."""
    rng = np.random.Generator(np.random.PCG64(1))
    noise = (rng.standard_normal(samples, np.float32) for samples in SAMPLES)
    return [one for sound in noise for one in encode_audio(processor, sound)]


def _by_place(each: Sequence[torch.Tensor]) -> Logits:
    """Return numbers by the call and the place that they are of."""
    wide = [(t if t.dtype == torch.float64 else t.float()).numpy() for t in each]
    return {(i, j): row for i, rows in enumerate(wide) for j, row in enumerate(rows)}


def _error(near: Logits, exact: Logits) -> float:
    return float(np.max([np.abs(near[at] - exact[at]).max() for at in near]))


@dataclass(frozen=True)
class Seen:
    """A row with pictures: its ids T, what stands at them, and the features of each picture."""

    ids: list[int]
    places: Places
    features: list[np.ndarray]

    def images(self, begin: int, end: int) -> Images:
        """Return what an engine takes of tokens begin to end - 1."""
        each = (self.places.image_rows, self.places.visible_ends, self.places.rope_positions)
        cut = [None if array is None else array[begin:end] for array in each]
        assert cut[0] is not None
        return Images(tuple(map(Picture.of_features, self.features)), cut[0], cut[1], cut[2])

    @property
    def first(self) -> int:
        """Where the first picture has ended."""
        return int(np.flatnonzero(self.places.image_rows == len(self.features[0]) - 1)[0]) + 1


def drawn_rows(
    processor: Processor, vocab: int, width: int, dtype: torch.dtype, seed: int, context: int
) -> list[Seen]:
    """Return rows of ROWS, as many as fit; features are numbers of the dtype, H wide."""
    rng = np.random.Generator(np.random.PCG64(seed))
    further = kinds.get(processor.kind).positions
    found = []
    for row in ROWS:
        ids, rows, pieces, features = list[int](), list[int](), list[Piece](), list[np.ndarray]()
        for part in row:
            if isinstance(part, int):
                ids += rng.integers(0, vocab, part).tolist()
                rows += [-1] * part
                continue
            count, held = part[0] * part[1], sum(map(len, features))
            pieces.append(Piece(len(ids) + np.arange(count), *part))
            features.append(_numbers(rng, (count, width), dtype))
            ids += [0] * count
            rows += range(held, held + count)
        places = Places(np.array(ids), np.array(rows))
        if further is not None:
            places = further(places, pieces, 0, 0)
        if len(ids) <= context:
            found.append(Seen(ids, places, features))
    return found


def _numbers(rng: np.random.Generator, shape: tuple[int, int], dtype: torch.dtype) -> np.ndarray:
    drawn = torch.from_numpy(rng.standard_normal(shape, np.float32))
    numbers: np.ndarray = drawn.to(dtype).float().numpy()
    return numbers


def compare_rows(
    engine: Engine, plain: Definition, rough: Definition, source: Checkpoint
) -> Result:
    """Compare rows with pictures, each alone, in two calls, and together.

    Where rounding decides so much that any logits would be allowed, others are drawn.
    """
    about = engine.manifest.about
    assert about.vision is not None
    format, width = DTYPES[about.dtype], plain.model.image_width
    known = (about.vision.processor, engine.vocab_size, width, format.torch)
    for seed in range(DRAWN):
        rows = drawn_rows(*known, seed, engine.session(1).context)
        exact, near = _eager(plain, rough, source, rows, format.torch)
        reference = Reference([], exact, _error(near, exact))
        if reference.tells(format.name):
            break
    begin = perf_counter()
    result = compare(PICTURES, _run(engine, rows), reference, format.name)
    return replace(result, seconds=perf_counter() - begin)


def _eager(
    plain: Definition,
    rough: Definition,
    source: Checkpoint,
    rows: Sequence[Seen],
    dtype: torch.dtype,
) -> tuple[Logits, Logits]:
    """Return the logits of fp64 and of eager in a dtype, by the rows of `_run`."""
    together = _batch(rows, [(0, len(row.ids)) for row in rows])
    begins = [_batch([row], [(0, row.first)]) for row in rows]
    rests = [_batch([row], [(row.first, len(row.ids))], continues=True) for row in rows]
    batches = [together, *(b for pair in zip(begins, rests, strict=True) for b in pair)]
    asked = [(plain, torch.float64, batches), (rough, dtype, batches)]
    exact, near = (
        _placed(
            [values.float() if values.dtype != torch.float64 else values for values in own], rows
        )
        for own in full_passes(asked, source)
    )
    return exact, near


def _placed(logits: Sequence[torch.Tensor], rows: Sequence[Seen]) -> Logits:
    """Return logits by row and position: of whole rows, and of those in two calls behind them."""
    whole, found = logits[0].numpy(), Logits()
    for r, row in enumerate(rows):
        parts = np.concatenate([part[0].numpy() for part in logits[1 + 2 * r : 3 + 2 * r]])
        for t in range(len(row.ids)):
            found[r, t] = whole[r, t]
            found[r + len(rows), t] = parts[t]
            found[r + 2 * len(rows), t] = whole[r, t]
    return found


def _batch(
    rows: Sequence[Seen], parts: Sequence[tuple[int, int]], continues: bool = False
) -> Batch:
    """Return parts of rows as a batch for eager, with logits wanted everywhere."""
    cut = [row.ids[a:b] for row, (a, b) in zip(rows, parts, strict=True)]
    ids, counts = padded(cut)
    # Padding sees itself: a token that sees nothing is NaN, and so is what it is masked out of.
    own_places = np.array([[a] for a, _ in parts]) + np.arange(ids.shape[1])
    places = {"image_rows": np.full(ids.shape, -1, np.int64)}
    if rows[0].places.visible_ends is not None:
        places["visible_ends"] = own_places
    if rows[0].places.rope_positions is not None:
        places["rope_positions"] = np.repeat(own_places[..., None], 3, 2)
    held = 0
    for r, (row, (a, b)) in enumerate(zip(rows, parts, strict=True)):
        own = row.places.image_rows[a:b]
        places["image_rows"][r, : b - a] = np.where(own < 0, -1, own + held)
        held += sum(map(len, row.features))
        for name in places.keys() - {"image_rows"}:
            places[name][r, : b - a] = getattr(row.places, name)[a:b]
    features = np.concatenate([part for row in rows for part in row.features])
    images = {"image_features": features, **places}
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(counts),
        continues=continues,
        images={name: torch.from_numpy(array) for name, array in images.items()},
    )


def _run(engine: Engine, rows: Sequence[Seen]) -> Logits:
    """Return the logits of an engine: of each row alone; of each in two calls, which come behind
    them; and of all together, if a session takes so many, behind those."""
    found, each = Logits(), len(rows)
    for r, row in enumerate(rows):
        end = len(row.ids)
        for number, cuts in enumerate(((0, end), (0, row.first, end))):
            session = engine.session(1)
            for a, b in pairwise(cuts):
                ids, wanted = np.array([row.ids[a:b]]), np.arange(b - a)[None]
                logits = session.run(ids, None, wanted, images=[row.images(a, b)])[0]
                found |= {(r + number * each, a + t): logits[t] for t in range(b - a)}
    limits = engine.runner.limits
    if each > 1 and (limits is None or limits.rows >= each):
        ids, counts = padded([row.ids for row in rows])
        wanted = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        images = [row.images(0, len(row.ids)) for row in rows]
        wanted = np.minimum(wanted, counts[:, None] - 1)
        logits = engine.session(each).run(ids, counts, wanted, images=images)
        for r, row in enumerate(rows):
            found |= {(r + 2 * each, t): logits[r, t] for t in range(len(row.ids))}
    return found
