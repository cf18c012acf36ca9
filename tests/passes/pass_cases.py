"""Graphs for every pass alone: what it is given, how much it changes, and what it leaves."""

import math

from lmcast.plugins.attention.cached_attention import cached_attention
from lmcast.plugins.attention.window_attention import window_attention
from lmcast.plugins.linear.causal_conv import causal_conv
from lmcast.plugins.linear.linear_attention import linear_attention
from lmcast.plugins.plugin import Plugin

ATTENTION = (
    "(int64[B,T] input_ids, float[B,T,4,16] q, float[B,T,2,16] k, float[B,T,2,{v}] v,"
    " float[B,2,{c},16] key, float[B,2,{c},{v}] value, int64[B] lengths, int64[B] counts{sink})"
    " => (float[B,T,4,{v}] y, float[B,2,{c},16] key1, float[B,2,{c},{v}] value1) {{"
    " y, key1, value1 = lmcast.{op} <scale = 0.3, softcap = {cap}{more}>"
    " (q, k, v, key, value, lengths, counts{sink_name}) }}"
)


def attention(
    op: Plugin,
    room: int | str,
    width: int = 16,
    cap: float = 0.0,
    sink: bool = False,
    chunked: bool = False,
    ends: str = "",
) -> str:
    """Return the graph of one attention; width: of the values; ends: the input that says which
    positions tokens see."""
    more = f", chunked = {int(chunked)}" if op is window_attention else ""
    given, name = (", float[4] sink", ", sink") if sink else ("", "")
    if ends:
        given, name = f", int64[B,T] {ends}", f", , , , , {ends}"
    return ATTENTION.format(
        op=op.name, c=room, v=width, cap=cap, more=more, sink=given, sink_name=name
    )


DOMAIN_OF_PARTS = '\n<domain: "lmcast.parts", opset_import: ["" : 24]>\n'
PART = (
    f"{DOMAIN_OF_PARTS}"
    "Layer0 (x, weight) => (y, z) { q = MatMul (x, weight) y = Relu (q) z = Identity (x) }"
)


# (pass, graph, changes, operators that it leaves behind besides Constant and arithmetic on lengths)
def experts(activation: str, biased: bool = False, scale_input: int = 0, gated: bool = True) -> str:
    """Return a graph of two routes through four experts, as inputs: weights would need files."""
    biases = ", float[4,6] gb, float[4,6] ub, float[4,8] db" if biased else ""
    names, gate = ", gb, ub, db" if biased else "", "g" if gated else ""
    return f"""(float[B,T,8] x, float[B,T,2] share, float[4,6,8] g, float[4,6,8] u, float[4,8,6] d
        {biases}) => (float[B,T,8] y) {{
        two = Constant <value_ints = [2]> ()
        value, chosen = TopK (logits, two)
        y = lmcast.moe_experts <activation = "{activation}", alpha = 1.7, limit = 1.5,
            scale_input = {scale_input}> (x, share, chosen, {gate}, u, d{names})
    }}""".replace("float[4,6,8] g", "float[B,T,4] logits, float[4,6,8] g")


def routed(products: int) -> list[str]:
    return [
        *["TopK", "Reshape", "Transpose", "Reshape", "TopK", "Div", "Gather", "Expand"],
        *["ScatterElements", *["Split", "Concat", *["Gather", "MatMul"] * 4] * products],
        *["Transpose", "Range", "ScatterElements", "Gather", "Reshape", "Reshape"],
    ]


ROUTED = routed(3)
UNGATED = [*routed(2), "Relu", "Mul", "Reshape", "MatMul", "CastLike"]
SPLIT = [*ROUTED, "Sigmoid", "Mul", "Mul", "Reshape", "MatMul", "CastLike"]
BIASED = [
    *SPLIT, *["Gather", "Transpose", "Add"] * 3, *["CastLike"] * 3,
    *["Neg", "Min", "Min", "Max", "Mul", "Add"],
]  # fmt: skip
SCALED = [
    *ROUTED, "Sigmoid", "Mul", "Mul", "Reshape", "Gather", "CastLike", "Mul", "ReduceSum",
]  # fmt: skip

assert linear_attention and causal_conv  # importing an operator is what makes it known
LATENTS = (
    "(float[B,T,2,8] q, float[B,T,2,4] r, float[B,T,20] c, float[B,C,20] past, int64[B] lengths,"
    " int64[B] counts, float[2,8,16] up, float[2,6,16] vp) => (float[B,T,2,6] y, float[B,C,20] z) {"
    " y, z = lmcast.mla_attention <scale = 0.3> (q, r, c, past, lengths, counts, up, vp) }"
)
LINEAR = (
    "(float[B,T,8] q, float[B,T,8] k, float[B,T,12] v, float[B,2,4,6] past, float[B,T,2] decay,"
    " int64[B] counts) => (float[B,T,12] y, float[B,2,4,6] z) { g = Abs (decay) d = Neg (g)"
    " y, z = lmcast.linear_attention <normalize = 0, channels = 0, scale = 0.5>"
    " (q, k, v, past, d, counts) }"
)
CONV = (
    "(float[B,T,6] x, float[6,1,4] weight, float[B,3,6] past, int64[B] counts)"
    " => (float[B,T,6] y, float[B,3,6] z) {"
    " y, z = lmcast.causal_conv <silu = 1> (x, weight, past, counts) }"
)
HALVES = CONV.replace("float[", "float16[")
RULE = [
    *["Reshape", "Div", "Concat", "Unsqueeze", "Expand", "Reshape"] * 2,
    *["Concat"] * 2, *["Reshape"] * 6, *["Unsqueeze"] * 3, *["Where"] * 2,
    *["Abs", "Neg", "Range", "Less", "LinearAttention", "CastLike"],
]  # fmt: skip
TAPS = [
    *["Concat", "Range", "Unsqueeze", "Add", "Unsqueeze", "GatherND", "Transpose"],
    *["Slice"] * 8, *["Mul"] * 4, *["Add"] * 8, "Neg", "Exp", "Div",
]  # fmt: skip

WRITTEN = ["Transpose", "TensorScatter"] * 2
SEEN = ["Add", "Range", "Range", "LessOrEqual", *["Unsqueeze"] * 3]
# q, k, v and mask as the standard's Attention takes them; with a softmax in fp32, as all of ours.
STANDARD = (
    "({t}[B,{h},T,{k}] q, {t}[B,{g},5,{k}] key, {t}[B,{g},5,{v}] value, {t}[B,1,T,5] logits)"
    " => ({t}[B,{h},T,{v}] y) {{ chance = Relu (logits) mask = Cast <to = 9> (chance)"
    " y = Attention <scale = 0.3, softcap = {cap}, softmax_precision = 1> (q, key, value, mask) }}"
)
PLAIN = [
    *["Concat", "Reshape"] * 4, "Transpose", "MatMul", "MatMul", "Mul", "Where", "Softmax",
    "CastLike", "Relu",
]  # fmt: skip


def standard(dtype: str, width: int, value_width: int, cap: float = 0.0, heads: int = 4) -> str:
    return STANDARD.format(t=dtype, k=width, v=value_width, cap=cap, h=heads, g=heads // 2)


# Codes are made in the graph: weights of it would need files, and ONNX Runtime is fed no FP8.
ROUNDED = (
    "(float[B,T,32] x, float[12,32] w, float given, float[12] scales) => (float[B,T,12] y) {{"
    " s = Abs (given) size = Abs (scales) codes = Cast <to = {kind}> (w)"
    " rounded = DequantizeLinear <axis = 0> (codes, size)"
    " turned = Transpose <perm = [1, 0]> (rounded) q = lmcast.quantize_input"
    ' <format = "{format}", rotation = {rotation}> (x{static}) y = MatMul (q, turned) }}'
)
CODED = ["Abs", "Abs", "DequantizeLinear", "Transpose"]
TOKEN = ["Abs", "Max", "Div"]
AFTER = [
    *CODED, "Div", "Div", "QuantizeLinear", "DequantizeLinear", "MatMul", "Mul",
    "CastLike",
]  # fmt: skip


def rounded(format: str, kind: int, static: bool = False, rotation: int = 0) -> str:
    scale = ", s" if static else ""
    return ROUNDED.format(kind=kind, format=format, rotation=rotation, static=scale)


def integers(shape: tuple[int, ...], block: int = 16) -> tuple[str, str]:
    """Return initializers of a weight of 8 bits, and the nodes that make `w` of them."""
    size = math.prod(shape)
    codes = ", ".join(str(7 * i % 256) for i in range(size))
    scales = ", ".join(f"{0.0005 + i % 5 / 2000:.4f}" for i in range(size // block))
    rows, sizes = size // block, ", ".join(map(str, shape))
    given = f"<uint8[{rows},{block}] codes = {{{codes}}}, float[{rows}] scales = {{{scales}}}>"
    return given, (
        f"rows = Constant <value_ints = [{rows}]> ()"
        " zeros = ConstantOfShape <value = uint8[1] {128}> (rows)"
        " flat = DequantizeLinear <axis = 0> (codes, scales, zeros)"
        f" sizes = Constant <value_ints = [{sizes}]> () w = Reshape (flat, sizes)"
    )


def product(block: int = 16, rounded: str = "") -> str:
    given, nodes = integers((4, 32), block)
    seen = f"seen = {rounded} (x)" if rounded else "seen = Identity (x)"
    return (
        f"(float[B,32] x) => (float[B,4] y) {given} {{ {nodes} {seen}"
        " turned = Transpose <perm = [1, 0]> (w) y = MatMul (seen, turned) }"
    )


def embedding() -> str:
    given, nodes = integers((6, 32))
    return (
        f"(int64[B,T] input_ids) => (float[B,T,32] y) {given} {{ {nodes}"
        " y = Gather (w, input_ids) }"
    )


def quantized_experts() -> str:
    given, nodes = integers((4, 16, 16))
    return f"""(float[B,T,16] x, float[B,T,2] share, float[B,T,4] logits, float[4,16,16] d)
        => (float[B,T,16] y) {given} {{ {nodes}
        two = Constant <value_ints = [2]> () value, chosen = TopK (logits, two)
        y = lmcast.moe_experts <activation = "relu", alpha = 1.7, limit = 1.5, scale_input = 0>
            (x, share, chosen, , w, d)
    }}"""


# The first product in rows, the second in columns.
OF_INTEGERS = [
    *[n for n in routed(1) if n not in ("Split", "Concat")], *["Split", "Concat"] * 2,
    *["MatMulNBits"] * 4, "Transpose", "Transpose", "ConstantOfShape", "DequantizeLinear",
    "Reshape", "Relu", "Mul", "Reshape", "MatMul", "CastLike",
]  # fmt: skip
STORED = ["ConstantOfShape", "DequantizeLinear", "Reshape"]
ROUNDED_TO_INT8 = 'lmcast.quantize_input <format = "int8", rotation = 0>'

CASES: dict[str, tuple[str, str, int, list[str]]] = {
    "inline_parts": (
        "inline_parts",
        "(float[2,3] x, float[3,3] weight) => (float[2,3] b, float[2,3] z) {"
        " a, y = lmcast.parts.Layer0 (x, weight) b, z = lmcast.parts.Layer0 (a, weight) }" + PART,
        2, ["Identity", "Identity", "MatMul", "MatMul", "Relu", "Relu"],
    ),
    "inline_codes": (
        "inline_codes",
        "(float8e4m3fn[2,3] x, float s) => (float[2,3] y) { y = lmcast.parts.Layer0 (x, s) }"
        + f"{DOMAIN_OF_PARTS}Layer0 (x, s) => (y) {{ y = DequantizeLinear (x, s) }}",
        1, ["DequantizeLinear"],
    ),
    "inline_codes, no codes": (
        "inline_codes",
        "(float[2,3] x, float[3,3] w) => (float[2,3] y, float[2,3] z) {"
        " y, z = lmcast.parts.Layer0 (x, w) }" + PART,
        0, ["Layer0"],
    ),
    "inline_bodies": (
        "inline_bodies",
        attention(cached_attention, "C"),
        1, [*WRITTEN, *SEEN, "Attention", "Transpose", "Transpose"],
    ),
    "inline_bodies, not what has kernels": ("inline_bodies", LATENTS, 0, ["mla_attention"]),
    "fused_attention": ("fused_attention", standard("float16", 16, 16), 1, ["Relu", "Attention"]),
    "fused_attention, narrow heads": (
        "fused_attention",
        standard("float16", 8, 8),
        1, ["Relu", "Attention", "Pad", "Pad", "Pad", "Slice"],
    ),
    "fused_attention, narrow values": (
        "fused_attention", standard("float16", 24, 16), 1, ["Relu", "Attention", "Pad", "Slice"],
    ),
    "fused_attention, wide values": (
        "fused_attention", standard("float16", 16, 40), 1, ["Relu", "Attention", "Pad", "Pad"],
    ),
    "fused_attention, softcap": (
        "fused_attention", standard("float16", 16, 16, cap=2.0), 1, [*PLAIN, "Tanh", "Mul"],
    ),
    "fused_attention, too wide": (
        "fused_attention", standard("float16", 264, 264), 1, PLAIN,
    ),
    "fused_attention, few heads": (
        "fused_attention", standard("float16", 32, 32, heads=2), 1, PLAIN,
    ),
    "fused_attention, of fp32": (
        "fused_attention", standard("float", 16, 24), 1, PLAIN,
    ),
    "fused_matmul": (
        "fused_matmul",
        "(float[B,3] x, float[5,3] weight) => (float[B,5] y) {"
        " turned = Transpose <perm = [1, 0]> (weight) y = MatMul (x, turned) }",
        1, ["FusedMatMul", "Transpose"],
    ),
    "fused_matmul, no weight": (
        "fused_matmul",
        "(float[2,3] x, float[3,5] weight) => (float[2,5] y) { y = MatMul (x, weight) }",
        0, ["MatMul"],
    ),
    "fused_matmul, another perm": (
        "fused_matmul",
        "(float[2,4,3] x, float[2,5,3] w) => (float[2,4,5] y) {"
        " turned = Transpose <perm = [0, 2, 1]> (w) y = MatMul (x, turned) }",
        0, ["MatMul", "Transpose"],
    ),
    "nbits_matmul": (
        "nbits_matmul", product(), 1, [*STORED, "Identity", "Transpose", "MatMulNBits"],
    ),
    "nbits_matmul, not in blocks that have no kernel": (
        "nbits_matmul", product(block=8), 0, [*STORED, "Identity", "Transpose", "MatMul"],
    ),
    "nbits_matmul, not where the model rounds to 8 bits itself": (
        "nbits_matmul", product(rounded=ROUNDED_TO_INT8), 0,
        [*STORED, "quantize_input", "Transpose", "MatMul"],
    ),
    "nbits_gather": ("nbits_gather", embedding(), 1, [*STORED, "GatherBlockQuantized"]),
    "skip_norm": (
        "skip_norm",
        "(float[B,T,8] x, float[B,T,8] y, float[8] weight) => (float[B,T,8] n, float[B,T,8] r) {"
        " s = Add (x, y) n = RMSNormalization <axis = -1, epsilon = 0.01> (s, weight)"
        " r = Relu (s) }",
        1, ["Relu", "SkipSimplifiedLayerNormalization"],
    ),
    "skip_norm, the sum is an output": (
        "skip_norm",
        "(float[B,T,8] x, float[B,T,8] y, float[8] weight) => (float[B,T,8] s, float[B,T,8] n) {"
        " s = Add (x, y) n = RMSNormalization <axis = -1, epsilon = 0.01> (s, weight) }",
        1, ["SkipSimplifiedLayerNormalization"],
    ),
    "skip_norm, a bias": (
        "skip_norm",
        "(float[B,T,8] x, float[8] y, float[8] weight) => (float[B,T,8] n) {"
        " s = Add (x, y) n = RMSNormalization <axis = -1, epsilon = 0.01> (s, weight) }",
        0, ["Add", "RMSNormalization"],
    ),
    "skip_norm, the sum is used before": (
        "skip_norm",
        "(float[B,T,8] x, float[B,T,8] y, float[8] weight) => (float[B,T,8] n, float[B,T,8] r) {"
        " s = Add (x, y) r = Relu (s)"
        " n = RMSNormalization <axis = -1, epsilon = 0.01> (s, weight) }",
        0, ["Add", "RMSNormalization", "Relu"],
    ),
    "quantized_products": (
        "quantized_products", rounded("fp8", 17), 1, [*AFTER, *TOKEN],
    ),
    "quantized_products, static": (
        "quantized_products", rounded("int8", 3, static=True), 1, AFTER,
    ),
    "quantized_products, turned": (
        "quantized_products", rounded("int8", 3, rotation=8), 1,
        [*AFTER, *TOKEN, "Concat", "Reshape", "MatMul", "Reshape"],
    ),
    "quantized_products, not of two formats": (
        "quantized_products", rounded("fp8", 3), 0, [*CODED, "quantize_input", "MatMul"],
    ),
    "quick_gelu": (
        "quick_gelu",
        "(float[2,3] x) => (float[2,3] y) { g = Sigmoid (x) y = Mul (x, g) }",
        1, ["QuickGelu", "Sigmoid"],
    ),
    "quick_gelu, of another value": (
        "quick_gelu",
        "(float[2,3] x, float[2,3] z) => (float[2,3] y) { g = Sigmoid (z) y = Mul (x, g) }",
        0, ["Mul", "Sigmoid"],
    ),
    "undo_reshape": (
        "undo_reshape",
        "(float[B,6] x) => (float[B,6] y) {"
        " split = Constant <value = int64[3] {0, 3, 2}> () joined = Constant <value = int64[2]"
        " {0, -1}> () a = Reshape (x, split) b = Reshape (a, joined) y = Relu (b) }",
        1, ["Relu", "Reshape"],
    ),
    "undo_reshape, into another shape": (
        "undo_reshape",
        "(float[4,6] x) => (float[6,4] y) {"
        " split = Constant <value = int64[3] {4, 3, 2}> () joined = Constant <value = int64[2]"
        " {6, 4}> () a = Reshape (x, split) b = Reshape (a, joined) y = Relu (b) }",
        0, ["Relu", "Reshape", "Reshape"],
    ),
    "undo_reshape, sizes unknown": (
        "undo_reshape",
        "(float[?,?] x) => (float[?,?] y) {"
        " split = Constant <value = int64[3] {0, 3, -1}> () joined = Constant <value = int64[2]"
        " {3, -1}> () a = Reshape (x, split) b = Reshape (a, joined) y = Relu (b) }",
        0, ["Relu", "Reshape", "Reshape"],
    ),
    "merge_equal": (
        "merge_equal",
        "(float[2,3] x) => (float[2,3] y) { a = Relu (x) b = Relu (x) y = Add (a, b) }",
        1, ["Add", "Relu"],
    ),
    "latents_by_length": ("latents_by_length", LATENTS, 1, ["mla_attention"]),
    "recurrent_kernels": ("recurrent_kernels", LINEAR, 1, RULE),
    "recurrent_kernels, convolution": ("recurrent_kernels", CONV, 1, TAPS),
    "recurrent_kernels, fp16": ("recurrent_kernels", HALVES, 1, [*TAPS, "CastLike"]),
    "merge_runs, of no file (test_merge_runs.py has the others)": (
        "merge_runs",
        "(float[1,3] x, float[1,3] y) => (float[2,3] z) { z = Concat <axis = 0> (x, y) }",
        0, ["Concat"],
    ),
    "remove_unused": (
        "remove_unused",
        "(float[2,3] x) => (float[2,3] y) { a = Exp (x) b = Sin (a) y = Relu (x) }",
        2, ["Relu"],
    ),
    "split_experts": ("split_experts", experts("silu"), 1, SPLIT),
    "split_experts, biases": ("split_experts", experts("clipped_swish", True), 1, BIASED),
    "split_experts, no gate": ("split_experts", experts("relu", gated=False), 1, UNGATED),
    "split_experts, quantized": ("split_experts", quantized_experts(), 1, OF_INTEGERS),
    "split_experts, scaled input": ("split_experts", experts("silu", scale_input=1), 1, SCALED),
}  # fmt: skip
