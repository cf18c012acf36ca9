"""Make plugins of the operators with kernels: a node carries these, and how they are launched.

before: lmcast.mla_attention <scale = 0.1> (query, ..., value_up)
after:  lmcast.mla_attention <recipe = "...", kernels = ...> (query, ..., value_up)
"""

from collections.abc import Mapping
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import onnx_ir as ir

from lmcast.exporter.backends import native
from lmcast.exporter.backends.launch_plans import describe, given
from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.backends.tensorrt import libraries
from lmcast.exporter.backends.tensorrt.request import Request
from lmcast.exporter.passes.rewrite import insert, replace
from lmcast.plugins.plugin import DOMAIN


def embed(graph: ir.Model, request: Request) -> list[str]:
    """Give every remaining custom operator its launch plan; return the states updated in place.

    Raises BackendError where the plugins are not installed.
    """
    nodes = [node for node in graph.graph if node.domain == DOMAIN]
    if not nodes:
        return []
    for package, install in (
        (native.PACKAGE, native.INSTALL),
        ("triton", f"'lmcast[{libraries.LIBRARIES[request.target].extra}]'"),
    ):
        if find_spec(package) is None:
            names = ", ".join(sorted({node.op_type for node in nodes}))
            raise BackendError(
                f"{names}: TensorRT runs these as plugins, which need the package {package}, which"
                f" is not installed: pip install {install}"
            )
    from lmcast.plugins.launch.launch_plan import MachineCode, compiled_plan

    cases = cases_of(request)
    updated = []
    for node in nodes:
        code = MachineCode()  # a plugin holds its own
        text = compiled_plan(node.op_type, given(node), cases, request.sms, code)
        updated += describe(node, text)
        present = [value for value in node.inputs if value is not None]
        made = insert(
            graph, node, node.op_type, present, attributes(text, bytes(code.blob)),
            name=str(node.name), outputs=len(node.outputs), domain=DOMAIN,
        )  # fmt: skip
        replace(graph, node, made)
    for function in [f for f in graph.functions.values() if f.domain == DOMAIN]:
        del graph.functions[function.identifier()]
    return sorted(updated)


def cases_of(request: Request) -> list[dict[str, Any]]:
    """Return the calls that launch plans are made for, in the order in which they are tried.

    The profiles of the plan, but first a step of one row: one place alone takes a shorter way.
    """
    from lmcast.plugins.launch.launch_plan import Bounds

    profiles = [{axis: profile[axis] for axis in "BT"} for profile in request.profiles]
    alone = {"B": (1, 1, 1), "T": (1, 1, 1)}
    ranges = [alone, *(profile for profile in profiles if profile != alone)]
    return [
        {axis: Bounds(least, most, usual) for axis, (least, usual, most) in profile.items()}
        for profile in ranges
    ]


def load_plugins(trt: ModuleType, logger: Any) -> None:
    """Register the plugins with a library of TensorRT."""
    trt.init_libnvinfer_plugins(logger, "")
    trt.get_plugin_registry().load_library(native.library("a plugin"))


def attributes(text: str, blob: bytes) -> Mapping[str, Any]:
    """Return a plugin's attributes; kernels are bytes, which the parser takes as they are.

    ONNX has texts alone, but this graph is never a file.
    """
    return {"recipe": text, "kernels": ir.Attr("kernels", ir.AttributeType.STRING, blob)}
