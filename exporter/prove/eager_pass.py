"""The eager reference: a forward pass with one part of the model in memory at a time.

Letters: B rows, T tokens, R positions that logits are wanted at, D width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.graphs import Definition, fill
from lmcast.graphs.blocks.step import Step, empty

Watch = Callable[[int, nn.Module, torch.dtype], None]


def full_pass(
    found: Definition,
    source: Checkpoint,
    input_ids: Tensor,
    counts: Tensor,
    dtypes: tuple[torch.dtype, ...],
    rows: Tensor | None = None,
    *,
    watch: Watch | None = None,
) -> dict[torch.dtype, Tensor]:
    """Run a definition in several dtypes: dtype -> logits B,R,V.

    input_ids: B,T int64; counts: B int64, valid tokens of each row, padded on the right.
    dtypes: to compute in; every weight is read once per dtype.
    rows: B,R int64, positions that logits are wanted at; None for all.
    watch: `watch(index, layer, dtype)` is called before a layer runs, with its weights in place, so
        that hooks can be set.

    Memory holds one part of the model at a time.
    """
    batch = [(input_ids, counts)]
    passes = {dtype: Pass(found, source.read, batch, dtype) for dtype in dtypes}
    for index in range(len(found.model.layers)):
        for one in passes.values():
            one.hidden = one.layer(index, one.hidden, watch)
    logits = {}
    for dtype, one in passes.items():
        with one.final() as final:
            logits[dtype] = final(one.hidden[0], rows)
    return logits


class Pass:
    """A forward pass of several batches in one dtype; every weight is read once for all of them.

    batches: (ids B,T int64, valid tokens of each row B int64).
    hidden: of each batch, B,T,D after the parts that have run, the embedding at first; the caller
        updates it.
    """

    def __init__(
        self,
        found: Definition,
        read: Callable[[str], Tensor],
        batches: Sequence[tuple[Tensor, Tensor]],
        dtype: torch.dtype,
    ):
        self._found, self._read, self._dtype = found, read, dtype
        self._model = model = found.model.to("meta")
        self._steps = [Step(torch.zeros_like(n), n, ids.shape[1]) for ids, n in batches]
        with self._filled(model.embed) as embed:
            self.hidden: list[Tensor] = [embed(ids) for ids, _ in batches]
        if model.side is not None:
            with self._filled(model.side) as side:
                for (ids, _), x, step in zip(batches, self.hidden, self._steps, strict=True):
                    side(ids, x, step)

    def layer(
        self, index: int, inputs: Sequence[Tensor], watch: Watch | None = None
    ) -> list[Tensor]:
        """Return the outputs of a layer for inputs B,T,D, one for each batch."""
        states = self._model.states()[index]
        outputs = []
        with self._filled(self._model.layers[index]) as layer:
            if watch is not None:
                watch(index, layer, self._dtype)
            for x, step in zip(inputs, self._steps, strict=True):
                batch, tokens = step.positions.shape
                past = empty(states, batch, tokens, self._dtype)
                outputs.append(layer(x, step, past)[0])
        return outputs

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
