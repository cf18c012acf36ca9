"""What the CUDA provider has kernels for, and machine code for the operators that it has none for.

before: lmcast.mla_attention <scale = 0.1> (query, ..., value_up)
after:  lmcast.mla_attention <recipe = "lmcast-recipe 1 ..."> (kernels, query, ..., value_up)

`kernels` is one initializer of the graph: all nodes share their machine code.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lmcast.exporter.backends.launch_plans import describe, given
from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.graph.context import context
from lmcast.exporter.graph.requirements import require as require_of_runner
from lmcast.exporter.graph.requirements import requirements
from lmcast.exporter.passes.rewrite import insert, replace
from lmcast.plugins.plugin import DOMAIN

if TYPE_CHECKING:
    from lmcast.graphs.weights.bind import Binding

# Those that ONNX Runtime 1.31's wheel has machine code for; it has no PTX that others could take.
SMS = (80, 86, 89, 90, 120)
ELSEWHERE = {  # what runs on GPUs that it leaves out
    75: "it has no bfloat16, and no fused attention there; --target tensorrt-rtx takes SM75",
    100: "--target tensorrt, built on such a GPU, or ONNX Runtime built from its sources",
    103: "--target tensorrt, built on such a GPU, or ONNX Runtime built from its sources",
    121: "--target tensorrt-rtx takes SM121",
}
KERNELS = "kernels"  # the initializer
MOST_ROWS = 1024  # of a call: as many sequences at once
MOST_TOKENS = 1 << 16  # of a row in one call
USUAL_TOKENS, USUAL_CAPACITY = 128, 4096


def require(binding: "Binding", dtype: str) -> None:
    """Refuse what the provider has no kernels for; raises BackendError."""
    if dtype == "float32":
        raise BackendError(
            "dtype float32: ONNX Runtime's attention on GPUs takes 16 bits alone; use --dtype"
            " bfloat16 or float16 (--target onnx runs in float32)"
        )
    if formats := sorted({layout.format.name for layout in binding.layouts.values()}):
        raise BackendError(
            f"target cuda: weights in {', '.join(formats)} have no kernels there yet; --target cpu"
            " and tensorrt-rtx take them"
        )


def choose_sms(asked: tuple[int, ...]) -> tuple[int, ...]:
    """Return the SMs to compile for, by default all; raises BackendError for others."""
    for sm in asked:
        if sm not in SMS:
            other = f"; there runs {ELSEWHERE[sm]}" if sm in ELSEWHERE else ""
            raise BackendError(
                f"SM{sm}: ONNX Runtime's package has no kernels for it; accepted:"
                f" {', '.join(map(str, SMS))}{other}"
            )
    return asked or SMS


def embed(graph: ir.Model, sms: tuple[int, ...]) -> None:
    """Give every operator of ours that is left machine code for these SMs, and its launch plan."""
    nodes = [node for node in graph.graph if node.domain == DOMAIN]
    if not nodes:
        return
    if find_spec("triton") is None:
        names = ", ".join(sorted({node.op_type for node in nodes}))
        raise BackendError(
            f"{names}: compiled by the package triton, which is not installed: pip install"
            " 'lmcast[triton]'"
        )
    from lmcast.plugins.launch.launch_plan import MachineCode, compiled_plan

    code, kernels = MachineCode(), ir.Value(name=KERNELS)
    chosen = [n.attributes["top_k"].as_int() for n in nodes if n.op_type == "sparse_index"]
    require_of_runner(graph, least_capacity=max([1, *chosen]))  # it chooses among so many slots
    for node in nodes:
        text = compiled_plan(node.op_type, given(node), cases(graph), sms, code)
        describe(node, text)
        present = [value for value in node.inputs if value is not None]
        made = insert(
            graph, node, node.op_type, [kernels, *present], {"recipe": text}, name=str(node.name),
            outputs=len(node.outputs), domain=DOMAIN,
        )  # fmt: skip
        replace(graph, node, made)
    kernels.const_value = ir.tensor(np.frombuffer(bytes(code.blob), np.uint8), name=KERNELS)
    kernels.type, kernels.shape = ir.TensorType(ir.DataType.UINT8), ir.Shape([len(code.blob)])
    graph.graph.initializers[KERNELS] = kernels
    for function in [f for f in graph.functions.values() if f.domain == DOMAIN]:
        del graph.functions[function.identifier()]


def cases(graph: ir.Model) -> list[dict[str, Any]]:
    """Return the calls that launch plans are made for, in the order in which they are tried: a step
    of one row, of several, and a prompt. Letters as of the graph's axes."""
    from lmcast.plugins.launch.launch_plan import Bounds

    # Padding may lie behind the context: at most as much again.
    least = requirements(graph).least_capacity
    most = max(least, 2 * context(graph))
    capacity = Bounds(least, most, min(max(least, USUAL_CAPACITY), most))
    one, rows = Bounds(1, 1, 1), Bounds(1, MOST_ROWS, 1)
    most = min(MOST_TOKENS, context(graph))
    prompt = Bounds(1, most, min(USUAL_TOKENS, most))
    return [
        {"B": one, "T": one, "C": capacity},
        {"B": rows, "T": one, "C": capacity},
        {"B": rows, "T": prompt, "C": capacity},
    ]
