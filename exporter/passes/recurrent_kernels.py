"""Run linear attention with ONNX Runtime's kernel, and short convolutions as fast as there.

before: y, state = lmcast.linear_attention(query, key, value, past_state, decay, counts, beta)
after:  y, state = com.microsoft.LinearAttention(q, k, v, past_state, decay, beta), queries and keys
        normed and given to every head of values; padding decays by nothing and tells nothing

before: y, present = lmcast.causal_conv(x, weight, past, counts, bias)
after:  y = whole[0..] weight[0] + whole[1..] weight[1] + ..., whole being past and x

CausalConvWithState of ONNX Runtime 1.31, which takes numbers one by one, needs 4 times as long for
512 tokens, and half as long again for one.
"""

from functools import partial

import onnx_ir as ir

from lmcast.exporter.passes.rewrite import MICROSOFT, nodes_of, replace, written
from lmcast.plugins.linear.causal_conv import carried
from lmcast.plugins.linear.onnx_body import Inputs
from lmcast.plugins.onnx_builder import Builder, DataType, Value


def recurrent_kernels(model: ir.Model) -> int:
    changes = 0
    for node in nodes_of(model, "linear_attention"):
        state = node.inputs[3]
        assert state is not None and state.shape is not None
        heads = state.shape[1]
        assert isinstance(heads, int)
        write = partial(
            _linear,
            normalize=bool(node.attributes["normalize"].as_int()),
            heads=heads,
            scale=node.attributes["scale"].as_float(),
        )
        replace(model, node, written(model, node, write, *node.inputs))
        changes += 1
    for node in nodes_of(model, "causal_conv"):
        past = node.inputs[2]
        assert past is not None and past.shape is not None
        held = past.shape[1]
        assert isinstance(held, int)
        silu = bool(node.attributes["silu"].as_int())
        write = partial(_conv, taps=held + 1, silu=silu, short=past.dtype != DataType.FLOAT)
        replace(model, node, written(model, node, write, *node.inputs))
        changes += 1
    return changes


def _linear(
    op: Builder, *inputs: Value, normalize: bool, heads: int, scale: float
) -> tuple[Value, Value]:
    """inputs: of linear_attention, in its order; the last is optional."""
    query, key, value, past_state, decay, token_counts, *beta = inputs
    rate = beta[0] if beta else None
    given = Inputs.of(op, query, key, value, past_state, decay, token_counts, rate, normalize)
    q, k, v, g, *b = (
        op.Reshape(x, [0, 0, -1])
        for x in (given.query, given.key, given.value, given.decay, given.beta)
        if x is not None
    )
    wide, present = op.several(
        "LinearAttention", 2, q, k, v, past_state, g, *b, domain=MICROSOFT,
        update_rule="gated_delta" if b else "gated", scale=scale, q_num_heads=heads,
        kv_num_heads=heads,
    )  # fmt: skip
    return op.CastLike(wide, value), present


def _conv(
    op: Builder,
    x: Value,
    weight: Value,
    past: Value,
    token_counts: Value,
    bias: Value | None = None,
    *,
    taps: int,
    silu: bool,
    short: bool,
) -> tuple[Value, Value]:
    """Slices of `whole`, as `past` may be updated in place. short: whether x is no fp32."""
    whole, present = carried(op, x, past, token_counts)
    tokens, each = op.size(x, 1), op.Transpose(weight, perm=[2, 1, 0])  # W,1,D
    out = None
    for tap in range(taps):
        seen = op.slice(whole, 1, [tap], op.Add(tokens, [tap]))
        product = seen * op.slice(each, 0, [tap], [tap + 1])
        out = product if out is None else out + product
    assert out is not None
    out = out if bias is None else out + bias
    if not silu:
        return out, present
    # Not by Sigmoid, whose kernel rounds more than eager's; in fp32, as eager's.
    sums = op.Cast(out, to=DataType.FLOAT) if short else out
    turned = sums / (op.Exp(op.Neg(sums)) + 1.0)
    return op.CastLike(turned, x) if short else turned, present
