"""Fuse attention into GroupQueryAttention, whose cost depends on cached tokens, not on capacity.

before: y, key, value = lmcast.cached_attention(q, k, v, past_key, past_value, lengths, counts)
after:  y, key, value = com.microsoft.GroupQueryAttention(q, k, v, past_key, past_value,
        lengths + counts - 1, max(lengths) + T)

window_attention becomes the same with the window as its buffer (`sliding_window_cache`), and sinks
become its `head_sink`; where tokens may see others ahead, it is one branch (attention_ahead). What
the kernel does not do, values of another width than the keys, chunks, a window of one token, and
factors behind the softcap, keeps the operator and its body; the kernel for CPUs has no cache in FP8
either. It takes rows of different lengths in single tokens only.
"""

from typing import Any

import onnx_ir as ir

from lmcast.exporter.graph.requirements import require
from lmcast.exporter.passes.attention_ahead import causal, either
from lmcast.exporter.passes.rewrite import MICROSOFT, constant, insert, nodes_of, replace

# One scale for all keys of a layer, and one for its values.
FP8 = {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8}


def group_query_attention(model: ir.Model) -> int:
    return fused(model, codes=False, branches=True)


def fused(model: ir.Model, codes: bool, branches: bool = False) -> int:
    """Fuse all that the kernel does; codes: whether it takes caches in FP8; branches: whether an If
    may choose it for calls in which no token sees one ahead."""
    changes, condition = 0, dict[ir.Value, ir.Value]()
    for node in nodes_of(model, "cached_attention", "window_attention"):
        query, key, value, past_key, past_value, lengths, counts, *more = node.inputs
        sink, *scales, factor, ends = [*more, *[None] * 5][:5]
        scaled = None not in scales
        assert query is not None and query.shape is not None
        assert past_key is not None and past_key.shape is not None
        assert past_value is not None and past_value.shape is not None
        attributes, width = _attributes(node, query.shape, past_key.shape), past_key.shape[-1]
        assert isinstance(width, int)
        unknown = factor is not None or (scaled and not codes)
        unknown |= ends is not None and not branches
        if width != past_value.shape[-1] or width % 8 or attributes is None or unknown:
            continue
        if scaled:
            attributes |= FP8
        name = str(node.name)
        inputs: list[ir.Value | None] = [
            _flat(model, node, v, f"{name}.{n}")
            for v, n in zip((query, key, value), "qkv", strict=True)
        ]
        inputs += [past_key, past_value, *_lengths(model, node, lengths, counts)]
        if scaled or sink is not None:  # behind what the kernel could rotate with, and a bias
            inputs += [None, None, None, None, sink, *(scales if scaled else ())]
        if ends is None:
            made = insert(
                model, node, "GroupQueryAttention", inputs, attributes, name=name, outputs=3,
                domain=MICROSOFT,
            )  # fmt: skip
        else:
            if ends not in condition:
                condition[ends] = causal(model, node, lengths, ends)
            made = either(model, node, condition[ends], inputs, attributes)
        out, *present = made
        sizes = [0, 0, query.shape[2], past_value.shape[-1]]
        shape = constant(model, node, sizes, ir.DataType.INT64, f"{name}.heads")
        out.type = query.type
        out.shape = ir.Shape([*query.shape[:2], query.shape[2] * past_value.shape[-1]])
        split = insert(model, node, "Reshape", [out, shape], name=f"{name}.Reshape")[0]
        replace(model, node, [split, *present])
        require(model, append="row")
        changes += 1
    return changes


def _attributes(node: ir.Node, query: ir.Shape, past: ir.Shape) -> dict[str, Any] | None:
    """Return the kernel's attributes for a node, None where it does not do that kind of window."""
    attributes = {
        "num_heads": query[2],
        "kv_num_heads": past[1],
        "scale": node.attributes["scale"].as_float(),
        "softcap": node.attributes["softcap"].as_float(),
    }
    if node.op_type == "cached_attention":
        return attributes
    if past[2] == 1 or node.attributes["chunked"].as_int():
        return None
    return attributes | {"local_window_size": past[2], "sliding_window_cache": 1}


def _flat(model: ir.Model, at: ir.Node, value: ir.Value | None, name: str) -> ir.Value:
    """Return a value B,T,heads,width as B,T,heads*width."""
    assert value is not None and value.shape is not None
    shape = constant(model, at, [0, 0, -1], ir.DataType.INT64, f"{name}.shape")
    flat = insert(model, at, "Reshape", [value, shape], name=f"{name}.Reshape")[0]
    batch, tokens, heads, width = value.shape
    flat.type, flat.shape = value.type, ir.Shape([batch, tokens, heads * width])
    return flat


def _lengths(
    model: ir.Model, at: ir.Node, lengths: ir.Value | None, counts: ir.Value | None
) -> tuple[ir.Value, ir.Value]:
    """Return the index of each row's last token, and the longest row with padding, as int32."""
    name = str(at.name)
    ids = next(value for value in model.graph.inputs if value.name == "input_ids")
    int32, int64 = ir.DataType.INT32, ir.DataType.INT64
    one = constant(model, at, [1], int64, f"{name}.one")
    ends = insert(model, at, "Add", [lengths, counts], name=f"{name}.ends")[0]
    last = insert(model, at, "Sub", [ends, one], name=f"{name}.last")[0]
    lasts = insert(model, at, "Cast", [last], {"to": int32}, name=f"{name}.lasts")[0]
    longest = insert(model, at, "ReduceMax", [lengths], {"keepdims": 0}, name=f"{name}.longest")[0]
    tokens = insert(model, at, "Shape", [ids], {"start": 1, "end": 2}, name=f"{name}.tokens")[0]
    count = insert(model, at, "Squeeze", [tokens], name=f"{name}.count")[0]
    both = insert(model, at, "Add", [longest, count], name=f"{name}.both")[0]
    total = insert(model, at, "Cast", [both], {"to": int32}, name=f"{name}.total")[0]
    return lasts, total
