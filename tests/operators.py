"""All operators, in REGISTRY: a new one needs no line here, its file is found."""

from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from torch import Tensor

from lmcast import plugins
from lmcast.exporter.graph.assemble import IR_VERSION, attach_bodies
from lmcast.exporter.graph.lowering import OPSETS, onnx_dtype
from lmcast.plugins.plugin import DOMAIN, REGISTRY, Plugin

__all__ = ["REGISTRY", "eager", "label", "one_node"]

FOLDER = Path(str(plugins.__file__)).parent

for path in sorted(FOLDER.glob("*/*.py")):
    # What runs kernels is imported on demand, and only where Triton is.
    if not path.stem.endswith("_triton") and path.parent.name not in ("launch", "native"):
        import_module(f"lmcast.plugins.{path.parent.name}.{path.stem}")


def label(value: Any) -> str:
    return value.name if isinstance(value, Plugin) else str(value)


def eager(plugin: Plugin, args: tuple) -> tuple[Tensor, ...]:
    """Return what the definition gives, as a tuple also where it is one tensor."""
    out = plugin.eager(*args)
    return out if isinstance(out, tuple) else (out,)


def one_node(plugin: Plugin, args: tuple) -> onnx.ModelProto:
    """Return a model that is one node of the operator, with its body."""
    schema = plugin.schema
    values: list[ir.Value | None] = []
    plain = {}
    for argument, value in zip(schema.arguments, args, strict=True):
        if isinstance(value, Tensor):
            kind = ir.TensorType(onnx_dtype(value.dtype))
            shape = ir.Shape([f"{argument.name}_{i}" for i in range(value.dim())])
            values.append(ir.Value(name=argument.name, type=kind, shape=shape))
        elif value is None:
            values.append(None)
        else:
            plain[argument.name] = int(value) if isinstance(value, bool) else value
    while values[-1] is None:
        values.pop()
    node = ir.node(
        plugin.name, values, plain, domain=DOMAIN, num_outputs=len(schema.returns), name="node"
    )
    for i, (out, example) in enumerate(zip(node.outputs, eager(plugin, args), strict=True)):
        out.name, out.type = f"out{i}", ir.TensorType(onnx_dtype(example.dtype))
        out.shape = ir.Shape([f"out{i}_{axis}" for axis in range(example.dim())])
    given = [value for value in values if value is not None]
    graph = ir.Graph(given, node.outputs, nodes=[node], name="one", opset_imports=OPSETS)
    model = ir.Model(graph, ir_version=IR_VERSION)
    attach_bodies(model)
    return ir.to_proto(model)
