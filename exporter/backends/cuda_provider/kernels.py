"""What the CUDA provider has kernels for, and machine code for the operators that it has none for.

before: lmcast.mla_attention <scale = 0.1> (query, ..., value_up)
after:  lmcast.mla_attention <recipe = "lmcast-recipe 2 ..."> (kernels, query, ..., value_up)

`kernels` is one initializer of the graph, in a file of its own: all nodes share their machine code.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lmcast.exporter.backends.cuda_provider.machine import SMS, require_sm
from lmcast.exporter.backends.launch_plans import describe, given
from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.engine.names import KERNELS
from lmcast.exporter.graph.context import context
from lmcast.exporter.graph.operator_forms import forms
from lmcast.exporter.graph.requirements import require as require_of_runner
from lmcast.exporter.graph.requirements import requirements
from lmcast.exporter.passes.rewrite import insert, replace
from lmcast.graphs.weights.quantized_parts import parameter_of
from lmcast.plugins.errors import InputError
from lmcast.plugins.plugin import DOMAIN

if TYPE_CHECKING:
    from lmcast.graphs.weights.bind import Binding

FP8_SM = 89  # the first with attention to caches in FP8
# What has kernels in few bits.
ABLE_EXPERTS = (
    "of experts those with a gate of silu, in widths that are multiples of 64, blocks of 32 and up"
)
ABLE_ROWS = "of embeddings those in INT4, INT8 and MXFP4"
ABLE_PRODUCTS = "of integers those of which 16, 32, 64 or 128 columns share a scale"
# Of a call: rows, and tokens of a row. The first that no kernel counts beyond 32 bits with.
MOST_ROWS = 256
MOST_TOKENS = (8192, 2048, 512, 128)
USUAL_TOKENS, USUAL_CAPACITY = 128, 4096


def require(binding: "Binding", dtype: str) -> None:
    """Refuse what the provider has no kernels for; raises BackendError."""
    if dtype == "float32":
        raise BackendError(
            "dtype float32: ONNX Runtime's attention on GPUs takes 16 bits alone; use --dtype"
            " bfloat16 or float16 (--target onnx runs in float32)"
        )


def choose_sms(asked: tuple[int, ...]) -> tuple[int, ...]:
    """Return the SMs to compile for, by default all; raises BackendError for others."""
    for sm in asked:
        require_sm(sm)
    return asked or SMS


def embed(graph: ir.Model, sms: tuple[int, ...]) -> None:
    """Give every operator of ours that is left machine code for these SMs, and its launch plan.

    Raises BackendError for what is not made for this target yet, InputError where a kernel does not
    fit.
    """
    refuse_low_precision(graph, sms)
    refuse_convolutions(graph)
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

    chosen = [n.attributes["top_k"].as_int() for n in nodes if n.op_type == "sparse_index"]
    require_of_runner(graph, least_capacity=max([1, *chosen]))  # it chooses among so many slots
    calls, code, kernels = cases(graph, nodes), MachineCode(), ir.Value(name=KERNELS)
    for node in nodes:
        text = compiled_plan(node.op_type, given(node), calls, sms, code)
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


def refuse_low_precision(graph: ir.Model, sms: tuple[int, ...]) -> None:
    """Refuse what is held or multiplied in few bits and has no kernel; raises BackendError."""
    what = ""
    for value in graph.graph.inputs:
        if value.dtype == ir.DataType.FLOAT8E4M3FN and (old := [sm for sm in sms if sm < FP8_SM]):
            able = ",".join(str(sm) for sm in SMS if sm >= FP8_SM)
            state = str(value.name).removesuffix(".past")
            raise BackendError(
                f"{state} is held in FP8, which ONNX Runtime's attention has from SM{FP8_SM} on,"
                f" and not on SM{old[0]}: use --sm {able}, or a recipe that was made without --kv"
            )
    left = [node.inputs[0] for node in graph.graph if node.op_type == "DequantizeLinear"]
    made = {value.name: value for node in graph.graph for value in node.outputs}
    for codes in left:
        if codes is not None and codes.dtype is not None:
            name = parameter_of(str(codes.name))
            what = f"weight {name} is {codes.dtype.name}, without a kernel for what it is used for"
            what += f" ({_able(made.get(name))})"
    if "quantize_input" in forms(graph, plugins=True):
        what = "products with rounded inputs have no kernels there"
    if what:
        raise BackendError(
            f"target cuda: {what}; give a checkpoint or a recipe without it, or --target cpu or"
            " tensorrt-rtx"
        )


def refuse_convolutions(graph: ir.Model) -> None:
    """Refuse those of towers; raises BackendError. ONNX Runtime's run by cuDNN, which no text needs
    and lmcast does not install."""
    if any(node.op_type == "Conv" for node in graph.graph):
        raise BackendError(
            "target cuda: the model of pictures or of sounds has convolutions, which ONNX Runtime"
            " leaves to cuDNN; give --text-only, or --target cpu or tensorrt-rtx"
        )


def _able(weight: ir.Value | None) -> str:
    """Return what has kernels in few bits of all that is used as this weight."""
    if weight is None or len(weight.shape or ()) == 3:
        return ABLE_EXPERTS
    rows = any(node.op_type == "Gather" for node in weight.consumers())
    return ABLE_ROWS if rows else ABLE_PRODUCTS


def cases(graph: ir.Model, nodes: list[ir.Node]) -> list[dict[str, Any]]:
    """Return the calls that launch plans are made for, in the order in which they are tried: a step
    of one row, of several, and a prompt. Letters as of the graph's axes.

    Records how large the largest is. Raises InputError where a kernel counts beyond 32 bits in all.
    """
    from lmcast.plugins.launch.launch_plan import Bounds, draft

    least, whole = requirements(graph).least_capacity, context(graph)
    # Padding may lie behind the context: at most as much again.
    end = max(least, 2 * whole)
    capacity = Bounds(least, end, min(max(least, USUAL_CAPACITY), end))
    one, rows = Bounds(1, 1, 1), Bounds(1, MOST_ROWS, 1)
    for limit in MOST_TOKENS:
        most = min(limit, whole)
        prompt = Bounds(1, most, min(USUAL_TOKENS, most))
        calls = [
            {"B": one, "T": one, "C": capacity},
            {"B": rows, "T": one, "C": capacity},
            {"B": rows, "T": prompt, "C": capacity},
        ]
        try:
            for node in nodes:
                outputs = draft(node.op_type, given(node), calls).outputs
                describe(node, " ".join([f"outputs {len(outputs)}", *outputs]))
        except InputError:
            if limit == MOST_TOKENS[-1]:
                raise
            continue
        break
    require_of_runner(graph, most_rows=MOST_ROWS, most_tokens=most)
    return calls
