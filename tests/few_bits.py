"""What ONNX Runtime's kernels for weights in few bits compute, by the definition of each format.

Written from the operators' own schemas, in numpy and plain operators, for graphs in fp32.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from lmcast.exporter.passes.rewrite import MICROSOFT, nodes_of, replace, written
from lmcast.plugins.onnx_builder import Builder, Value

E2M1 = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
Given = dict[str, Any]


def caches_outside(model: ir.Model) -> int:
    """Replace attention to caches in FP8 by one to what their codes stand for: it sees new tokens
    as they are kept."""
    found = [n for n in nodes_of(model, "GroupQueryAttention") if "k_quant_type" in n.attributes]
    lengths = next((v for v in model.graph.inputs if v.name == "cache_lengths"), None)
    for node in found:
        node.name = f"{node.name}.meaning"
        given = {name: attribute.value for name, attribute in node.attributes.items()}
        width = node.inputs[3].shape[-1] if node.inputs[3] and node.inputs[3].shape else 0
        write = partial(attention, given=given, width=width)
        replace(model, node, written(model, node, write, lengths, *node.inputs))
    return len(found)


def attention(
    op: Builder, lengths: Value, *inputs: Value | None, given: Given, width: int
) -> tuple[Value, ...]:
    heads, groups = given["num_heads"], given["kv_num_heads"]
    query, key, value, past_key, past_value, last, total, cos, sin, *more = (*inputs, *[None] * 16)
    sink, key_scale, value_scale = more[2:5]
    assert query and past_key and past_value and key_scale and value_scale
    if key is None or value is None:
        sizes = [heads * width, groups * width, groups * width]
        query, key, value = op.several("Split", 3, query, sizes, axis=-1)
    if cos is not None:
        tokens = op.Range(0, op.Squeeze(op.Shape(query, start=1, end=2)), 1)
        places = op.Unsqueeze(lengths, [1]) + tokens
        turn = {"interleaved": given.get("rotary_interleaved", 0)}
        query, key = (
            op.RotaryEmbedding(x, cos, sin, places, num_heads=n, **turn)
            for x, n in ((query, heads), (key, groups))
        )

    def kept(x: Value, scale: Value) -> Value:
        return op.QuantizeLinear(x, scale, output_dtype=ir.DataType.FLOAT8E4M3FN)

    scales = key_scale, value_scale
    new = [op.DequantizeLinear(kept(x, s), s) for x, s in zip((key, value), scales, strict=True)]
    held = ((past_key, key_scale), (past_value, value_scale))
    past = [op.DequantizeLinear(codes, scale) for codes, scale in held]
    plain = {n: a for n, a in given.items() if "quant" not in n and "rotary" not in n}
    del plain["kv_cache_bit_width"]
    out, *present = op.several(
        "GroupQueryAttention", 3, query, *new, *past, last, total, None, None, None, None, sink,
        domain=MICROSOFT, **plain,
    )  # fmt: skip
    return out, *(kept(x, scale) for x, scale in zip(present, scales, strict=True))


def few_bits_outside(model: ir.Model) -> int:
    """Replace the kernels that CPUs do not have by products with dequantized weights."""
    count = 0
    for operator, write in MEANINGS.items():
        for node in list(nodes_of(model, operator)):
            given = {name: attribute.value for name, attribute in node.attributes.items()}
            node.name = f"{node.name}.meaning"  # beside what a pass has written for it
            held = [array_of(value) for value in node.inputs]
            run = [
                value if array is None else None
                for value, array in zip(node.inputs, held, strict=True)
            ]
            replace(model, node, written(model, node, partial(write, held=held, given=given), *run))
            count += 1
    return count


def array_of(value: ir.Value | None) -> np.ndarray | None:
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def halves(packed: np.ndarray) -> np.ndarray:
    """Return the codes of bytes, the low half first."""
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def spread(blocks: np.ndarray, block: int, columns: int) -> np.ndarray:
    return np.repeat(blocks.astype(np.float32), block, -1)[..., :columns]


def fp8_product(op: Builder, x: Value, *_: None, held: list[Any], given: Given) -> Value:
    codes, scales = held[1:3]
    weight = codes.astype(np.float32)
    weight = weight * spread(scales, given["block_size"], weight.shape[-1])
    return op.MatMul(x, op.CastLike(weight.T, x))


def fp4_product(op: Builder, x: Value, *_: None, held: list[Any], given: Given) -> Value:
    codes, scales, shared = held[1:4]
    numbers = E2M1[halves(codes)]
    wide = spread(scales.view(ml_dtypes.float8_e4m3fn), given["block_size"], numbers.shape[-1])
    return op.MatMul(x, op.CastLike((numbers * (wide * shared)).T, x))


def stack(codes: np.ndarray, scales: np.ndarray, zeros: Any, given: Given) -> np.ndarray:
    """Return the matrices of all experts, E,N,K."""
    bits, block = given["expert_weight_bits"], given["block_size"]
    if given["quant_type"] == "fp4":  # two rows in a byte, column by column
        experts, rows, _ = codes.shape
        columns = codes.shape[-1] * 2
        by_column = codes.reshape(experts, columns, rows // 2)
        numbers = E2M1[halves(by_column)].transpose(0, 2, 1)
        return numbers * spread(scales, block, columns)
    wide = halves(codes) if bits == 4 else codes
    columns = wide.shape[-1]
    zero: Any = 2 ** (bits - 1)
    if zeros is not None:
        zero = spread(halves(zeros) if bits == 4 else zeros, block, columns)
    return (wide.astype(np.float32) - zero) * spread(scales, block, columns)


def experts(
    op: Builder, x: Value, logits: Value, *rest: Value | None, held: list[Any], given: Given
) -> Value:
    """All experts of every token, of which those that are chosen count."""
    first, second = (
        stack(held[at], held[at + 1], held[zeros], given) for at, zeros in ((2, 11), (5, 12))
    )
    count, inner = len(first), first.shape[1] // 2
    rows = (
        (np.arange(0, 2 * inner, 2), np.arange(1, 2 * inner, 2))
        if given["swiglu_fusion"] == 1
        else (np.arange(inner), np.arange(inner, 2 * inner))
    )
    flat = op.Reshape(x, [1, -1, second.shape[1]])
    gate, up = (product(op, flat, first[:, part], held[4], part) for part in rows)
    if "swiglu_limit" in given:
        limit = given["swiglu_limit"]
        gate, up = op.Min(gate, limit), op.Max(op.Min(up, limit), -limit)
    sigmoid = op.Sigmoid(gate * given.get("activation_alpha", 1.0))
    inside = gate * sigmoid * (up + given.get("activation_beta", 0.0))
    out = product(op, inside, second, held[7], np.arange(second.shape[1]))  # E,tokens,D
    values, chosen = op.several("TopK", 2, op.Softmax(logits, axis=-1), [given["k"]], axis=-1)
    own = rest[12] if len(rest) > 12 else None
    if own is not None:
        values = op.GatherElements(own, chosen, axis=-1)
    if given["normalize_routing_weights"]:
        values = values / op.ReduceSum(values, [-1])
    shares = op.ScatterElements(op.Mul(logits, 0.0), chosen, values, axis=-1)  # tokens,E
    by_expert = op.Reshape(op.Transpose(shares, perm=[1, 0]), [count, -1, 1])
    return op.Reshape(op.ReduceSum(out * by_expert, [0], keepdims=0), op.Shape(x))


def product(op: Builder, x: Value, matrices: np.ndarray, bias: Any, rows: np.ndarray) -> Value:
    out = op.MatMul(x, np.ascontiguousarray(matrices.transpose(0, 2, 1)))
    return out if bias is None else out + np.ascontiguousarray(bias[:, None, rows])


MEANINGS: dict[str, Callable[..., Value]] = {
    "MatMulBlockQuantizedFp8Weight": fp8_product,
    "MatMulBlockQuantizedFp4Weight": fp4_product,
    "QMoE": experts,
}
