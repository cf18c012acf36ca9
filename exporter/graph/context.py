"""How many tokens a row of a graph may hold, for passes that make tables of positions."""

import onnx_ir as ir

KEY = "context"  # in ir.Model.meta, which is not written into the file


def set_context(model: ir.Model, tokens: int) -> None:
    """Record the most tokens of a row."""
    model.meta[KEY] = tokens


def context(model: ir.Model) -> int:
    """Return the most tokens of a row; raises KeyError where nobody has said."""
    found: int = model.meta[KEY]
    return found


def is_text(model: ir.Model) -> bool:
    """Whether rows of tokens go through a graph, and somebody has said how many; not of a tower."""
    return KEY in model.meta
