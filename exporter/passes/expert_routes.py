"""How QMoE is told which experts to take, and their weights.

Letters: E experts, R routes of a token; `...` stands for any leading axes.
"""

import onnx_ir as ir

from lmcast.exporter.graph.lowering import VARIANT
from lmcast.exporter.passes.rewrite import written
from lmcast.plugins.onnx_builder import Builder, DataType, Value


def routed(
    model: ir.Model,
    node: ir.Node,
    experts: int,
    x: ir.Value,
    weights: ir.Value | None,
    chosen: ir.Value,
    scaled: bool,
) -> tuple[ir.Value, ir.Value | None, bool]:
    """Return what the kernel chooses by, its weights where those are others, and whether it divides
    weights by their sum."""
    router = chosen.producer()
    if router is not None and not scaled and weights is router.outputs[0]:
        normalized = _plain(router)
        logits = router.inputs[0]
        if normalized is not None and logits is not None and logits.dtype == x.dtype:
            flat = written(model, node, lambda op, x: op.Reshape(x, [-1, experts]), logits)
            return flat[0], None, normalized

    def dense(op: Builder, chosen: Value, weights: Value, x: Value) -> list[Value]:
        numbers = op.constant([[e] for e in range(experts)])
        taken = op.Equal(op.Unsqueeze(chosen, [-2]), numbers)  # ...,E,R
        one = op.Cast(taken, to=DataType.FLOAT)
        shares = one if scaled else op.Where(taken, op.Unsqueeze(weights, [-2]), 0.0)
        sums = [op.ReduceSum(part, [-1], keepdims=0) for part in (one, shares)]
        return [op.Reshape(op.CastLike(part, x), [-1, experts]) for part in sums]

    chosen_by, shares = written(model, node, dense, chosen, weights, x)
    return chosen_by, shares, False


def _plain(router: ir.Node) -> bool | None:
    """Return whether a softmax router divides weights by their sum; None for another router."""
    if router.op_type.partition(VARIANT)[0] != "moe_route" or len(router.inputs) > 1:
        return None
    given = {name: attribute.value for name, attribute in router.attributes.items()}
    plain = (given["score"], given["groups"], given["scale"]) == ("softmax", 1, 1.0)
    return given["epsilon"] == 0 if plain and given["epsilon"] <= 0 else None
