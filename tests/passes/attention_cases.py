"""Cases of GroupQueryAttention: what it takes, what keeps its operator, and what is a branch."""

from pass_cases import attention

from lmcast.plugins.attention.cached_attention import cached_attention
from lmcast.plugins.attention.window_attention import window_attention

SHORT = (
    "(int64[B,T] input_ids, float[B,T,4,16] q, float[B,T,2,16] k, float[B,T,2,16] v,"
    " float8e4m3fn[B,2,C,16] key, float8e4m3fn[B,2,C,16] value, int64[B] lengths, int64[B] counts,"
    " float ks, float vs) => (float[B,T,4,16] y) {"
    " y, key1, value1 = lmcast.cached_attention <scale = 0.3, softcap = 0.0>"
    " (q, k, v, key, value, lengths, counts, , ks, vs) }"
)
GQA = ["Reshape"] * 4 + ["GroupQueryAttention"]
# Lengths for the kernel, and whether every token sees its own position as the last.
AHEAD = ["Reshape"] * 4 + ["Add"] * 3 + ["Unsqueeze", "Range", "LessOrEqual", "ReduceMin", "If"]

# (pass, graph, changes, operators that it leaves behind besides Constant and arithmetic on lengths)
CASES = {
    "group_query_attention": (
        "group_query_attention", attention(cached_attention, "C"), 1, GQA,
    ),
    "group_query_attention, softcap": (
        "group_query_attention", attention(cached_attention, "C", cap=2.0), 1, GQA,
    ),
    "group_query_attention, ring": (
        "group_query_attention", attention(window_attention, 5), 1, GQA,
    ),
    "group_query_attention, sinks": (
        "group_query_attention", attention(cached_attention, "C", cap=2.0, sink=True), 1, GQA,
    ),
    "group_query_attention, ring with sinks": (
        "group_query_attention", attention(window_attention, 5, sink=True), 1, GQA,
    ),
    "group_query_attention, chunks": (
        "group_query_attention",
        attention(window_attention, 5, chunked=True),
        0, ["window_attention"],
    ),
    "group_query_attention, narrow values": (
        "group_query_attention",
        attention(cached_attention, "C", width=8),
        0, ["cached_attention"],
    ),
    **{
        f"group_query_attention, {what} tokens ahead": (
            "group_query_attention", attention(op, room, ends=ends), 1, AHEAD,
        )
        for what, op, room, ends in (
            ("all in reach of", cached_attention, "C", "own"),
            ("a picture of", cached_attention, "C", "picture"),
            ("a ring in reach of", window_attention, 5, "own"),
            ("a ring with a picture of", window_attention, 5, "picture"),
        )
    },
    "group_query_attention, codes": ("group_query_attention", SHORT, 0, ["cached_attention"]),
}  # fmt: skip
