"""Fuse experts in few bits into QMoE, which reads the codes of the chosen ones as stored.

before: y = lmcast.moe_experts(x, weights, chosen, Slice(both), Slice(both), down)
after:  y = com.microsoft.QMoE(x, logits, both, scales, , down, scales)

Where experts are chosen as the kernel does it, by a softmax, it takes the logits; else 1 for those
that are chosen, and with them their weights as `router_weights`.

Letters: E experts, R routes of a token, D width, I inner width.
"""

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from lmcast.exporter.dtypes import DTYPES
from lmcast.exporter.graph.lowering import VARIANT
from lmcast.exporter.graph.requirements import require
from lmcast.exporter.passes.nbits import bytes_of, integer_weight
from lmcast.exporter.passes.rewrite import MICROSOFT, constant, insert, replace, written
from lmcast.graphs.weights.elements import E2M1
from lmcast.plugins.onnx_builder import Builder, DataType, Value
from lmcast.plugins.plugin import DOMAIN

BYTE = ir.DataType.UINT8
FP4 = ir.DataType(DTYPES[E2M1.dtype].onnx)
BLOCKS = (32, 64, 128)  # columns that share a scale
# What widths are a multiple of: tiles of the kernel for integers, and blocks of MXFP4.
TILES = {"int": 64, "fp4": 32}
# Activation -> what the kernel adds to the second factor; gates and ups are clipped where it is 1.
BETAS = {"silu": 0.0, "clipped_swish": 1.0}


@dataclass(frozen=True)
class Stack:
    """A stack of matrices E,N,K as the kernel takes it.

    kind: its name there; form: attributes that those of a layer share.
    """

    codes: ir.Value
    scales: ir.Value
    zeros: ir.Value | None
    kind: str
    shape: tuple[int, ...]
    form: tuple[tuple[str, Any], ...]


def quantized_experts(model: ir.Model) -> int:
    ours = [node for node in model.graph if node.domain == DOMAIN]
    calls = [n for n in ours if n.op_type.partition(VARIANT)[0] == "moe_experts"]
    return sum(_rewritten(model, node) for node in calls)


def _rewritten(model: ir.Model, node: ir.Node) -> bool:
    x, weights, chosen, gate, up, down, *biases = [*node.inputs, *[None] * (9 - len(node.inputs))]
    activation = node.attributes["activation"].as_string()
    scaled = bool(node.attributes["scale_input"].as_int())
    both, fusion = _together(gate, up)
    if x is None or chosen is None or both is None or activation not in BETAS:
        return False
    first, second = _stack(model, both, x.dtype), _stack(model, down, x.dtype)
    if first is None or second is None or first.form != second.form:
        return False
    routes = (chosen.shape or ir.Shape(()))[-1]
    bias, own = _together(biases[0], biases[1])
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
    logits, own_weights, normalized = _routed(model, node, experts, x, weights, chosen, scaled)
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
    out = ir.Value(name=value.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape))
    out.const_value = tensor
    model.graph.remove(node, safe=True)
    model.graph.initializers[str(out.name)] = out
    return out


def _together(gate: ir.Value | None, up: ir.Value | None) -> tuple[ir.Value | None, int]:
    """Return what two values are the rows of, and how: 1 in turns, 2 one half behind the other."""
    found = [_rows(value) for value in (gate, up)]
    if found[0] is None or found[1] is None or found[0][0] is not found[1][0]:
        return None, 0
    (whole, *first), (_, *second) = found[0], found[1]
    assert whole.shape is not None
    rows = int(whole.shape.numpy()[1])
    if (first[0], first[2], second[0], second[2]) == (0, 2, 1, 2):
        return whole, 1
    halves = first == [0, rows // 2, 1] and second == [rows // 2, rows, 1]
    return (whole, 2) if halves else (None, 0)


def _rows(value: ir.Value | None) -> tuple[ir.Value, int, int, int] | None:
    """Return what a value is a slice of along axis 1, and where it starts, stops, and its step."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Slice" or node.inputs[0] is None:
        return None
    given = [ir.convenience.get_const_tensor(bound) for bound in node.inputs[1:] if bound]
    numbers = [tensor.numpy().tolist() for tensor in given if tensor is not None]
    if len(numbers) != 4 or numbers[2] != [1]:
        return None
    (start,), (stop,), _, (step,) = numbers
    return node.inputs[0], start, stop, step


def _stack(model: ir.Model, value: ir.Value | None, dtype: ir.DataType | None) -> Stack | None:
    """Return the stack that a value is dequantized from, where the kernel takes it."""
    found = _integers(model, value, dtype) or _fp4(model, value)
    if found is None or any(size % TILES[found.kind] for size in found.shape[1:]):
        return None
    return found


def _integers(model: ir.Model, value: ir.Value | None, dtype: ir.DataType | None) -> Stack | None:
    weight = integer_weight(value)
    if weight is None or weight.scales.dtype != dtype or weight.block not in BLOCKS:
        return None
    experts, rows, columns = weight.shape
    blocks, bits = columns // weight.block, weight.bits
    form = {
        "quant_type": "int", "expert_weight_bits": bits, "block_size": weight.block,
        "weights_prepacked": 0,
    }  # fmt: skip
    zeros = None
    if weight.zeros is not None:
        zeros = bytes_of(model, weight.zeros, BYTE, (experts, rows, blocks * bits // 8))
    return Stack(
        bytes_of(model, weight.codes, BYTE, (experts, rows, columns * bits // 8)),
        bytes_of(model, weight.scales, dtype, (experts, rows, blocks)),
        zeros, "int", weight.shape, tuple(form.items()),
    )  # fmt: skip


def _fp4(model: ir.Model, value: ir.Value | None) -> Stack | None:
    """Return a stack of MXFP4 in columns."""
    turn = value.producer() if value is not None else None
    if turn is None or turn.op_type != "Transpose" or turn.inputs[0] is None:
        return None
    node = turn.inputs[0].producer()
    codes = node.inputs[0] if node is not None and node.op_type == "DequantizeLinear" else None
    if node is None or codes is None or codes.dtype != FP4 or node.inputs[1] is None:
        return None
    turned = node.inputs[1].producer()
    if turned is None or turned.op_type != "Transpose" or turned.inputs[0] is None:
        return None
    assert codes.shape is not None
    experts, columns, rows = (int(n) for n in codes.shape.numpy())
    form = {"quant_type": "fp4", "expert_weight_bits": 4, "block_size": 32}
    bytes_ = bytes_of(model, codes, BYTE, (experts, rows, columns // 2))
    shape = (experts, rows, columns)
    return Stack(bytes_, turned.inputs[0], None, "fp4", shape, tuple(form.items()))


def _routed(
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

    def dense(op: Builder, chosen: Value, weights: Value, x: Value) -> tuple[Value, Value]:
        numbers = op.constant([[e] for e in range(experts)])
        taken = op.Equal(op.Unsqueeze(chosen, [-2]), numbers)  # ...,E,R
        one = op.Cast(taken, to=DataType.FLOAT)
        shares = one if scaled else op.Where(taken, op.Unsqueeze(weights, [-2]), 0.0)
        return tuple(  # type: ignore[return-value]
            op.Reshape(op.CastLike(op.ReduceSum(part, [-1], keepdims=0), x), [-1, experts])
            for part in (one, shares)
        )

    chosen_by, shares = written(model, node, dense, chosen, weights, x)
    return chosen_by, shares, False


def _plain(router: ir.Node) -> bool | None:
    """Return whether a softmax router divides weights by their sum; None for another router."""
    if router.op_type.partition(VARIANT)[0] != "moe_route" or len(router.inputs) > 1:
        return None
    given = {name: attribute.value for name, attribute in router.attributes.items()}
    plain = (given["score"], given["groups"], given["scale"]) == ("softmax", 1, 1.0)
    return given["epsilon"] == 0 if plain and given["epsilon"] <= 0 else None
