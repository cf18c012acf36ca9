"""Give the operators of latent caches bodies whose cost goes by the tokens held.

before: lmcast.mla_attention, its body attending to all rows of the cache, whatever is held
after:  the same node, its body attending to the first `max(lengths) + T` rows; likewise
        sparse_attention, where it does not gather, and the scores of sparse_index

The rows are copied once, which is little beside what all heads multiply them with, and are read as
they lie (FusedMatMul). GroupQueryAttention, with the latents as one key head that all share, would
read the whole cache anew for every head.
"""

import onnx_ir as ir

from lmcast.exporter.passes.rewrite import MICROSOFT, nodes_of
from lmcast.plugins.latent import mla_attention, sparse_attention, sparse_index
from lmcast.plugins.latent import onnx_body as latent_text
from lmcast.plugins.plugin import parse


def by_turned(out: str, a: str, b: str, axes: int) -> str:
    return f"{out} = {MICROSOFT}.FusedMatMul <transB = 1> ({a}, {b})"


# From `tokens` [1] and the lengths to how many rows are held, padding included.
LENGTH = """longest = ReduceMax <keepdims = 1> (cache_lengths)
    slots = Add (longest, tokens)
    start_at = Constant <value_ints = [0]> ()"""
HELD = "Slice (present, start_at, slots, first)"


def mla(wide: bool) -> str:
    return f"""{mla_attention.HEAD} {{
    {latent_text.SIZES}
    {latent_text.UNTIL}
    {latent_text.write_text("present", "past", "latent")}
    {LENGTH}
    {latent_text.MASK}
    head_mask = Unsqueeze (mask, first)
    {latent_text.attend_text(HELD, by_turned, wide)}
}}"""


MARK = f"""{sparse_attention.MARK.replace("is_chosen =", "chosen_of_all =")}
    is_chosen = Slice (chosen_of_all, start_at, slots, second)"""


def sparse(wide: bool) -> str:
    return f"""{sparse_attention.HEAD} {{
    {latent_text.SIZES}
    {latent_text.UNTIL}
    {latent_text.write_text("present", "past", "latent")}
    capacity = Shape <start = 1, end = 2> (past)
    {LENGTH}
    {sparse_attention.either_text(MARK, HELD, by_turned, wide)}
}}"""


def index(wide: bool) -> str:
    # Scores of the rest are those of what is not seen: as many positions are chosen as the operator
    # says. ONNX Runtime's TopK knows no limit, and puts the chosen ones in order too.
    return f"""{sparse_index.HEAD} {{
    {sparse_index.SIZES}
    {LENGTH}
    keys = Slice (present_key, start_at, slots, first)
    {sparse_index.score_text(by_turned, wide)}
    none = Constant <value_ints = [0, 0, 0, 0, 0]> ()
    empty_slots = Sub (capacity, slots)
    pads = Concat <axis = 0> (none, empty_slots)
    scored_all = Pad (scored, pads, unseen)
    best, taken = TopK <axis = 2> (scored_all, room)
    chosen, order = TopK <axis = 2, largest = 0> (taken, room)
}}"""


BODIES = {"mla_attention": mla, "sparse_attention": sparse, "sparse_index": index}


def latents_by_length(model: ir.Model) -> int:
    found = {node.op_type: node for node in nodes_of(model, *BODIES)}
    changes = 0
    for name, node in found.items():
        query = node.inputs[0]
        assert query is not None
        text = BODIES[name](query.dtype != ir.DataType.FLOAT)
        body = ir.serde.deserialize_function(parse(text, MICROSOFT))
        if MICROSOFT not in model.functions[body.identifier()].opset_imports:
            model.functions[body.identifier()] = body
            model.graph.opset_imports[MICROSOFT] = 1
            changes += 1
    return changes
