"""Keep all tokens of a row, where a window is wide, and let attention look at the last of them.

before: y, key, value = GroupQueryAttention <local_window_size = W, sliding_window_cache = 1>
        (q, k, v, past_key B,G,W,K, ...)
after:  y, key, value = GroupQueryAttention <local_window_size = W> (q, k, v, past_key B,G,C,K, ...)

A cache of the window's size is moved by one slot in every step by the kernel of ONNX Runtime 1.31
for GPUs: it is read and written where attention alone would read it, three times the traffic. A
narrow one is moved in less time than it takes to launch that, and takes less memory.
"""

import onnx_ir as ir

from lmcast.exporter.passes.rewrite import nodes_of

WIDEST = 512  # of the windows that are moved: some microseconds, as a launch takes
ROOM = "C"  # the axis of a cache with room for all tokens


def whole_windows(model: ir.Model) -> int:
    return keep_all(model, WIDEST)


def keep_all(model: ir.Model, widest: int) -> int:
    """Keep all tokens of windows above this; return how many there were."""
    changes = 0
    for node in nodes_of(model, "GroupQueryAttention"):
        window = node.attributes.get("local_window_size")
        if "sliding_window_cache" not in node.attributes or window is None:
            continue
        caches = [*node.inputs[3:5], *node.outputs[1:]]
        if window.as_int() <= widest or not all(v is not None and _own(v) for v in caches):
            continue
        for value in caches:
            assert value is not None and value.shape is not None
            batch, heads, _, width = value.shape
            value.shape = ir.Shape([batch, heads, ROOM, width])
        del node.attributes["sliding_window_cache"]
        changes += 1
    return changes


def _own(value: ir.Value) -> bool:
    """Whether a cache is a state of the graph that nothing else reads."""
    return len(value.uses()) == 1 if value.is_graph_input() else value.is_graph_output()
