"""The tensors of a quantized weight, and their names in engines and recipes."""

import re
from enum import StrEnum


class Part(StrEnum):
    """One tensor of a quantized weight. scales: of blocks; shared: of all block scales of a
    matrix, or of a run; zeros: the code of each block that stands for 0; minima: what the least
    number of each block is, and shared_minima what they are multiplied with."""

    CODES = "codes"
    SCALES = "scales"
    SHARED = "shared"
    ZEROS = "zeros"
    MINIMA = "minima"
    SHARED_MINIMA = "shared_minima"

    def of(self, parameter: str) -> str:
        """Return the name of this part of a parameter."""
        return f"{parameter}.{self}"


# A name after it is a slice of the part: 'P.codes.3'.
_NAME = re.compile(rf"(.*)\.(?:{'|'.join(Part)})(?:\.|$)")


def parameter_of(tensor: str) -> str:
    """Return the parameter that a tensor is a part of; its own name where it is none."""
    found = _NAME.match(tensor)
    return tensor if found is None else found[1]
