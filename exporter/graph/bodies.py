"""A graph as it was before its operators became machine code, for programs that have no kernels of
ours: they run the bodies."""

import onnx_ir as ir

KEY = "bodies"  # in ir.Model.meta, which is not written into the file


def keep_bodies(model: ir.Model) -> None:
    """Keep a graph as it is, with the bodies of its operators."""
    model.meta[KEY] = model.clone()


def with_bodies(model: ir.Model) -> ir.Model | None:
    """Return a copy of what was kept, over the weights of the graph as it is now; None of a graph
    of which nothing was."""
    kept = model.meta.get(KEY)
    if not isinstance(kept, ir.Model):
        return None
    copy, weights = kept.clone(), model.graph.initializers
    for name, value in copy.graph.initializers.items():
        value.const_value = weights[name].const_value
    return copy
