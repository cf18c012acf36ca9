"""The eager model, one part in memory at a time: what engines are held against."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.graphs import Definition, fill
from lmcast.graphs.blocks.step import Step, empty


def full_pass(
    found: Definition,
    source: Checkpoint,
    input_ids: Tensor,
    counts: Tensor,
    dtypes: tuple[torch.dtype, ...],
    rows: Tensor | None = None,
    *,
    watch: Callable[[int, nn.Module, torch.dtype], None] | None = None,
) -> dict[torch.dtype, Tensor]:
    """Run input_ids B,T int64 through the definition in each dtype: dtype -> logits B,R,V.

    counts B int64: valid tokens of each row, padded on the right. rows B,R int64: positions that
    logits are wanted at, None for all. Every weight is read once per dtype, and memory holds one
    part of the model at a time, whatever its size. `watch(index, layer, dtype)` is called before a
    layer runs, with its weights in place, so that hooks can be set.
    """
    batch, tokens = input_ids.shape
    lengths = torch.zeros(batch, dtype=torch.int64)
    steps = {dtype: Step(lengths, counts, tokens) for dtype in dtypes}
    model = found.model.to("meta")
    hidden: dict[torch.dtype, Tensor] = {}
    with torch.no_grad():
        for dtype in dtypes:
            with _filled(found, model.embed, source, dtype) as embed:
                hidden[dtype] = embed(input_ids)
        if model.side is not None:
            for dtype in dtypes:
                with _filled(found, model.side, source, dtype) as side:
                    side(input_ids, hidden[dtype], steps[dtype])
        for index, (layer, states) in enumerate(zip(model.layers, model.states(), strict=True)):
            for dtype in dtypes:
                with _filled(found, layer, source, dtype):
                    if watch is not None:
                        watch(index, layer, dtype)
                    past = empty(states, batch, tokens, dtype)
                    hidden[dtype] = layer(hidden[dtype], steps[dtype], past)[0]
        logits = {}
        for dtype in dtypes:
            with _filled(found, model.final, source, dtype) as final:
                logits[dtype] = final(hidden[dtype], rows)
    return logits


@contextmanager
def _filled(
    found: Definition, part: nn.Module, source: Checkpoint, dtype: torch.dtype
) -> Iterator[nn.Module]:
    """Give a part of the model its weights for as long as the block runs."""
    fill(found, part, source.read, dtype)
    try:
        yield part
    finally:
        part.to("meta")
