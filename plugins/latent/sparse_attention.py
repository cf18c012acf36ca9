"""Attention to chosen positions of a cache of latents (DSA). Letters as in mla_attention; K: how
many positions are chosen for each token."""

from typing import Any

import torch
from torch import Tensor

from lmcast.plugins.latent.mla_attention import attend, write
from lmcast.plugins.latent.mla_attention import case as whole_case
from lmcast.plugins.latent.onnx_body import (
    CHOOSE,
    MASK,
    SIZES,
    UNTIL,
    WHOLE,
    Product,
    by_turned,
    forms,
    softmax_text,
    write_text,
)
from lmcast.plugins.plugin import Close, Plugin, rounded, triton


def eager(
    query: Tensor,
    turned: Tensor,
    latent: Tensor,
    past: Tensor,
    cache_lengths: Tensor,
    token_counts: Tensor,
    chosen: Tensor,
    key_up: Tensor,
    value_up: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Write the new latents behind the held ones and attend to `chosen`, B,T,K int64: positions
    below C, each once, ascending, at least one of them not after the token; those after it are not
    seen (DeepSeek-V3.2, arXiv 2512.02556). All else as in mla_attention -> B,T,H,V and the cache.
    """
    present, mask = write(latent, past, cache_lengths)
    mask = mask & torch.zeros_like(mask).scatter(2, chosen, True)
    return attend(query, turned, present, mask, key_up, value_up, scale), present


def shapes(
    query: Tensor, turned: Tensor, latent: Tensor, past: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    value_up: Tensor = rest[4]
    return query.new_empty((*query.shape[:3], value_up.shape[1])), torch.empty_like(past)


# Rows are gathered where that reads no more than there are; a decoding step always does.
GATHERS = """kept = Shape <start = 2> (chosen)
    gathered_rows = Mul (tokens, kept)
    few = LessOrEqual (gathered_rows, capacity)
    gathers = Squeeze (few)"""

# In the absorbed form: of its own rows, B,T,K,L+R, all heads of a token take something.
GATHERED = """places = Unsqueeze (chosen, last)
        own_rows = GatherND <batch_dims = 1> (present, places)
        own_query = MatMul (by_head, key_up)
        whole_own_query = Concat <axis = 3> (own_query, turned_by_head)
        by_token = Transpose <perm = [0, 2, 1, 3]> (whole_own_query)
        {scores}
        seen = LessOrEqual (chosen, until)
        seen_each = Unsqueeze (seen, second)
        {softmax}
        own_taken = MatMul (g_weight, own_rows)
        own_latent = Slice (own_taken, nothing, rank, last)
        taken_by_head = Transpose <perm = [0, 2, 3, 1]> (own_latent)
        out_by_own = MatMul (value_up, taken_by_head)
        g_out = Transpose <perm = [0, 3, 1, 2]> (out_by_own)"""

# Else all rows are attended to, and those not chosen are masked.
MARK = """none_shape = Concat <axis = 0> (batch, tokens, capacity)
    none = ConstantOfShape <value = float[1] {0}> (none_shape)
    yes = Constant <value_float = 1.0> ()
    chosen_shape = Shape (chosen)
    marks = Expand (yes, chosen_shape)
    marked = ScatterElements <axis = 2> (none, chosen, marks)
    is_chosen = Cast <to = 9> (marked)"""


# One form of three. An If within an If would say it shorter, but TensorRT for RTX 1.7 builds none.
ONE_OF_THREE = """no_value = Constant <value_float = 0.0> ()
    no_value_like = CastLike (no_value, query)
    out_shape = Concat <axis = 0> (batch, tokens, heads, value_width)
    no_out = Expand (no_value_like, out_shape)
    out_of_few = If (gathers) <then_branch = gathered () => (g_out) {{
        {gathered}
    }}, else_branch = not_gathered () => (kept_no_out) {{
        kept_no_out = Identity (no_out)
    }}>
    many = Not (gathers)
    absorbs_many = And (many, absorbs)
    out_or_absorbed = If (absorbs_many) <then_branch = absorbed () => (a_out) {{
        {absorbed}
    }}, else_branch = not_absorbed () => (kept_few) {{
        kept_few = Identity (out_of_few)
    }}>
    done = Or (gathers, absorbs)
    out = If (done) <then_branch = not_expanded () => (kept_out) {{
        kept_out = Identity (out_or_absorbed)
    }}, else_branch = expanded () => (e_out) {{
        {expanded}
    }}>"""


def either_text(
    marked: str = MARK, rows: str = WHOLE, by_turned: Product = by_turned, wide: bool = True
) -> str:
    """Return ONNX text from SIZES, UNTIL, `present`, `capacity` and `slots` to `out`.

    Where few rows are chosen they are gathered; else all `rows` are looked at, with the chosen ones
    `marked` among them. rows, by_turned and wide as in latent_text.
    """
    gathered = GATHERED.format(
        scores=by_turned("g_score", "by_token", "own_rows", 4),
        softmax=softmax_text("g", "seen_each", wide),
    )
    absorbed, expanded = forms(rows, by_turned, wide)
    return f"""{GATHERS}
    {CHOOSE}
    {MASK}
    {marked}
    among = And (mask, is_chosen)
    head_mask = Unsqueeze (among, first)
    {ONE_OF_THREE.format(gathered=gathered, absorbed=absorbed, expanded=expanded)}"""


HEAD = """sparse_attention <scale> (
    query, turned, latent, past, cache_lengths, token_counts, chosen, key_up, value_up
) => (out, present)"""

BODY = f"""
{HEAD} {{
    {SIZES}
    {UNTIL}
    {write_text("present", "past", "latent")}
    capacity = Shape <start = 1, end = 2> (past)
    slots = Identity (capacity)
    {either_text()}
}}"""


def case(lengths: list[int], counts: list[int], room: int, sizes: tuple, kept: int) -> tuple:
    """Return arguments for rows of these lengths and counts, with as many chosen as `kept`."""
    *before, key_up, value_up, scale = whole_case(lengths, counts, room, sizes)
    batch, tokens = len(lengths), max(counts)
    score = torch.rand(batch, tokens, room)
    own = torch.tensor(lengths)[:, None] + torch.arange(tokens)
    score.scatter_(2, own[:, :, None], 2.0)  # always itself: a token must see something
    chosen = score.topk(kept, -1).indices.sort(-1).values
    return (*before, chosen, key_up, value_up, scale)


def cases() -> list[tuple]:
    torch.manual_seed(0)
    return [
        case([0, 0], [7, 3], 7, (4, 16, 8, 32, 16), 3),  # ragged prefill: all rows, masked
        case([19], [1], 33, (6, 16, 8, 32, 24), 8),  # decode: rows gathered
        case([2, 11], [4, 4], 24, (3, 24, 8, 40, 16), 6),  # append: gathered too
        case([9, 0, 30], [1, 1, 1], 40, (5, 8, 16, 24, 8), 7),  # rows of different lengths
        case([3, 20], [2, 2], 24, (4, 8, 8, 16, 8), 24),  # all there are
        case([60], [8], 70, (2, 16, 8, 16, 16), 30),  # append to a long row: all rows, masked
    ]


sparse_attention = Plugin(
    name="sparse_attention",
    eager=eager,
    shapes=shapes,
    body=BODY,
    kernels={"triton": triton(__name__)},
    cases=cases,
    # 40 fp32 epsilons, or 3 roundings, as in mla_attention.
    close={torch.float32: Close(4.8e-6), **rounded(3)},
)
