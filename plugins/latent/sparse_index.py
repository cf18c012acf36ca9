"""Choose the positions that each token attends to, by the scores of a small indexer (DSA).

Letters: B batch, T new tokens, C capacity of the cache, I heads of the indexer, D their width, K
positions chosen.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmcast.plugins.latent.mla_attention import write
from lmcast.plugins.latent.onnx_body import MASK, UNTIL, Product, by_turned, write_text
from lmcast.plugins.plugin import Close, Plugin, triton

UNSEEN = torch.finfo(torch.float32).min  # below any score, above the -inf of what is taken already
MOST = 3840  # of one TopK in TensorRT


def eager(
    query: Tensor,
    weights: Tensor,
    key: Tensor,
    past_key: Tensor,
    cache_lengths: Tensor,
    token_counts: Tensor,
    top_k: int,
) -> tuple[Tensor, Tensor]:
    """Write the new keys behind the held ones and choose the positions with the best scores
    `sum_i weights_i * relu(query_i . key)`, in fp32 (DeepSeek-V3.2, arXiv 2512.02556).

    query B,T,I,D; weights B,T,I fp32, of any sign; key B,T,D: one for all heads; past_key B,C,D;
    cache_lengths and token_counts B int64 as in mla_attention. -> positions B,T,K int64, ascending,
    K the smaller of top_k and C, and the keys after the call. Of equal scores the earlier position
    is better. Where a token sees fewer than K positions, the first ones after it fill up: whoever
    attends must not see those.
    """
    present, mask = write(key, past_key, cache_lengths)
    wide = torch.promote_types(query.dtype, torch.float32)
    score = (query.to(wide) @ present[:, None].to(wide).mT).relu()  # B,T,I,C
    total = (weights[:, :, None].to(wide) @ score)[:, :, 0]  # B,T,C
    order = total.masked_fill(~mask, UNSEEN).sort(dim=-1, descending=True, stable=True).indices
    return order[..., :top_k].sort(-1).values, present


def shapes(
    query: Tensor, weights: Tensor, key: Tensor, past_key: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    count = torch.sym_min(rest[-1], past_key.shape[1])
    chosen = query.new_empty((*query.shape[:2], count), dtype=torch.int64)
    return chosen, torch.empty_like(past_key)


SIZES = f"""rest = Constant <value_ints = [-1]> ()
    first = Constant <value_ints = [1]> ()
    second = Constant <value_ints = [2]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    batch = Shape <start = 0, end = 1> (query)
    tokens = Shape <start = 1, end = 2> (query)
    heads = Shape <start = 2, end = 3> (query)
    width = Shape <start = 3> (query)
    {UNTIL}
    {write_text("present_key", "past_key", "key")}
    capacity = Shape <start = 1, end = 2> (past_key)
    number = Constant <value_int: int = @top_k> ()
    wanted = Reshape (number, rest)
    room = Min (wanted, capacity)"""

# From keys B,S,D, with `slots` [1] the number S, to `scored` B,T,S.
SCORE = """{widened}
    wide_weights = Cast <to = 1> (weights)
    flat_shape = Concat <axis = 0> (batch, rest, width)
    flat_query = Reshape (wide_query, flat_shape)
    {product}
    positive = Relu (flat_score)
    score_shape = Concat <axis = 0> (batch, tokens, heads, slots)
    score = Reshape (positive, score_shape)
    weight_row = Unsqueeze (wide_weights, second)
    total_row = MatMul (weight_row, score)
    total = Squeeze (total_row, second)
    {mask}
    unseen = Constant <value_float = {unseen}> ()
    scored = Where (mask, total, unseen)"""

# What is taken is put in order by its rank: a second TopK would meet TensorRT's limit again. The
# rest goes where it is cut off. TensorRT scatters into no fewer places than it scatters, so there
# are as many, and that one.
IN_ORDER = """is_taken = Equal (left, gone)
    marked = Cast <to = 7> (is_taken)
    axis = Constant <value_int = 2> ()
    counted = CumSum (marked, axis)
    rank = Sub (counted, one)
    place = Where (is_taken, rank, room)
    places = Add (slots, first)
    blank_shape = Concat <axis = 0> (batch, tokens, places)
    blank = ConstantOfShape <value = int64[1] {0}> (blank_shape)
    all_shape = Shape (scored)
    all_slots = Expand (slot, all_shape)
    ordered = ScatterElements <axis = 2> (blank, place, all_slots)
    start_at = Constant <value_ints = [0]> ()
    chosen = Slice (ordered, start_at, room, second)"""

ROUND = """few{i} = Min (open{i}, most)
    count{i} = Max (few{i}, first)
    best{i}, taken{i} = TopK <axis = 2> (left{i}, count{i})
    open{next} = Sub (open{i}, count{i})
    shape{i} = Shape (taken{i})
    holes{i} = Expand (gone, shape{i})
    left{next} = ScatterElements <axis = 2> (left{i}, taken{i}, holes{i})"""


def take_text(top_k: int) -> str:
    """Return ONNX text from `scored` B,T,S and `room` [1], how many to take, to `left`, -inf where
    taken: as many TopK as TensorRT's limit asks for, each of what those before have left."""
    rounds = -(-top_k // MOST)
    lines = [
        f"most = Constant <value_ints = [{MOST}]> ()",
        "gone = Constant <value_float = -inf> ()",
        "left0 = Identity (scored)",
        "open0 = Identity (room)",
        # Where there are fewer than top_k, a later round finds none to take. TopK takes no 0, but
        # to take one anew changes nothing.
        *(ROUND.format(i=i, next=i + 1) for i in range(rounds)),
        f"left = Identity (left{rounds})",
    ]
    return "\n    ".join(lines)


def score_text(by_turned: Product = by_turned, wide: bool = True) -> str:
    """Return the ONNX text of SCORE; by_turned and wide as in mla_attention."""
    to = "Cast <to = 1>" if wide else "Identity"
    widened = f"wide_query = {to} (query)\n    wide_keys = {to} (keys)"
    product = by_turned("flat_score", "flat_query", "wide_keys", 3)
    return SCORE.format(widened=widened, product=product, mask=MASK, unseen=UNSEEN)


HEAD = """sparse_index <top_k> (query, weights, key, past_key, cache_lengths, token_counts)
    => (chosen, present_key)"""


def body(given: Mapping[str, Any]) -> str:
    return f"""{HEAD} {{
    {SIZES}
    slots = Identity (capacity)
    keys = Identity (present_key)
    {score_text()}
    {take_text(given["top_k"])}
    {IN_ORDER}
}}"""


def case(
    lengths: list[int], counts: list[int], room: int, sizes: tuple[int, int], top_k: int
) -> tuple:
    """Return arguments for rows of these lengths and counts; sizes: I and D. Scores are whole
    numbers: exact in any order of summation, and often equal."""
    heads, width = sizes
    batch, tokens = len(lengths), max(counts)
    return (
        torch.randint(-3, 4, (batch, tokens, heads, width)).float(),
        torch.randint(-3, 4, (batch, tokens, heads)).float(),
        torch.randint(-3, 4, (batch, tokens, width)).float(),
        torch.randint(-3, 4, (batch, room, width)).float(),
        torch.tensor(lengths),
        torch.tensor(counts),
        top_k,
    )


def cases() -> list[tuple]:
    torch.manual_seed(0)
    return [
        case([0, 0], [7, 3], 7, (4, 8), 3),  # ragged prefill
        case([19], [1], 33, (6, 16), 8),  # decode
        case([2, 11], [4, 4], 24, (3, 8), 6),  # append
        case([3, 0], [2, 2], 16, (5, 8), 16),  # as many as there are
        case([5], [2], 9, (5, 8), 20),  # more than there are
        case([40, 12], [1, 1], 50, (1, 8), 9),  # one head: many scores are 0, and equal
        case([8000], [1], 8100, (2, 4), 5000),  # more than one TopK of TensorRT takes
        case([10, 3], [2, 2], 600, (2, 4), 5000),  # the same, more than there are
    ]


sparse_index = Plugin(
    name="sparse_index",
    eager=eager,
    shapes=shapes,
    body=body,
    kernels={"triton": triton(__name__)},
    cases=cases,
    # Positions are chosen, and keys moved, not computed; the cases' scores are whole numbers, of
    # whole numbers that are exact in every dtype.
    close={torch.float32: Close(0), torch.bfloat16: Close(0), torch.float16: Close(0)},
)
