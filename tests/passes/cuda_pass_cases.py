"""Graphs for the passes of target cuda alone, as in pass_cases.py."""

from itertools import count


def weights(**shapes: tuple[int, ...]) -> str:
    """Return weights of a graph, one behind the other in its file, with numbers near 0."""

    def one(name: str, shape: tuple[int, ...], number: "count[int]") -> str:
        size = 1
        for n in shape:
            size *= n
        values = ", ".join(f"{(next(number) * 37 % 19 - 9) / 20}" for _ in range(size))
        return f"float[{','.join(map(str, shape))}] {name} = {{{values}}}"

    number = count()
    return f"<{', '.join(one(name, shape, number) for name, shape in shapes.items())}>"


HEADS, GROUPS, WIDTH = 4, 2, 16
CACHES = f"float[B,{GROUPS},C,{WIDTH}] key, float[B,{GROUPS},C,{WIDTH}] value"
GIVEN = (
    f"int64[B,T] input_ids, int64[B] cache_lengths, int64[B] token_counts, {CACHES},"
    f" float[B,T,{HEADS * WIDTH}] q, float[B,T,{GROUPS * WIDTH}] k, float[B,T,{GROUPS * WIDTH}] v"
)
LENGTHS = """
    one = Constant <value_ints = [1]> () ends = Add (cache_lengths, token_counts)
    last = Sub (ends, one) lasts = Cast <to = 6> (last)
    longest = ReduceMax <keepdims = 0> (cache_lengths)
    tokens = Shape <start = 1, end = 2> (input_ids) length = Squeeze (tokens)
    both = Add (longest, length) total = Cast <to = 6> (both)
"""
ATTENTION = (
    "y, key1, value1 = com.microsoft.GroupQueryAttention <num_heads = {heads}, kv_num_heads ="
    " {groups}, scale = 0.3> ({given}, key, value, lasts, total)"
)


def attention(before: str, q: str = "q", k: str = "k", own: str = "") -> str:
    """Return the graph of an attention to what `before` makes; own: its weights."""
    node = ATTENTION.format(heads=HEADS, groups=GROUPS, given=f"{q}, {k}, v")
    return f"({GIVEN}) => (float[B,T,{HEADS * WIDTH}] y) {own} {{ {LENGTHS} {before} {node} }}"


FREQUENCIES = ", ".join(str(0.8**i) for i in range(WIDTH // 2))
ANGLES = f"""
    start = Constant <value_int = 0> () step = Constant <value_int = 1> ()
    new = Range (start, length, step) axis = Constant <value_ints = [1]> ()
    held = Unsqueeze (cache_lengths, axis) position = Add (held, new)
    deep = Constant <value_ints = [2]> () at = Unsqueeze (position, deep)
    wide = Cast <to = 1> (at)
    frequency = Constant <value = float[{WIDTH // 2}] {{{{{FREQUENCIES}}}}}> ()
    {{more}} angle = Mul (wide, scaled) cos = Cos (angle) sin = Sin (angle)
    a = RotaryEmbedding <num_heads = {HEADS}, interleaved = {{odd}}> (q, cos, sin)
    b = RotaryEmbedding <num_heads = {GROUPS}, interleaved = {{odd}}> (k, cos, sin)
"""
ALWAYS = "scaled = Identity (frequency)"
BY_LENGTH = "counted = Cast <to = 1> (token_counts) scaled = Mul (counted, frequency)"
TURNED = ["Range", "Unsqueeze", "Unsqueeze", "Add", "Mul", "Cos", "Sin"]
BY_HEAD = """
    heads = Constant <value_ints = [0, 0, {heads}, 16]> () flat = Constant <value_ints = [0, 0, -1]>
    () a4 = Reshape (q, heads) an = RMSNormalization <axis = -1, epsilon = 1e-5> (a4, w)
    a = Reshape (an, flat) groups = Constant <value_ints = [0, 0, {groups}, 16]> ()
    b4 = Reshape (k, groups) bn = RMSNormalization <axis = -1, epsilon = {epsilon}> (b4, u)
    b = Reshape (bn, flat)
"""
QUERIES, KEYS = 2 * WIDTH, WIDTH
PACKED = (
    f"(int64[B,T] input_ids, int64[B] cache_lengths, int64[B] token_counts, float[B,1,C,{WIDTH}]"
    f" key, float[B,1,C,{WIDTH}] value, float[B,T,8] x) => (float[B,T,{QUERIES}] y) {{own}} {{{{"
    f" {LENGTHS} {{products}} " + ATTENTION.format(heads=2, groups=1, given="a, b, c") + " }}"
)
PLAIN = """
    a = com.microsoft.FusedMatMul <transB = 1> (x, qw) b = com.microsoft.FusedMatMul <transB = 1>
    (x, kw) c = com.microsoft.FusedMatMul <transB = 1> (x, vw)
"""
BIASED = """
    a0 = com.microsoft.FusedMatMul <transB = 1> (x, qw) a = Add (a0, qb)
    b0 = com.microsoft.FusedMatMul <transB = 1> (x, kw) b = Add (b0, kb)
    c0 = com.microsoft.FusedMatMul <transB = 1> (x, vw) c = Add (c0, vb)
"""
GATED = """(float[B,T,4] x) => (float[B,T,6] y) {own} {{
    a = com.microsoft.FusedMatMul <transB = 1> (x, gate) g = {activation} (a)
    b = com.microsoft.FusedMatMul <transB = 1> (x, up) y = Mul (g, b) }}"""
WINDOW = (
    (
        f"({GIVEN}) => (float[B,T,{HEADS * WIDTH}] y, float[B,1,{{room}},{WIDTH}] key1,"
        f" float[B,1,{{room}},{WIDTH}] value1) {{{{ {LENGTHS} "
        + ATTENTION.format(heads=HEADS, groups=1, given="q, k, v").replace(
            "scale = 0.3", "scale = 0.3, local_window_size = {room}, sliding_window_cache = 1"
        )
        + " }}"
    )
    .replace(f"{GROUPS},C,{WIDTH}", f"1,{{room}},{WIDTH}")
    .replace(f",{GROUPS * WIDTH}]", f",{WIDTH}]")
)
SILU = "com.microsoft.QuickGelu <alpha = 1.0>"
MATRICES = {"qw": (QUERIES, 8), "kw": (KEYS, 8), "vw": (KEYS, 8)}
BIASES = {"qb": (QUERIES,), "kb": (KEYS,), "vb": (KEYS,)}
NORM = """(float[B,T,4] x) => (float[B,T,4] y) {own} {{
    ones = Constant <value = float[4] {{{scale}}}> ()
    n = RMSNormalization <axis = -1, epsilon = 1e-6> (x, ones) y = Mul (n, w) }}"""
WIDE_NORM = """(bfloat16[B,T,4] x, bfloat16[4] w) => (bfloat16[B,T,4] y) {
    wide = Cast <to = 1> (x) scale = Cast <to = 1> (w)
    n = RMSNormalization <axis = -1, epsilon = 1e-6> (wide, scale) y = Cast <to = 16> (n) }"""
COUNTED = """(int64[B,T] input_ids) => (int64[T] y) {{
    start = Constant <value_int = {}> () step = Constant <value_int = 1> ()
    tokens = Shape <start = 1, end = 2> (input_ids) length = Squeeze (tokens)
    y = Range (start, length, step) }}"""
JOINED = """(float[B,2,T,4] x) => (float[B,4,T,2] y) {
    rows = Shape <start = 0, end = 1> (x) tokens = Shape <start = 2, end = 3> (x)
    four = Constant <value_ints = [4]> () two = Constant <value_ints = [2]> ()
    sizes = Concat <axis = 0> (rows, four, tokens, two) y = Reshape (x, sizes) }"""
SPREAD = """(int64[B,T] input_ids, float[B,T,3] z, float[{heads}] x) => (float[B,4,T,1] y) {{
    rows = Shape <start = 0, end = 1> (z) tokens = Shape <start = 1, end = 2> (z)
    four = Constant <value_ints = [4]> () one = Constant <value_ints = [1]> ()
    sizes = Concat <axis = 0> (rows, four, tokens, one) y = Expand (x, sizes) }}"""
OFFSET = "one = Constant <value = float[1] {1.0}> () s = Add (%s, one) y = Mul (x, s)"

REDUCED = """(float[B,T,3,4] x) => (float[{}] y) {{
    axes = Constant <value_ints = [{}]> () y = ReduceMean <keepdims = 0> (x, axes) }}"""

CASES: dict[str, tuple[str, str, int, list[str]]] = {
    "whole_windows": ("whole_windows", WINDOW.format(room=513), 1, ["GroupQueryAttention"]),
    "whole_windows, narrow": ("whole_windows", WINDOW.format(room=512), 0, ["GroupQueryAttention"]),
    "total_length": ("total_length", attention(""), 1, ["GroupQueryAttention"]),
    "rotary_in_attention": (
        "rotary_in_attention", attention(ANGLES.format(more=ALWAYS, odd=0), "a", "b"),
        1, ["GroupQueryAttention", "Identity", *TURNED],
    ),
    "rotary_in_attention, interleaved": (
        "rotary_in_attention", attention(ANGLES.format(more=ALWAYS, odd=1), "a", "b"),
        1, ["GroupQueryAttention", "Identity", *TURNED],
    ),
    "rotary_in_attention, by the length of a row": (
        "rotary_in_attention", attention(ANGLES.format(more=BY_LENGTH, odd=0), "a", "b"),
        0, ["GroupQueryAttention", "Mul", "RotaryEmbedding", "RotaryEmbedding", *TURNED],
    ),
    "rotary_in_attention, of queries alone": (
        "rotary_in_attention", attention(ANGLES.format(more=ALWAYS, odd=0), "a"),
        0, ["GroupQueryAttention", "Identity", "RotaryEmbedding", "RotaryEmbedding", *TURNED],
    ),
    "norms_in_attention": (
        "norms_in_attention",
        attention(
            BY_HEAD.format(heads=HEADS, groups=GROUPS, epsilon="1e-5"), "a", "b",
            weights(w=(WIDTH,), u=(WIDTH,)),
        ),
        1, ["GroupQueryAttention"],
    ),
    "norms_in_attention, of two epsilons": (
        "norms_in_attention",
        attention(
            BY_HEAD.format(heads=HEADS, groups=GROUPS, epsilon="1e-3"), "a", "b",
            weights(w=(WIDTH,), u=(WIDTH,)),
        ),
        0, ["GroupQueryAttention", *["Reshape", "RMSNormalization", "Reshape"] * 2],
    ),
    "packed_products": (
        "packed_products", PACKED.format(own=weights(**MATRICES), products=PLAIN),
        1, ["GroupQueryAttention", "FusedMatMul"],
    ),
    "packed_products, with biases": (
        "packed_products", PACKED.format(own=weights(**MATRICES, **BIASES), products=BIASED),
        1, ["GroupQueryAttention", "FusedMatMul", "Add"],
    ),
    "packed_products, apart": (
        "packed_products",
        PACKED.format(own=weights(**dict(reversed(MATRICES.items()))), products=PLAIN),
        0, ["GroupQueryAttention", *["FusedMatMul"] * 3],
    ),
    "packed_products, gated": (
        "packed_products", GATED.format(own=weights(gate=(6, 4), up=(6, 4)), activation=SILU),
        1, ["FusedMatMul", "gated_activation"],
    ),
    "packed_products, gated by relu": (
        "packed_products", GATED.format(own=weights(gate=(6, 4), up=(6, 4)), activation="Relu"),
        1, ["FusedMatMul", "gated_activation"],
    ),
    "packed_products, ups before gates": (
        "packed_products", GATED.format(own=weights(up=(6, 4), gate=(6, 4)), activation=SILU),
        0, ["FusedMatMul", "FusedMatMul", "Mul", "QuickGelu"],
    ),
    "weighted_norm": (
        "weighted_norm", NORM.format(own=weights(w=(4,)), scale="1,1,1,1"),
        1, ["RMSNormalization"],
    ),
    "weighted_norm, of another scale": (
        "weighted_norm", NORM.format(own=weights(w=(4,)), scale="1,2,1,1"),
        0, ["Mul", "RMSNormalization"],
    ),
    "weighted_norm, wide": ("weighted_norm", WIDE_NORM, 1, ["RMSNormalization"]),
    "sliced_ranges": ("sliced_ranges", COUNTED.format(0), 1, ["Slice"]),
    "sliced_ranges, from 1": ("sliced_ranges", COUNTED.format(1), 0, ["Range"]),
    "known_sizes": (
        "known_sizes", "(float[B,6] x) => (int64[1] y) { y = Shape <start = 1, end = 2> (x) }",
        1, [],
    ),
    "known_sizes, open": (
        "known_sizes", "(float[B,6] x) => (int64[1] y) { y = Shape <start = 0, end = 1> (x) }",
        0, [],
    ),
    "sizes_by_shape": ("sizes_by_shape", JOINED, 1, ["Concat", "Reshape"]),
    "sizes_by_shape, spread": (
        "sizes_by_shape", SPREAD.format(heads="1,4,1,1"), 1, ["Concat", "Expand", "Unsqueeze"],
    ),
    "sizes_by_shape, spread over heads too": (
        "sizes_by_shape", SPREAD.format(heads="1"), 0, ["Concat", "Expand"],
    ),
    "fold_small": (
        "fold_small",
        f"(float[B,4] x) => (float[B,4] y) {weights(w=(4,))} {{ {OFFSET % 'w'} }}", 1, ["Mul"],
    ),
    "fold_small, of what is given": (
        "fold_small",
        f"(float[B,4] x, float[4] w) => (float[B,4] y) {{ {OFFSET % 'w'} }}", 0, ["Add", "Mul"],
    ),
    "outer_reductions": (
        "outer_reductions", REDUCED.format("B,T,4", -2), 1, ["ReduceMean", "Transpose"],
    ),
    "outer_reductions, of the last": (
        "outer_reductions", REDUCED.format("B,T,3", 3), 0, ["ReduceMean"],
    ),
    "wide_operators": (
        "wide_operators",
        "(bfloat16[B,4] x) => (bfloat16[B,5] y) { pads = Constant <value_ints = [0, 0, 0, 1]> ()"
        " y = Pad (x, pads) }",
        1, ["Pad"],
    ),
    "wide_operators, a comparison": (
        "wide_operators", "(bfloat16[2,3] a, bfloat16[2,3] b) => (bool[2,3] y) { y = Less (a, b) }",
        1, ["Less"],
    ),
    "wide_operators, of fp32": (
        "wide_operators", "(float[2,3] a, float[2,3] b) => (bool[2,3] y) { y = Less (a, b) }",
        0, ["Less"],
    ),
}  # fmt: skip
