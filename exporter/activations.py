"""Whether kernels may round inputs of products with 4- and 8-bit weights (export --activations)."""

import onnx_ir as ir

from lmcast.exporter import passes
from lmcast.exporter.engine.manifest import EngineError
from lmcast.exporter.passes.nbits_matmul import rounded_products

ACTIVATIONS = ("int8", "exact")


def settle(graph: ir.Model, asked: str | None) -> None:
    """Let products of a graph be as asked; None: as their kernels are fast.

    Raises EngineError where none rounds, and there is nothing to choose.
    """
    if asked and not rounded_products(graph):
        raise EngineError(
            f"--activations {asked} changes nothing: no kernel rounds inputs of this engine, as"
            " only those of 4- and 8-bit weights do whose recipe rounds none; leave it out"
        )
    if asked == "exact":
        passes.run(graph, passes.EXACT)


def chosen(graph: ir.Model, asked: str | None) -> dict[str, str]:
    """Return the field of engine.json, of a settled graph; none where no kernel would round."""
    kind = "int8" if rounded_products(graph) else asked
    return {"activations": kind} if kind else {}
