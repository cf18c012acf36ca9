"""Drop the split into heads around an attention without a mask, which splits rows itself.

before: Reshape(Transpose(Attention(Transpose(Reshape(q)), Transpose(Reshape(k)), ...)))
after:  Attention <q_num_heads = H, kv_num_heads = H> (q, k, v), each N,S,H*d

Towers attend so. Kernels of ONNX Runtime take rows as products give them: four copies fewer.
"""

import onnx_ir as ir

from lmcast.exporter.passes.rewrite import insert, nodes_of, replace

SWAPPED = (0, 2, 1, 3)  # N,S,H,d -> N,H,S,d, and back


def undo_heads(model: ir.Model) -> int:
    return sum(_rewritten(model, node) for node in nodes_of(model, "Attention"))


def _rewritten(model: ir.Model, node: ir.Node) -> bool:
    splits = [_split(value) for value in node.inputs]
    found = [split for split in splits if split is not None]
    if len(node.inputs) != 3 or len(found) != 3:
        return False
    (queries, heads, width), (keys, groups, other), (values, *last) = found
    joined = _joined(node.outputs[0], heads * last[1])
    if (groups, other) != (last[0], width) or joined is None:
        return False
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    attributes |= {"q_num_heads": heads, "kv_num_heads": groups}
    rows = [queries, keys, values]
    made = insert(model, node, "Attention", rows, attributes, name=f"{node.name}.rows")
    swap = joined.inputs[0].producer() if joined.inputs[0] is not None else None
    assert swap is not None
    replace(model, joined, made)
    model.graph.remove([swap, node], safe=True)
    return True


def _split(value: ir.Value | None) -> tuple[ir.Value, int, int] | None:
    """Return the rows N,S,H*d that a value N,H,S,d was split from, H and d; None of another
    form."""
    swap = value.producer() if value is not None else None
    heads = swap.inputs[0] if swap is not None and _swaps(swap) else None
    reshape = heads.producer() if heads is not None else None
    if heads is None or reshape is None or reshape.op_type != "Reshape":
        return None
    (rows, *_) = reshape.inputs
    if rows is None or rows.shape is None or heads.shape is None or len(rows.shape) != 3:
        return None
    *_, count, width = heads.shape
    if not isinstance(count, int) or not isinstance(width, int) or rows.shape[2] != count * width:
        return None
    return rows, count, width


def _joined(value: ir.Value, width: int) -> ir.Node | None:
    """Return the node that joins heads N,H,S,d to rows of a width, and nothing else reads them."""
    swap = _reader(value)
    join = _reader(swap.outputs[0]) if swap is not None and _swaps(swap) else None
    if join is None or join.op_type != "Reshape":
        return None
    shape = join.outputs[0].shape
    return join if shape is not None and len(shape) == 3 and shape[2] == width else None


def _reader(value: ir.Value) -> ir.Node | None:
    """Return the only node that reads a value; None where there are others, or an output is."""
    users = [use.node for use in value.uses()]
    return users[0] if len(users) == 1 and not value.is_graph_output() else None


def _swaps(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and tuple(node.attributes["perm"].as_ints()) == SWAPPED
