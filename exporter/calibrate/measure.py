"""How far quantized models are from the one they were made of, at the end of their streams."""

from collections.abc import Mapping

from lmcast.exporter.calibrate.streams import Stream
from lmcast.exporter.comparison import Comparison, Measured

POSITIONS = 32  # compared at a time: logits of a large vocabulary are a megabyte each


def compare(
    reference: Stream, others: Mapping[str, Stream], sizes: Mapping[str, int]
) -> dict[str, Measured]:
    """Compare streams of the same text, whose models' final parts have their weights.

    sizes: bytes of the weights of each, those of the reference as 'reference'.
    """
    compared = {name: Comparison(reference.ids) for name in others}
    every = zip(reference.logits(), *(stream.logits() for stream in others.values()), strict=True)
    for chunk, (wanted, *found) in enumerate(every):
        for comparison, logits in zip(compared.values(), found, strict=True):
            for begin in range(0, len(wanted), POSITIONS):
                rows = slice(begin, begin + POSITIONS)
                comparison.add(chunk, begin, wanted[rows], logits[rows])
    return {
        name: comparison.measured(sizes[name], sizes["reference"])
        for name, comparison in compared.items()
    }
