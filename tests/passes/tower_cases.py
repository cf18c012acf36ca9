"""Graphs of towers for passes alone, as in pass_cases.py: attention without a mask."""

HEADS = (
    "({t}[B,T,{n}] q, {t}[B,T,{k}] k, {t}[B,T,{k}] v) => ({t}[B,T,{n}] y) {{"
    " own = Constant <value_ints = [0, 0, {h}, {d}]> ()"
    " other = Constant <value_ints = [0, 0, {g}, {d}]> ()"
    " all = Constant <value_ints = [0, 0, {n}]> ()"
    " q1 = Reshape (q, own) k1 = Reshape (k, other) v1 = Reshape (v, other)"
    " q2 = Transpose <perm = [0, 2, 1, 3]> (q1) k2 = Transpose <perm = [0, 2, 1, 3]> (k1)"
    " v2 = Transpose <perm = [0, 2, 1, 3]> (v1)"
    " y2 = Attention <scale = 0.3, softmax_precision = 1> (q2, k2, v2)"
    " y1 = Transpose <perm = [0, 2, 1, 3]> (y2) y = Reshape (y1, all) }}"
)
ROWS = (
    "(float[B,T,{n}] q, float[B,T,{k}] k, float[B,T,{k}] v) => (float[B,T,{n}] y) {{"
    " y = Attention <q_num_heads = {h}, kv_num_heads = {g}, scale = 0.3, softcap = {cap},"
    " softmax_precision = 1> (q, k, v) }}"
)


def heads(dtype: str = "float", width: int = 16, count: int = 4, groups: int = 4) -> str:
    """Return the graph of an attention as towers have it, split into heads."""
    n, k = count * width, groups * width
    return HEADS.format(t=dtype, h=count, g=groups, d=width, n=n, k=k)


def rows(count: int = 4, groups: int = 4, cap: float = 0.0) -> str:
    """Return the graph of an attention that splits rows itself."""
    return ROWS.format(h=count, g=groups, n=count * 16, k=groups * 16, cap=cap)


SPREAD = """(float[N,M,K,6] patches, float[1,M,5] x) => (float[N,M,5] y) {
    pictures = Shape <start = 0, end = 1> (patches) one = Constant <value_ints = [1]> ()
    sizes = Concat <axis = 0> (pictures, one, one) y = Expand (x, sizes) }"""
CUT = """(float[N,M,K,6] patches, float[N,12,5] x) => (float[N,M,K,5] y) {
    both = Shape <start = 1, end = 3> (patches) same = Constant <value_ints = [0]> ()
    five = Constant <value_ints = [5]> () sizes = Concat <axis = 0> (same, both, five)
    y = Reshape (x, sizes) }"""
SPLIT = ["Reshape", "Transpose"] * 4
PLAIN = [
    *["Concat", "Reshape"] * 4, "Transpose", "MatMul", "MatMul", "Mul", "Softmax", "CastLike",
]  # fmt: skip
ATTENTION = "Attention"

CASES: dict[str, tuple[str, str, int, list[str]]] = {
    "undo_heads": ("undo_heads", heads(), 1, [*SPLIT[2:], ATTENTION]),
    "undo_heads, fewer of keys": ("undo_heads", heads(groups=2), 1, [*SPLIT[2:], ATTENTION]),
    "undo_heads, of another reader's too": (
        "undo_heads",
        heads()
        .replace("y1 = ", "z = Relu (y2) y1 = ")
        .replace(" y) {", " y, float[B,4,T,16] z) {"),
        0, [*SPLIT, ATTENTION, "Relu"],
    ),
    "undo_heads, joined in another order": (
        "undo_heads",
        heads().replace("[0, 2, 1, 3]> (y2)", "[0, 2, 3, 1]> (y2)"),
        0, [*SPLIT, ATTENTION],
    ),
    "multi_head_attention": ("multi_head_attention", rows(), 1, ["MultiHeadAttention"]),
    "multi_head_attention, not fewer heads of keys": (
        "multi_head_attention", rows(groups=2), 0, [ATTENTION],
    ),
    "multi_head_attention, not with a softcap": (
        "multi_head_attention", rows(cap=2.0), 0, [ATTENTION],
    ),
    "multi_head_attention, not of heads that are split": (
        "multi_head_attention", heads(), 0, [*SPLIT, ATTENTION],
    ),
    "sizes_by_shape, of pictures": (
        "sizes_by_shape", SPREAD, 1, ["Concat", "Slice", "Unsqueeze", "Expand"],
    ),
    "sizes_by_shape, an axis that splits into two": (
        "sizes_by_shape", CUT, 1, ["Concat", "Slice", "Unsqueeze", "Expand", "Reshape"],
    ),
    "fused_attention, no mask": (
        "fused_attention", heads("float16"), 1, [*SPLIT, ATTENTION],
    ),
    "fused_attention, no mask, few heads": (
        "fused_attention", heads("float16", count=2, groups=2), 1, [*SPLIT, ATTENTION],
    ),
    "fused_attention, no mask, narrow heads": (
        "fused_attention", heads("float16", width=8), 1,
        [*SPLIT, ATTENTION, "Pad", "Pad", "Pad", "Slice"],
    ),
    "fused_attention, no mask, of fp32": ("fused_attention", heads(), 1, [*SPLIT, *PLAIN]),
}  # fmt: skip
