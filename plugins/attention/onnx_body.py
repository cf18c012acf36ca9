"""Attention to keys and values in standard operators, for the operators of this folder.

Letters as in cached_attention; S positions. FP8 as in fp8_cache, a function for each of its.
"""

from lmcast.plugins.onnx_builder import Attribute, Builder, DataType, Input, Value

NEVER = float("-inf")


def attend(
    op: Builder,
    query: Value,
    keys: Value,
    values: Value,
    mask: Value,
    sink: Value | None,
    factor: Value | None,
    scale: Attribute,
    softcap: Attribute,
) -> Value:
    """query B,T,H,K over keys B,G,S,K and values B,G,S,V where mask B,T,S is true -> B,T,H,V.

    The standard Attention has no place for a factor behind the softcap.
    """
    heads, head_mask = op.Transpose(query, perm=[0, 2, 1, 3]), op.Unsqueeze(mask, [1])
    if sink is not None:
        keys, values, head_mask = with_sink(op, query, keys, values, head_mask, sink)
    if factor is None:
        out = op.Attention(
            heads, keys, values, head_mask, scale=scale, softcap=softcap, softmax_precision=1
        )
    else:
        capped, added = bool(softcap.value), sink is not None
        slope = op.Div(scale, softcap) if capped else scale
        cap = softcap if capped else None
        out = plain(op, heads, keys, values, head_mask, slope, cap, added=added, factor=factor)
    return op.Transpose(out, perm=[0, 2, 1, 3])


def with_sink(
    op: Builder, query: Value, keys: Value, values: Value, mask: Value, sink: Value
) -> tuple[Value, Value, Value]:
    """Return keys, values and an additive mask B,H,T,S+1 with the sinks H as one more position.

    The standard Attention, for which runtimes have fused kernels, has no input for sinks. A key of
    zeros whose value is zeros, and whose entry of the additive mask is the sink, computes the same.
    """
    batch, tokens, heads = (op.size(query, axis) for axis in range(3))
    sinks = op.Reshape(sink, [1, -1, 1, 1])
    bias = op.Expand(op.CastLike(op.Where(mask, 0.0, NEVER), query), op.Shape(sinks))
    column = op.Expand(sinks, op.dims(batch, heads, tokens, 1))
    pads = [0, 0, 0, 0, 0, 0, 1, 0]
    return op.Pad(keys, pads), op.Pad(values, pads), op.Concat(bias, column, axis=3)


def plain(
    op: Builder,
    query: Value,
    keys: Value,
    values: Value,
    mask: Value | None,
    slope: Input,
    cap: Input,
    *,
    added: bool,
    factor: Value | None = None,
) -> Value:
    """Attention by MatMul and Softmax: B,H,T,K over B,G,S,K and B,G,S,V -> B,H,T,V.

    mask: expands to B,H,T,S; booleans, or numbers where `added`, which are added to the scores;
    None where all may be seen.
    slope: multiplies the scores; where they are capped, the scale over the cap.
    cap: of the softcap, None for none.
    factor: B,T; multiplies the capped scores.
    """
    batch, heads, tokens, width = (op.size(query, axis) for axis in range(4))
    groups, slots = op.size(keys, 1), op.size(keys, 2)
    grouped = op.reshape(query, batch, groups, -1, width)
    product = grouped @ op.Transpose(keys, perm=[0, 1, 3, 2])
    score = op.Cast(product, to=DataType.FLOAT) * slope
    if cap is not None:
        score = op.Tanh(score) * cap
    score = op.reshape(score, batch, heads, tokens, slots)
    if factor is not None:
        score = score * op.Unsqueeze(factor, [1, 3])
    if mask is not None:
        wide = op.Cast(mask, to=DataType.FLOAT) if added else None
        score = op.Where(mask, score, NEVER) if wide is None else score + wide
    weight = op.CastLike(op.Softmax(score, axis=-1), values)
    mixed = op.reshape(weight, batch, groups, -1, slots) @ values
    return op.reshape(mixed, batch, heads, tokens, op.size(values, 3))


def codes(
    op: Builder, fresh: Value, held: Value, scale: Value | None, query: Value
) -> tuple[Value, Value]:
    """Return new numbers and the cache as codes in the dtype of queries."""
    if scale is None:
        return fresh, held
    ratio = op.Cast(fresh, to=DataType.FLOAT) / scale
    short = op.QuantizeLinear(ratio, 1.0, output_dtype=DataType.FLOAT8E4M3FN)
    unit = op.CastLike(1.0, query)
    return op.DequantizeLinear(short, unit), op.DequantizeLinear(held, unit)


def numbers(op: Builder, code: Value, scale: Value | None, query: Value) -> Value:
    if scale is None:
        return code
    return op.CastLike(op.Cast(code, to=DataType.FLOAT) * scale, query)


def stored(op: Builder, code: Value, scale: Value | None, query: Value) -> Value:
    if scale is None:
        return code
    unit = op.CastLike(1.0, query)
    return op.QuantizeLinear(code, unit, output_dtype=DataType.FLOAT8E4M3FN)
