"""Operators in both runtimes that replay launch plans, on a fake GPU: launches are interpreted.

python tests/plugins/runtimes.py onnxruntime  # all cases in each dtype, or of these operators:
python tests/plugins/runtimes.py tensorrt moe_route causal_conv
"""

import ctypes
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from fake_cuda import Run, note, on_fake_gpu
from fake_cuda.interpret import interpret, stand_in
from interpreter import improve
from launch_cases import DECODE, EACH, ONE, PREFILL, cast, growing_cases, opened
from launch_plan_reader import TYPES, Reader, value
from operators import REGISTRY, eager
from plugin_library import enqueue, workspace
from torch import Tensor

from lmcast.plugins.launch.launch_plan import Bounds, Case, MachineCode, draft, written
from lmcast.plugins.plugin import DOMAIN, Plugin

SM = 90
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TYPES.values()}
# An operator, the number of its case, a dtype, and the tokens of a call that a launch plan of one
# case is fast at; 0: it has three, for one token alone, for steps and for prompts.
Wanted = tuple[str, int, str, int]


def every(names: Sequence[str] = ()) -> list[Wanted]:
    """Return all cases of these operators, or of all, in each dtype that they are held to."""
    return [
        (plugin.name, i, str(dtype).removeprefix("torch."), 0)
        for plugin, i in EACH
        if not names or plugin.name in names
        for dtype in plugin.close
    ]


def run(runtime: str, wanted: Sequence[Wanted]) -> Run:
    """Run these in a process on a fake GPU whose memory begins as NaN; see `disagreements`."""
    return on_gpu(disagreements, runtime, wanted)


def on_gpu(function: Callable[..., Any], *arguments: Any, memory: int = 80 << 30) -> Run:
    """Call a function in a process on a fake GPU that interprets kernels; memory: its bytes."""
    variables = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return on_fake_gpu(
        function, *arguments, sm=SM, memory=memory, fill=255, timeout=3000, **variables
    )


def key(wanted: Wanted) -> str:
    name, i, dtype, usual = wanted
    return f"{name} {i} {dtype}" + (f" as for {usual}" if usual else "")


# --- In the process on the fake GPU


def start() -> None:
    improve()
    interpret()


def disagreements(runtime: str, wanted: Sequence[Wanted]) -> dict[str, str]:
    """Return what is wrong with each, "" where nothing is; what it does follows a note of its key
    in the log."""
    start()
    return {key(one): disagreement(runtime, one) for one in wanted}


def disagreement(runtime: str, wanted: Wanted) -> str:
    """Return in what a runtime differs from eager in fp64, by more than an operator accepts."""
    name, i, dtype, usual = wanted
    plugin, kind = REGISTRY[name], DTYPES[dtype]
    args = cast(plugin.cases()[i], kind)
    growing = runtime == "onnxruntime"
    given = opened(plugin, args, growing)
    cases = growing_cases(plugin, args) if growing else [ONE, DECODE, PREFILL]
    if usual:
        cases = [{"B": Bounds(1, 4, 1), "T": Bounds(1, 512, usual)}]
    text, code = plan(plugin, given, cases)
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    got = RUNTIMES[runtime](plugin.name, text, code, tensors, key(wanted))
    exact, places = eager(plugin, cast(args, torch.float64)), plugin.shapes(*args)
    try:
        for have, want, place in zip(got, exact, as_tuple(places), strict=True):
            assert have.dtype == place.dtype
            torch.testing.assert_close(have.to(want.dtype), want, **vars(plugin.close[kind]))
    except AssertionError as error:
        return str(error)
    return ""


def as_tuple(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def plan(plugin: Plugin, given: list[Any], cases: list[Case], sm: int = SM) -> tuple[str, bytes]:
    """Return a launch plan, and stand-ins for its machine code."""
    code = MachineCode()
    drawn = draft(plugin.name, given, cases)
    text = written(drawn, [{sm: stand_in(kernel, sm)} for kernel in drawn.kernels], code)
    return text, bytes(code.blob)


def outputs_of(text: str, inputs: Sequence[Tensor]) -> list[tuple[torch.dtype, int, list[int]]]:
    """Return of each output its dtype, the input that it updates or -1, and its shape."""
    shapes = [list(x.shape) for x in inputs]
    return [
        (TYPES[output.type], output.alias, [value(size, shapes) for size in output.shape])
        for output in Reader(text).recipe().outputs
    ]


def in_onnxruntime(
    operator: str, text: str, code: bytes, inputs: Sequence[Tensor], name: str
) -> list[Tensor]:
    """Run as a node on the CUDA provider, with states in place."""
    session = session_of(graph(code, [(operator, text, inputs)]))
    binding, held = session.io_binding(), [on_device(tensor) for tensor in inputs]
    for i, one in enumerate(held):
        binding.bind_ortvalue_input(f"in{i}", one)
    outputs = []
    for dtype, alias, shape in outputs_of(text, inputs):
        outputs.append((held[alias] if alias >= 0 else empty_on_device(shape, dtype), dtype))
        binding.bind_ortvalue_output(f"out{len(outputs) - 1}", outputs[-1][0])
    note(name)
    session.run_with_iobinding(binding)
    note(f"after {name}")
    return [tensor_at(one.data_ptr(), one.shape(), dtype) for one, dtype in outputs]


def onnx_type(dtype: torch.dtype) -> int:
    from lmcast.exporter.graph.lowering import onnx_dtype

    return int(onnx_dtype(dtype))


def graph(code: bytes, nodes: Sequence[tuple[str, str, Sequence[Tensor]]]) -> Any:
    """Return a graph of nodes that share their machine code; all its sizes are open."""
    from onnx import TensorProto, helper

    made, inputs, outputs = [], [], []
    for operator, text, tensors in nodes:
        taken, given = [f"in{len(inputs) + i}" for i in range(len(tensors))], []
        for name, x in zip(taken, tensors, strict=True):
            axes = [f"{name}_{axis}" for axis in range(x.dim())]
            inputs.append(helper.make_tensor_value_info(name, onnx_type(x.dtype), axes))
        for output in Reader(text).recipe().outputs:
            given.append(f"out{len(outputs)}")
            kind = onnx_type(TYPES[output.type])
            outputs.append(helper.make_tensor_value_info(given[-1], kind, None))
        node = helper.make_node(operator, ["kernels", *taken], given, domain=DOMAIN, recipe=text)
        node.name = f"node{len(made)}"
        made.append(node)
    kernels = helper.make_tensor("kernels", TensorProto.UINT8, [len(code)], code, raw=True)
    body = helper.make_graph(made, "graph", inputs, outputs, [kernels])
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(body, opset_imports=opsets, ir_version=11)


def session_of(model: Any, **options: str) -> Any:
    """Return a session on the CUDA provider alone; model: a graph, or its path."""
    import onnxruntime as ort
    from lmcast_native import LIBRARY

    asked = ort.SessionOptions()
    asked.log_severity_level = 4
    asked.register_custom_ops_library(str(LIBRARY))
    asked.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    given = model if isinstance(model, str) else model.SerializeToString()
    providers = [("CUDAExecutionProvider", options)]
    return ort.InferenceSession(given, asked, providers=providers, enable_fallback=0)


def empty_on_device(shape: Sequence[int], dtype: torch.dtype) -> Any:
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), onnx_type(dtype), "cuda", 0)


def on_device(tensor: Tensor) -> Any:
    made, content = empty_on_device(tensor.shape, tensor.dtype), bytes_of(tensor)
    ctypes.memmove(made.data_ptr(), content, len(content))  # the fake's memory is the host's
    return made


def bytes_of(tensor: Tensor) -> bytes:
    if not tensor.numel():
        return b""
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy())


def tensor_at(address: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    if not size:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(ctypes.string_at(address, size)), dtype=dtype).view(shape)


def in_tensorrt(
    operator: str, text: str, code: bytes, inputs: Sequence[Tensor], name: str
) -> list[Tensor]:
    """Run as TensorRT does, each tensor in an allocation of its own, with states in place."""
    shapes = [list(x.shape) for x in inputs]
    held, outputs = [allocated(bytes_of(x)) for x in inputs], []
    facts = outputs_of(text, inputs)
    for dtype, alias, shape in facts:
        size = torch.Size(shape).numel() * dtype.itemsize
        outputs.append(held[alias] if alias >= 0 else allocated(b"\xff" * size))
    reserved = workspace(text, len(code), shapes, shapes)
    scratch = allocated(b"\xff" * reserved)
    note(name)
    done = enqueue(text, code, reserved, shapes, held, outputs, scratch)
    note(f"after {name}")
    assert done, f"{operator}: what is wrong was printed"
    found = [
        tensor_at(address, shape, dtype)
        for address, (dtype, _, shape) in zip(outputs, facts, strict=True)
    ]
    for address in {*held, *outputs, scratch}:
        runtime().cudaFree(ctypes.c_void_p(address))
    return found


def runtime() -> Any:
    return ctypes.CDLL("libcudart.so.13")


def allocated(content: bytes) -> int:
    """Return memory of the fake GPU with this content; a page behind it cannot be touched."""
    memory = ctypes.c_void_p()
    assert runtime().cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(len(content))) == 0
    if memory.value:
        ctypes.memmove(memory.value, content, len(content))
    return memory.value or 0


RUNTIMES = {"onnxruntime": in_onnxruntime, "tensorrt": in_tensorrt}


if __name__ == "__main__":
    asked, *names = sys.argv[1:]
    done = run(asked, every(names))
    for name, wrong in done.result.items():
        launched = [event.name for event in done.log.after(name).launches]
        print(f"{name}: {len(launched)} launches{': ' + wrong if wrong else ''}")
    sys.exit(any(done.result.values()))
