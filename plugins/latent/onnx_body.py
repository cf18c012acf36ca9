"""Attention over latents as ONNX text, for the operators that attend to them. Letters as in
mla_attention; S rows of the cache that are looked at."""

from collections.abc import Callable

# All sizes that the two forms need, each as a tensor [1].
SIZES = """first = Constant <value_ints = [1]> ()
    rest = Constant <value_ints = [-1]> ()
    second = Constant <value_ints = [2]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    nothing = Constant <value_ints = [0]> ()
    last = Constant <value_ints = [3]> ()
    batch = Shape <start = 0, end = 1> (query)
    tokens = Shape <start = 1, end = 2> (query)
    heads = Shape <start = 2, end = 3> (query)
    width = Shape <start = 3> (query)
    turned_width = Shape <start = 3> (turned)
    rank = Shape <start = 2> (key_up)
    value_width = Shape <start = 1, end = 2> (value_up)
    whole_width = Add (rank, turned_width)
    scale_value = Constant <value_float: float = @scale> ()
    scale_like = CastLike (scale_value, query)
    never = Constant <value_float = -inf> ()
    query_by_head = Transpose <perm = [0, 2, 1, 3]> (query)
    by_head = Mul (query_by_head, scale_like)
    just_turned_by_head = Transpose <perm = [0, 2, 1, 3]> (turned)
    turned_by_head = Mul (just_turned_by_head, scale_like)"""

# The last row that each token sees, B,T,1: its own; and which of `slots` [1] rows it sees, B,T,S.
UNTIL = """token_count = Squeeze (tokens)
    new = Range (zero, token_count, one)
    start = Unsqueeze (cache_lengths, first)
    position = Add (start, new)
    until = Unsqueeze (position, second)"""
MASK = """slot_count = Squeeze (slots)
    slot = Range (zero, slot_count, one)
    mask = LessOrEqual (slot, until)"""

# Multiplications of one head: absorbed T S (2 L + R) + T L (N + V), expanded S L (N + V) + T S (N +
# R + V). A decoding step has fewer in the absorbed form, a prompt in the expanded one.
CHOOSE = """pairs = Mul (tokens, slots)
    both_ranks = Add (rank, rank)
    row_width = Add (both_ranks, turned_width)
    absorbed_scores = Mul (pairs, row_width)
    head_width = Add (width, value_width)
    up_size = Mul (rank, head_width)
    folded = Mul (tokens, up_size)
    absorbed_total = Add (absorbed_scores, folded)
    full_width = Add (head_width, turned_width)
    expanded_scores = Mul (pairs, full_width)
    made = Mul (slots, up_size)
    expanded_total = Add (made, expanded_scores)
    cheaper = Less (absorbed_total, expanded_total)
    absorbs = Squeeze (cheaper)
    score_shape = Concat <axis = 0> (batch, heads, tokens, slots)"""

# Queries are folded into the latents' space, where all heads attend to the same rows, which are
# read as they lie; what heads take of those is unfolded.
ABSORBED = """a_rows = {rows}
        folded_query = MatMul (by_head, key_up)
        whole_query = Concat <axis = 3> (folded_query, turned_by_head)
        flat_shape = Concat <axis = 0> (batch, rest, whole_width)
        flat_query = Reshape (whole_query, flat_shape)
        {scores}
        a_score = Reshape (flat_score, score_shape)
        {softmax}
        weight_shape = Concat <axis = 0> (batch, rest, slots)
        flat_weight = Reshape (a_weight, weight_shape)
        flat_taken = MatMul (flat_weight, a_rows)
        taken_shape = Concat <axis = 0> (batch, heads, tokens, whole_width)
        taken = Reshape (flat_taken, taken_shape)
        taken_latent = Slice (taken, nothing, rank, last)
        taken_columns = Transpose <perm = [0, 1, 3, 2]> (taken_latent)
        out_columns = MatMul (value_up, taken_columns)
        a_out = Transpose <perm = [0, 3, 1, 2]> (out_columns)"""

EXPANDED = """e_rows = {rows}
        latents = Slice (e_rows, nothing, rank, second)
        shared = Slice (e_rows, rank, whole_width, second)
        columns = Transpose <perm = [0, 2, 1]> (latents)
        columns_each = Unsqueeze (columns, first)
        keys = MatMul (key_up, columns_each)
        values = MatMul (value_up, columns_each)
        shared_columns = Transpose <perm = [0, 2, 1]> (shared)
        shared_each = Unsqueeze (shared_columns, first)
        own_score = MatMul (by_head, keys)
        shared_score = MatMul (turned_by_head, shared_each)
        e_score = Add (own_score, shared_score)
        {softmax}
        {mixed}
        e_out = Transpose <perm = [0, 2, 1, 3]> (e_by_head)"""

Product = Callable[[str, str, str, int], str]
WHOLE = "Identity (present)"


def write_text(present: str, past: str, new: str) -> str:
    """Return ONNX text of `past` B,C,W with `new` B,T,W where `until` says; from SIZES and UNTIL.

    TensorScatter, in TensorRT, takes four axes only, and a state whose capacity is fixed.
    """
    return f"""row_count = Squeeze (batch)
    row = Range (zero, row_count, one)
    inner = Constant <value_ints = [1, 2]> ()
    row_each = Unsqueeze (row, inner)
    is_row = Constant <value = bool[2] {{1, 0}}> ()
    written = Where (is_row, row_each, until)
    {present} = ScatterND ({past}, written, {new})"""


def by_turned(out: str, a: str, b: str, axes: int) -> str:
    """Return ONNX text of `out`, the product of a with b turned; both have so many axes."""
    perm = [*range(axes - 2), axes - 1, axes - 2]
    turned = f"{b}_turned = Transpose <perm = {perm}> ({b})"
    return f"{turned}\n        {out} = MatMul ({a}, {b}_turned)"


def softmax_text(name: str, mask: str, wide: bool) -> str:
    """Return ONNX text from NAME_score to NAME_weight, both of the queries' dtype; wide: it may be
    another than fp32, in which the softmax is taken."""
    wide_score, share = (f"{name}_wide", f"{name}_share") if wide else (f"{name}_score", "")
    lines = [f"{name}_wide = Cast <to = 1> ({name}_score)"] if wide else []
    lines.append(f"{name}_allowed = Where ({mask}, {wide_score}, never)")
    lines.append(f"{share or f'{name}_weight'} = Softmax <axis = -1> ({name}_allowed)")
    lines += [f"{name}_weight = CastLike ({share}, query)"] if wide else []
    return "\n        ".join(lines)


def forms(rows: str, by_turned: Product, wide: bool) -> tuple[str, str]:
    """Return `attend` as ONNX text in its two forms, to a_out and e_out: from SIZES, `slots` [1],
    head_mask B,1,T,S and `rows`, an expression of B,S,L+R; by_turned as above, wide as in
    softmax_text."""
    absorbed = ABSORBED.format(
        rows=rows,
        scores=by_turned("flat_score", "flat_query", "a_rows", 3),
        softmax=softmax_text("a", "head_mask", wide),
    )
    expanded = EXPANDED.format(
        rows=rows,
        softmax=softmax_text("e", "head_mask", wide),
        mixed=by_turned("e_by_head", "e_weight", "values", 4),
    )
    return absorbed, expanded


def attend_text(rows: str = WHOLE, by_turned: Product = by_turned, wide: bool = True) -> str:
    """Return `attend` as ONNX text to `out`, in the form that is cheaper; all else as in forms."""
    absorbed, expanded = forms(rows, by_turned, wide)
    return f"""{CHOOSE}
    out = If (absorbs) <then_branch = absorbed () => (a_out) {{
        {absorbed}
    }}, else_branch = expanded () => (e_out) {{
        {expanded}
    }}>"""
