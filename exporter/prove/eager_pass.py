"""The eager reference: a forward pass with one part of the model in memory at a time, and of what
has a row for each token of the vocabulary, a few rows.

Letters: B rows, T tokens, R positions that logits are wanted at, D width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import takewhile

import torch
from torch import Tensor, nn

from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.prove.by_rows import looked_up, multiplied
from lmcast.graphs import Definition, fill
from lmcast.graphs.blocks.step import Images, Step, embedded, empty

Watch = Callable[[int, nn.Module, torch.dtype], None]


@dataclass(frozen=True)
class Batch:
    """Tokens of several rows in one call.

    ids: B,T int64, padded on the right; counts: B int64, valid tokens of each row. continues:
    whether they are of the rows of the batch before, behind its tokens: several ways to go on for
    each if there are more rows, of the first ones if there are fewer; else of new rows. wanted:
    B,R int64, positions in T that logits are wanted at; None for all. images: what it takes of
    pictures, as Decoder.step does; None for none.
    """

    ids: Tensor
    counts: Tensor
    continues: bool = False
    wanted: Tensor | None = None
    images: Images | None = None


def full_pass(
    found: Definition,
    source: Checkpoint,
    batches: Mapping[torch.dtype, Sequence[Batch]],
    watch: Watch | None = None,
) -> dict[torch.dtype, list[Tensor]]:
    """Run a definition in several dtypes, each on its own batches: dtype -> logits B,R,V of each.

    watch: `watch(index, layer, dtype)` is called before a layer runs, with its weights in place, so
        that hooks can be set.
    """
    asked = [(found, dtype, own) for dtype, own in batches.items()]
    return dict(zip(batches, full_passes(asked, source, watch), strict=True))


def full_passes(
    asked: Sequence[tuple[Definition, torch.dtype, Sequence[Batch]]],
    source: Checkpoint,
    watch: Watch | None = None,
) -> list[list[Tensor]]:
    """Run definitions that have the same layers and weights, each in a dtype and on batches of its
    own; return the logits B,R,V of each batch. watch: as in full_pass.

    Memory holds one part of the model at a time; every weight is read once, of an embedding the
    rows of the tokens, and of a head some rows at a time, once for each.
    """
    read = cache(source.read)
    passes = [Pass(found, source, own, dtype, read) for found, dtype, own in asked]
    for index in range(len(asked[0][0].model.layers)):
        read.cache_clear()
        for one in passes:
            one.hidden = one.layer(index, one.hidden, watch)
    read.cache_clear()
    return [one.logits() for one in passes]


def ways(rows: Tensor, batch: Batch) -> Tensor:
    """Return what rows B,... carry, for each way in which a batch continues them."""
    if len(batch.counts) < len(rows):
        return rows[: len(batch.counts)]
    return rows.repeat_interleave(len(batch.counts) // len(rows), 0)


class Pass:
    """A forward pass of several batches in one dtype; every weight is read once for all of them.

    hidden: of each batch, B,T,D after the parts that have run, the embedding at first; the caller
        updates it.
    by_rows: the tensors of which only rows were read.
    """

    def __init__(
        self,
        found: Definition,
        source: Checkpoint,
        batches: Sequence[Batch],
        dtype: torch.dtype,
        read: Callable[[str], Tensor] | None = None,
    ):
        """read: what reads tensors that are read whole; None: source.read."""
        self._found, self._source, self._dtype, self._batches = found, source, dtype, batches
        self._read = read or source.read
        self._model = model = found.model.to("meta")
        self._steps, lengths = list[Step](), torch.empty(0)
        for batch in batches:
            lengths = ways(lengths, batch) if batch.continues else torch.zeros_like(batch.counts)
            given = lengths, batch.counts, batch.ids.shape[1], batch.images or {}
            self._steps.append(model.call(*given))
            lengths = lengths + batch.counts
        self.by_rows = list[str]()
        with self._looked_up(model.embed) as embed:
            self.hidden: list[Tensor] = [embedded(embed, b.ids, b.images or {}) for b in batches]
        if model.side is not None:
            with self._looked_up(model.side) as side:
                for batch, x, step in zip(batches, self.hidden, self._steps, strict=True):
                    side(batch.ids, x, step)

    def layer(
        self, index: int, inputs: Sequence[Tensor], watch: Watch | None = None
    ) -> list[Tensor]:
        """Return the outputs of a layer for inputs B,T,D, one for each batch."""
        states, past = self._model.states()[index], tuple[Tensor, ...]()
        outputs = []
        with self._filled(self._model.layers[index]) as layer:
            if watch is not None:
                watch(index, layer, self._dtype)
            for number, (x, step) in enumerate(zip(inputs, self._steps, strict=True)):
                batch = self._batches[number]
                if batch.continues:
                    past = tuple(ways(state, batch) for state in past)
                else:
                    past = empty(states, len(x), self._room(number), self._dtype)
                out, past = layer(x, step, past)
                outputs.append(out)
        return outputs

    def _room(self, first: int) -> int:
        """Return how many tokens a batch has, with those that continue it."""
        behind = takewhile(lambda batch: batch.continues, self._batches[first + 1 :])
        return sum(batch.ids.shape[1] for batch in (self._batches[first], *behind))

    def logits(self) -> list[Tensor]:
        """Return the logits B,R,V of each batch at the positions that it wants.

        A slab of the head at a time: what follows the product is of each logit alone.
        """
        final, pairs = self._model.final, list(zip(self.hidden, self._batches, strict=True))
        asked = [x.shape[1] if b.wanted is None else b.wanted.shape[1] for x, b in pairs]
        given = (self._found, final.head, self._source, self._dtype)
        with multiplied(*given) as head, self._filled(final):
            outputs = [
                torch.empty(len(x), most, head.rows, dtype=self._dtype)
                for x, most in zip(self.hidden, asked, strict=True)
            ]
            for begin, end in head.slabs():
                for out, (x, batch) in zip(outputs, pairs, strict=True):
                    if out.shape[1]:
                        out[..., begin:end] = final(x, batch.wanted)
        return outputs

    @contextmanager
    def _looked_up(self, part: nn.Module) -> Iterator[nn.Module]:
        """Give a part its weights, but of its embeddings only the rows of its tokens."""
        given = (self._found, part, self._source, self._dtype)
        with looked_up(*given) as tensors, self._filled(part):
            self.by_rows += tensors
            yield part

    @contextmanager
    def final(self) -> Iterator[nn.Module]:
        """Enclose the use of the norm and the head: `final(hidden, rows)` -> logits B,R,V."""
        with self._filled(self._model.final) as final:
            yield final

    @contextmanager
    def _filled(self, part: nn.Module) -> Iterator[nn.Module]:
        """Give a part of the model its weights for as long as the block runs."""
        fill(self._found, part, self._read, self._dtype)
        try:
            with torch.no_grad():
                yield part
        finally:
            part.to("meta")
