"""Take the length of the longest row from the caller, who has it on the host.

before: y, key, value = GroupQueryAttention(q, k, v, past_key, past_value, lasts,
        Cast(ReduceMax(lengths) + T))
after:  y, key, value = GroupQueryAttention(q, k, v, past_key, past_value, lasts, total_length)

Its kernels on GPUs read that number on the host: computed in the graph, it would be copied there in
every step, which has to wait for it, and which no CUDA graph can hold.
"""

import onnx_ir as ir

from lmcast.exporter.graph.requirements import require
from lmcast.exporter.passes.rewrite import nodes_of

NAME, PLACE = "total_length", 6  # of the input of the graph, and among those of the node


def total_length(model: ir.Model) -> int:
    given = next((value for value in model.graph.inputs if value.name == NAME), None)
    if given is None and any(nodes_of(model, "GroupQueryAttention")):
        given = ir.Value(name=NAME, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT32))
        model.graph.inputs.append(given)
        require(model, total_length=True)
    return 0 if given is None else give_total(model, given)


def give_total(model: ir.Model, given: ir.Value) -> int:
    """Let attention take its total, int32 of one number, from a value; return how many did not."""
    changes = 0
    for node in nodes_of(model, "GroupQueryAttention"):
        if node.inputs[PLACE] is not given:
            node.replace_input_with(PLACE, given)
            changes += 1
    return changes
