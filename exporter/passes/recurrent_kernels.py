"""Run linear attention and short convolutions with ONNX Runtime's kernels.

before: y, state = lmcast.linear_attention(query, key, value, past_state, decay, counts, beta)
after:  y, state = com.microsoft.LinearAttention(q, k, v, past_state, decay, beta), queries and keys
        normed and given to every head of values; padding decays by nothing and tells nothing

before: y, present = lmcast.causal_conv(x, weight, past, counts, bias)
after:  y, _ = com.microsoft.CausalConvWithState(x, weight, bias, past), present as in the body: the
        kernel's own would be that of the padding
"""

import onnx_ir as ir

from lmcast.exporter.passes.rewrite import MICROSOFT, nodes_of, replace, written
from lmcast.plugins.linear import onnx_body as linear_text
from lmcast.plugins.linear.causal_conv import CARRY

LINEAR = f"""{linear_text.SIZES}
    {{inputs}}
    flat = Constant <value_ints = [0, 0, -1]> ()
    q = Reshape (query_heads, flat)
    k = Reshape (k_all, flat)
    v = Reshape (v_all, flat)
    g = Reshape (g_all, flat)
    {{b}}
    wide, present_state = {MICROSOFT}.LinearAttention <update_rule = "{{rule}}", scale = {{scale}},
        q_num_heads = {{heads}}, kv_num_heads = {{heads}}> (q, k, v, past_state, g{{beta}})
    out = CastLike (wide, value)"""

# The kernel reads the old inputs out of `whole`: they may be overwritten where they lie.
CONV = f"""{CARRY}
    begin = Constant <value_ints = [0]> ()
    held = Slice (whole, begin, carried, first)
    out, kernel_state = {MICROSOFT}.CausalConvWithState <activation = "{{act}}",
        channels_last = 1> (x, weight, {{bias}}, held)"""


def recurrent_kernels(model: ir.Model) -> int:
    changes = 0
    for node in nodes_of(model, "linear_attention"):
        replace(model, node, _linear(model, node))
        changes += 1
    for node in nodes_of(model, "causal_conv"):
        past = node.inputs[2]
        assert past is not None and past.shape is not None
        if past.shape[1] == 0:  # one tap: the kernel wants a state to carry
            continue
        replace(model, node, _conv(model, node))
        changes += 1
    return changes


def _linear(model: ir.Model, node: ir.Node) -> list[ir.Value]:
    state, delta = node.inputs[3], len(node.inputs) == 7
    assert state is not None and state.shape is not None
    normalize = bool(node.attributes["normalize"].as_int())
    text = LINEAR.format(
        inputs=linear_text.inputs_text(delta, normalize),
        b="b = Reshape (b_all, flat)" if delta else "",
        beta=", b" if delta else "",
        rule="gated_delta" if delta else "gated",
        heads=state.shape[1],
        scale=node.attributes["scale"].as_float(),
    )
    names = ["query", "key", "value", "past_state", "decay", "token_counts", "beta"]
    given = dict(zip(names, node.inputs, strict=False))
    return written(model, node, text, given, ("out", "present_state"))


def _conv(model: ir.Model, node: ir.Node) -> list[ir.Value]:
    names = ["x", "weight", "past", "token_counts", "bias"]
    given = dict(zip(names, node.inputs, strict=False))
    act = "silu" if node.attributes["silu"].as_int() else "none"
    text = CONV.format(act=act, bias="bias" if "bias" in given else "")
    return written(model, node, text, given, ("out", "present"))
