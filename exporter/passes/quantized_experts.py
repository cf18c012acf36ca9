"""Fuse experts in few bits into QMoE, which reads the codes of the chosen ones as stored.

before: y = lmcast.moe_experts(x, weights, chosen, Slice(both), Slice(both), down)
after:  y = com.microsoft.QMoE(x, logits, both, scales, , down, scales)

Where experts are chosen as the kernel does it, by a softmax, it takes the logits; else 1 for those
that are chosen, and with them their weights as `router_weights`.

Letters: E experts, R routes of a token, D width, I inner width.
"""

import onnx_ir as ir

from lmcast.exporter.graph.lowering import VARIANT
from lmcast.exporter.graph.requirements import require
from lmcast.exporter.passes.expert_routes import routed
from lmcast.exporter.passes.expert_stacks import stack_of, together
from lmcast.exporter.passes.rewrite import MICROSOFT, constant, insert, replace, written
from lmcast.plugins.plugin import DOMAIN

# Activation -> what the kernel adds to the second factor; gates and ups are clipped where it is 1.
BETAS = {"silu": 0.0, "clipped_swish": 1.0}


def quantized_experts(model: ir.Model) -> int:
    ours = [node for node in model.graph if node.domain == DOMAIN]
    calls = [n for n in ours if n.op_type.partition(VARIANT)[0] == "moe_experts"]
    return sum(_rewritten(model, node) for node in calls)


def _rewritten(model: ir.Model, node: ir.Node) -> bool:
    given: list[ir.Value | None] = [*node.inputs, *[None] * (9 - len(node.inputs))]
    x, weights, chosen, gate, up, down = given[:6]
    biases = given[6:]
    activation = node.attributes["activation"].as_string()
    scaled = bool(node.attributes["scale_input"].as_int())
    both, fusion = together(gate, up)
    if x is None or chosen is None or both is None or activation not in BETAS:
        return False
    first, second = stack_of(model, both, x.dtype), stack_of(model, down, x.dtype)
    if first is None or second is None or first.form != second.form:
        return False
    routes = (chosen.shape or ir.Shape(()))[-1]
    bias, own = together(biases[0], biases[1])
    unlike = own != fusion if biases[0] is not None else False
    if not isinstance(routes, int) or unlike or (scaled and routes > 1):
        return False
    beta, name, experts = BETAS[activation], str(node.name), first.shape[0]
    attributes = dict(first.form) | {
        "k": routes, "activation_type": "swiglu", "swiglu_fusion": fusion, "activation_beta": beta,
    }  # fmt: skip
    if beta:
        attributes["activation_alpha"] = node.attributes["alpha"].as_float()
        attributes["swiglu_limit"] = node.attributes["limit"].as_float()
    if scaled:
        (x,) = written(model, node, lambda op, x, w: x * op.CastLike(w, x), x, weights)
        x.type = node.outputs[0].type
    logits, own_weights, normalized = routed(model, node, experts, x, weights, chosen, scaled)
    attributes["normalize_routing_weights"] = int(normalized)
    ones: list[ir.Value | None] = []
    if first.kind == "fp4":
        scale = constant(model, node, [1.0] * experts, ir.DataType.FLOAT, f"{name}.ones")
        ones = [_kept(model, scale)] * 2
    inputs = [
        x, logits, first.codes, first.scales, bias, second.codes, second.scales, biases[2],
        None, None, None, first.zeros, second.zeros, None, own_weights, *ones,
    ]  # fmt: skip
    made = insert(model, node, "QMoE", inputs, attributes, name=name, domain=MICROSOFT)
    require(model, prepack=True)  # into tiles, of which the kernel has no other
    replace(model, node, made)
    return True


def _kept(model: ir.Model, value: ir.Value) -> ir.Value:
    """Return a constant as an initializer, which a kernel may take at load."""
    node = value.producer()
    assert node is not None
    tensor = node.attributes["value"].as_tensor()
    out = ir.Value(
        name=value.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy())
    )
    out.const_value = tensor
    model.graph.remove(node, safe=True)
    model.graph.initializers[str(out.name)] = out
    return out
