"""Divergence of quantized models from the unquantized one, at the end of their streams."""

from collections.abc import Mapping

from torch import nn

from lmcast.exporter.calibrate.hidden_states import Stream
from lmcast.exporter.prove.divergence import Comparison, Measured

POSITIONS = 32  # compared at a time: logits of a large vocabulary are a megabyte each


def compare(
    reference: tuple[Stream, nn.Module],
    others: Mapping[str, Stream],
    final: nn.Module,
    sizes: Mapping[str, int],
) -> dict[str, Measured]:
    """Compare streams of the same text with that of the unquantized model.

    reference: the stream of that model, and its final part with its weights.
    final: the final part of the others.
    sizes: bytes of the weights of each, those of the reference as 'reference'.
    """
    stream, unquantized = reference
    compared = {name: Comparison(stream.ids) for name in others}
    found_logits = (other.logits(final) for other in others.values())
    every = zip(stream.logits(unquantized), *found_logits, strict=True)
    for chunk, (wanted, *found) in enumerate(every):
        for comparison, logits in zip(compared.values(), found, strict=True):
            for begin in range(0, len(wanted), POSITIONS):
                rows = slice(begin, begin + POSITIONS)
                comparison.add(chunk, begin, wanted[rows], logits[rows])
    return {
        name: comparison.measured(sizes[name], sizes["reference"])
        for name, comparison in compared.items()
    }
