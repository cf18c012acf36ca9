"""Count how each custom operator is executed in a graph: by a plugin, a native kernel, or its
body."""

import re
from collections import Counter, defaultdict

import onnx_ir as ir

from lmcast.plugins.plugin import DOMAIN, REGISTRY

Forms = dict[str, dict[str, int]]  # operator -> form -> how many calls

# Operators that a runtime has a kernel of its own for, as the passes of its target leave them.
NATIVE = {"Attention", "GroupQueryAttention", "LinearAttention", "QMoE"}
BEST = ("plugin", "native", "body")


def forms(graph: ir.Model, plugins: bool) -> Forms:
    """Return operator -> form -> number of calls, from the names of nodes, which begin with the
    call's. What a definition itself says with an operator that has a kernel, as towers say
    Attention, counts under that operator's name.

    'native': among its nodes, or in a branch, is one that the runtime has a kernel for. 'body':
    only plain operators. 'plugin': the operator's own node is left, in a graph for which these are
    `plugins`; otherwise 'body'.
    """
    # layers.3.mixer.cached_attention_2.attended: the call, and the operator that it is of.
    name = re.compile(rf"(.*?\.({'|'.join(REGISTRY)})(?:_\d+)?)(?:\.|$)")
    calls: dict[tuple[str, str], set[str]] = defaultdict(set)
    for node in graph.graph:
        if found := name.match(str(node.name)):
            own = plugins and node.domain == DOMAIN
            form = "plugin" if own else "native" if NATIVE & _operators(node) else "body"
            calls[found[1], found[2]].add(form)
        elif node.op_type in NATIVE:
            calls[str(node.name), node.op_type].add("native")
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for (_, operator), found_forms in calls.items():
        counted[operator][next(best for best in BEST if best in found_forms)] += 1
    return {operator: dict(counts) for operator, counts in sorted(counted.items())}


def _operators(node: ir.Node) -> set[str]:
    """Return the operator of a node, and those of its branches."""
    graphs = (a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH)
    return {node.op_type, *(inner.op_type for graph in graphs for inner in graph.all_nodes())}
