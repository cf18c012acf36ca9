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


AND = " + "  # between the names of tensors that are joined to one
# A name after it is a slice of the part: 'P.codes.3'.
_NAME = re.compile(rf"(.*)\.(?:{'|'.join(Part)})(?:\.|$)")


def parameters_of(tensor: str) -> list[str]:
    """Return the parameters that a tensor has parts of; its own name where it has none."""
    found = ((name, _NAME.match(name)) for name in tensor.split(AND))
    return [name if match is None else match[1] for name, match in found]


def parameter_of(tensor: str) -> str:
    """Return the parameter that a tensor is a part of, the first of several that are joined."""
    return parameters_of(tensor)[0]
