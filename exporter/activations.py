"""Whether kernels may round inputs of products with 4- and 8-bit weights (export --activations)."""

import onnx_ir as ir

from lmcast.exporter import passes
from lmcast.exporter.engine.manifest import EngineError
from lmcast.exporter.passes.nbits_matmul import rounded_products
from lmcast.exporter.passes.rewrite import nodes_of

ACTIVATIONS = ("int8", "exact")


def settle(graph: ir.Model, asked: str | None) -> None:
    """Let products of a graph be as asked; None: as their kernels are fast.

    Raises EngineError where none rounds, and there is nothing to choose.
    """
    if asked and not rounded_products(graph):
        raise EngineError(
            f"--activations {asked} changes nothing: no kernel of this engine rounds inputs, as"
            " only those for weights of 4 and 8 bits do; leave it out"
        )
    if asked == "exact":
        passes.run(graph, passes.EXACT)


def chosen(graph: ir.Model) -> dict[str, str]:
    """Return the field of engine.json; none where no product has weights of 4 or 8 bits."""
    if rounded_products(graph):
        return {"activations": "int8"}
    return {"activations": "exact"} if any(nodes_of(graph, "MatMulNBits")) else {}
