"""Rotate queries and keys within the attention.

before: y = GroupQueryAttention(RotaryEmbedding(q, cos, sin), RotaryEmbedding(k, cos, sin), ...)
after:  y = GroupQueryAttention <do_rotary = 1> (q, k, ..., cos of all positions, sin of all)

The kernel knows the position of every token, and reads the angles of all positions that a row may
have from tables of the engine. Frequencies that depend on more than the position keep their nodes
(those of dynamic scaling, which count the tokens of a row), and so do widths that the kernel does
not rotate, rotations in fp32, and tables for more than MOST positions.
"""

import numpy as np
import onnx_ir as ir

from lmcast.exporter.graph.context import context
from lmcast.exporter.passes.evaluate import evaluate
from lmcast.exporter.passes.rewrite import nodes_of

MOST = 1 << 18  # positions: 32 MiB a table of a head with 128 numbers
COS, SIN = 7, 8  # inputs of the node
TRIED = 3, 2  # positions that are held, and new ones behind them
Tables = dict[ir.Value, ir.Value | None]


def rotary_in_attention(model: ir.Model) -> int:
    if not list(nodes_of(model, "GroupQueryAttention")) or context(model) > MOST:
        return 0
    tables: Tables = {}
    return sum(
        rotate_within(model, node, tables) for node in nodes_of(model, "GroupQueryAttention")
    )


def rotate_within(model: ir.Model, node: ir.Node, tables: Tables) -> bool:
    """Let an attention rotate its queries and keys; say whether it does what rotated them.

    tables: those that were made, by the angles of a call; None for angles that have none.
    """
    query, key = (rotation(value) for value in node.inputs[:2])
    past = node.inputs[3]
    if query is None or key is None:
        return False
    assert past is not None and past.shape is not None
    width, angles = past.shape[-1], query.inputs[1:3]
    alike = ("interleaved", "rotary_embedding_dim")
    if angles != key.inputs[1:3] or any(_number(query, n) != _number(key, n) for n in alike):
        return False
    if not isinstance(width, int) or width % 16:
        return False
    for angle in angles:
        if angle is not None and angle not in tables:
            tables[angle] = _table(model, angle)
    cos, sin = (tables[angle] if angle is not None else None for angle in angles)
    if cos is None or sin is None or cos.dtype != (node.outputs[0].dtype or past.dtype):
        return False
    for place, turn in enumerate((query, key)):
        node.replace_input_with(place, turn.inputs[0])
        model.graph.remove(turn, safe=True)
    node.resize_inputs(max(len(node.inputs), SIN + 1))
    node.replace_input_with(COS, cos)
    node.replace_input_with(SIN, sin)
    node.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 1)
    interleaved = _number(query, "interleaved")
    node.attributes["rotary_interleaved"] = ir.AttrInt64("rotary_interleaved", interleaved)
    return True


def rotation(value: ir.Value | None) -> ir.Node | None:
    """Return the node that rotates a value for one user."""
    node = value.producer() if value is not None else None
    alone = value is not None and len(value.uses()) == 1
    return node if node is not None and alone and node.op_type == "RotaryEmbedding" else None


def _number(node: ir.Node, name: str) -> int:
    given = node.attributes.get(name)
    return given.as_int() if given is not None else 0


def _table(model: ir.Model, angle: ir.Value) -> ir.Value | None:
    """Return the numbers of all positions as a weight, positions by half the rotated width; None
    where they depend on something else, or the kernel does not take so many."""
    whole, held = _angles(model, angle, 0, context(model)), _angles(model, angle, *TRIED)
    start, count = TRIED
    if whole is None or held is None or whole.shape[-1] % 8:
        return None
    if not np.array_equal(whole[start : start + count], held[: len(whole) - start]):
        return None
    value = ir.Value(name=f"{angle.name}.table")
    value.const_value = ir.tensor(whole, name=value.name)
    value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(whole.shape)
    model.graph.initializers[str(value.name)] = value
    return value


def _angles(model: ir.Model, angle: ir.Value, held: int, new: int) -> np.ndarray | None:
    """Return what a graph computes for one row with so many held and new tokens."""
    given = {"cache_lengths": np.array([held]), "input_ids": np.zeros((1, new), np.int64)}
    known = {v: given[v.name] for v in model.graph.inputs if v.name in given}
    found = evaluate(angle, known)
    return None if found is None else found[0]
