"""linear_attention as ONNX text: chunk by chunk, in products of matrices.

Letters as there. Within a chunk a token sees those before it by products of queries and keys; what
lies before the chunk, by its matrix. For the delta rule, what the tokens of a chunk tell each other
is a triangular system (arXiv 2406.06484).
"""

CHUNK = 64  # tokens; a chunk's products then take as long as those with the matrix, for K of 128
CHANNEL_CHUNK = 16  # where decay is per channel, a chunk holds C,C,K numbers

SIZES = """rest = Constant <value_ints = [-1]> ()
    first = Constant <value_ints = [1]> ()
    third = Constant <value_ints = [3]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    begin = Constant <value_ints = [0]> ()
    second = Constant <value_ints = [2]> ()
    nothing = Constant <value_float = 0.0> ()
    never = Constant <value_float = -inf> ()
    batch = Shape <start = 0, end = 1> (query)
    tokens = Shape <start = 1, end = 2> (query)
    heads = Shape <start = 1, end = 2> (past_state)
    width = Shape <start = 2, end = 3> (past_state)
    value_width = Shape <start = 3> (past_state)
    token_count = Squeeze (tokens)
    at = Range (zero, token_count, one)
    counts = Unsqueeze (token_counts, first)
    is_valid = Less (at, counts)
    valid = Unsqueeze (is_valid, second)"""

# Queries or keys B,T,G*K as B,T,H,K: every head of values has its own.
SPLIT = """{0}_wide = Cast <to = 1> ({0})
    {0}_groups = Reshape ({0}_wide, by_group)
    {normed}
    {0}_group_count = Shape <start = 2, end = 3> ({0}_groups)
    {0}_times = Div (heads, {0}_group_count)
    {0}_each_shape = Concat <axis = 0> (batch, tokens, {0}_group_count, {0}_times, width)
    {0}_column = Unsqueeze ({0}_normed, third)
    {0}_each = Expand ({0}_column, {0}_each_shape)
    {0}_heads = Reshape ({0}_each, by_head)"""
NORM = """{0}_squares = Mul ({0}_groups, {0}_groups)
    {0}_sum = ReduceSum <keepdims = 1> ({0}_squares, rest)
    {0}_little = Add ({0}_sum, epsilon)
    {0}_length = Sqrt ({0}_little)
    {0}_normed = Div ({0}_groups, {0}_length)"""

# B,T,H,X in chunks: N,B,H,C,X; the rest of the last chunk is zeros.
CHUNKS = """{0}_padded = Pad ({0}, pads)
    {0}_apart = Reshape ({0}_padded, chunk_shape)
    {0}_chunks = Transpose <perm = [1, 0, 3, 2, 4]> ({0}_apart)"""

LAYOUT = """most = Constant <value_ints = [{chunk}]> ()
    chunk = Min (tokens, most)
    up = Add (tokens, chunk)
    up_less = Sub (up, first)
    chunk_count = Div (up_less, chunk)
    whole = Mul (chunk_count, chunk)
    missing = Sub (whole, tokens)
    no_pads = Constant <value_ints = [0, 0, 0, 0, 0]> ()
    no_more = Constant <value_ints = [0, 0]> ()
    pads = Concat <axis = 0> (no_pads, missing, no_more)
    chunk_shape = Concat <axis = 0> (batch, chunk_count, chunk, heads, rest)
    chunk_size = Squeeze (chunk)
    row = Range (zero, chunk_size, one)
    row_column = Unsqueeze (row, first)
    not_later = LessOrEqual (row, row_column)
    earlier = Less (row, row_column)
    sees = Cast <to = 1> (earlier)"""

# The decay from row j to row i: B,H,C,C of scalars, B,H,C,C,K of channels. Each is a sum of its
# own: the difference of two long sums would lose what is small.
SCALAR_PAIRS = """grid = Where (earlier, g, nothing)
        between = CumSum (grid, axis)
        until = Where (not_later, between, never)
        pair = Exp (until)
        k_turned = Transpose <perm = [0, 1, 3, 2]> (k)
        last_row = Sub (chunk, first)
        behind_row = Gather <axis = 2> (between, last_row)
        behind = Transpose <perm = [0, 1, 3, 2]> (behind_row)"""
CHANNEL_PAIRS = """g_rows = Unsqueeze (g, third)
        earlier_each = Unsqueeze (earlier, second)
        grid = Where (earlier_each, g_rows, nothing)
        between = CumSum (grid, axis)
        seen = Unsqueeze (not_later, second)
        until = Where (seen, between, never)
        pair = Exp (until)
        k_each = Unsqueeze (k, second)
        k_pair = Mul (k_each, pair)
        last_row = Sub (chunk, first)
        behind_row = Gather <axis = 2> (between, last_row)
        behind = Squeeze (behind_row, second)"""

# What is left of a row after the tokens of its chunk up to itself, and after those behind it.
DECAYED = """run = CumSum (g, axis)
        total = Gather <axis = 2> (run, last_row)
        left = Exp (run)
        q_left = Mul (q, left)
        left_behind = Exp (behind)
        k_behind = Mul (k, left_behind)
        k_columns = Transpose <perm = [0, 1, 3, 2]> (k_behind)
        total_left = Exp (total)
        state_left = Transpose <perm = [0, 1, 3, 2]> (total_left)
        kept = Mul (state, state_left)"""

# Products of rows i of {0} and rows j of k, j not behind i, times the decay between them: C,C.
SCALAR_PRODUCT = """{0}_product = MatMul ({0}, k_turned)
        {0}_pairs = Mul ({0}_product, pair)"""
CHANNEL_PRODUCT = """{0}_rows = Unsqueeze ({0}, third)
        {0}_each = Mul ({0}_rows, k_pair)
        {0}_pairs = ReduceSum <keepdims = 0> ({0}_each, rest)"""

# The inverse of 1 + A, A strictly lower: blocks of 1, 2, 4 ... along the diagonal are inverted, and
# of two neighbours the block below is `- inverse A inverse`. No powers of A, which could be huge.
BELOW = """width{i} = Constant <value_int = {width}> ()
    half{i} = Div (row, width{i})
    half_column{i} = Unsqueeze (half{i}, first)
    before{i} = Sub (half_column{i}, one)
    is_left{i} = Equal (half{i}, before{i})
    odd{i} = Mod (half_column{i}, two)
    is_odd{i} = Equal (odd{i}, one)
    below{i} = And (is_left{i}, is_odd{i})"""
INVERSE = """part{i} = Where (below{i}, told, nothing)
        right{i} = MatMul (part{i}, inverse{i})
        less{i} = MatMul (inverse{i}, right{i})
        inverse{n} = Sub (inverse{i}, less{i})"""

DELTA = """k_beta = Mul (k, b)
        v_beta = Mul (v, b)
        {product}
        told = Mul (k_beta_pairs, sees)
        {inverse}
        v_known = MatMul (inverse{levels}, v_beta)
        k_beta_left = Mul (k_beta, left)
        k_known = MatMul (inverse{levels}, k_beta_left)
        v_held = MatMul (k_known, state)
        v_new = Sub (v_known, v_held)"""

STEP = """{pairs}
        {decayed}
        {product}
        {told}
        inside = MatMul (q_pairs, v_new)
        outside = MatMul (q_left, state)
        out_chunk = Add (inside, outside)
        added = MatMul (k_columns, v_new)
        state_after = Add (kept, added)"""


def linear_text(delta: bool, normalize: bool, channels: bool) -> str:
    """Return the body of linear_attention, with beta if `delta`.

    The last state goes through a Max that changes nothing: where a runtime keeps states in place, a
    chunk would else write its inner values where the old state still lies.
    """
    chunk = CHANNEL_CHUNK if channels else CHUNK
    levels = (chunk - 1).bit_length()
    product = CHANNEL_PRODUCT if channels else SCALAR_PRODUCT
    told = "v_new = Identity (v)"
    if delta:
        steps = [INVERSE.format(i=i, n=i + 1) for i in range(levels)]
        inverse = "\n        ".join(steps)
        told = DELTA.format(product=product.format("k_beta"), inverse=inverse, levels=levels)
    step = STEP.format(
        decayed=DECAYED,
        pairs=CHANNEL_PAIRS if channels else SCALAR_PAIRS,
        product=product.format("q"),
        told=told,
    )
    given = ["q", "k", "v", "g", *(["b"] if delta else [])]
    scanned = ", ".join(f"float[B, H, C, {n.upper()}] {n}" for n in given)
    chunks = ", ".join(f"{n}_all_chunks" for n in given)
    return f"""linear_attention <normalize, channels, scale> (
    query, key, value, past_state, decay, token_counts{", beta" if delta else ""}
) => (out, present_state) {{
    {SIZES}
    {inputs_text(delta, normalize)}
    scale_value = Constant <value_float: float = @scale> ()
    q_all = Mul (query_heads, scale_value)
    {LAYOUT.format(chunk=chunk)}
    {_constants(delta, levels)}
    {_chunks(given)}
    last_state, outs = Scan <num_scan_inputs = {len(given)}, body = one_chunk
        (float[B, H, K, V] state, {scanned}) => (
        float[B, H, K, V] state_after, float[B, H, C, V] out_chunk) {{
        {step}
    }}> (past_state, {chunks})
    present_state = Max (last_state, never)
    back = Transpose <perm = [1, 0, 3, 2, 4]> (outs)
    flat_shape = Concat <axis = 0> (batch, whole, rest)
    flat = Reshape (back, flat_shape)
    wide_out = Slice (flat, begin, tokens, first)
    out = CastLike (wide_out, value)
}}"""


def inputs_text(delta: bool, normalize: bool) -> str:
    """Return text from the operator's inputs to q, k, v, g and b: B,T,H,X in fp32."""
    lines = [
        "by_group = Concat <axis = 0> (batch, tokens, rest, width)",
        "by_head = Concat <axis = 0> (batch, tokens, heads, rest)",
        "epsilon = Constant <value_float = 1e-6> ()",
    ]
    for name in ("query", "key"):
        normed = NORM if normalize else "{0}_normed = Identity ({0}_groups)"
        lines.append(SPLIT.format(name, normed=normed.format(name)))
    lines += [
        "valid_heads = Unsqueeze (valid, third)",
        "v_wide = Cast <to = 1> (value)",
        "v_all = Reshape (v_wide, by_head)",
        "g_wide = Cast <to = 1> (decay)",
        "g_heads = Reshape (g_wide, by_head)",
        "g_all = Where (valid_heads, g_heads, nothing)",
    ]
    if delta:
        lines += ["k_all = Identity (key_heads)", "b_wide = Cast <to = 1> (beta)"]
        lines += ["b_heads = Reshape (b_wide, by_head)"]
        lines += ["b_all = Where (valid_heads, b_heads, nothing)"]
    else:
        lines += ["k_all = Where (valid_heads, key_heads, nothing)"]
    return "\n    ".join(lines)


def _constants(delta: bool, levels: int) -> str:
    lines = ["axis = Constant <value_int = 2> ()"]
    if delta:
        lines += [
            "two = Constant <value_int = 2> ()",
            "same = Equal (row, row_column)",
            "inverse0 = Cast <to = 1> (same)",
            *(BELOW.format(i=i, width=1 << i) for i in range(levels)),
        ]
    return "\n    ".join(lines)


def _chunks(given: list[str]) -> str:
    return "\n    ".join(CHUNKS.format(f"{name}_all") for name in given)
