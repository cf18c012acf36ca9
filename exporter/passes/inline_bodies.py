"""Inline the bodies of custom operators that a target has no kernels for.

before: layers.3.mixer.cached_attention = lmcast.cached_attention(query, ...)
after:  layers.3.mixer.cached_attention.new_key = Transpose(key), ..., a node for each of the body's

An operator with kernels stays a call: it may become a plugin, and the file still has its body.
"""

import onnx_ir as ir

from lmcast.exporter.passes.rewrite import inline
from lmcast.plugins.plugin import DOMAIN, REGISTRY


def inline_bodies(model: ir.Model) -> int:
    bodies = {key: f for key, f in model.functions.items() if f.domain == DOMAIN}
    plain = {key: body for key, body in bodies.items() if not REGISTRY[body.name].kernels}
    calls = [node for node in model.graph if node.op_identifier() in plain]
    for call in calls:
        inline(model.graph, call, plain[call.op_identifier()])
    for body in plain.values():
        del model.functions[body.identifier()]
    return len(calls)
