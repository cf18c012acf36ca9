"""What sessions of ONNX Runtime do with our nodes, in a process on a fake GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from fake_cuda import note
from fake_cuda.interpret import stand_in
from launch_cases import growing_cases, opened
from operators import REGISTRY, eager
from runtimes import (
    SM,
    empty_on_device,
    graph,
    on_device,
    outputs_of,
    plan,
    session_of,
    start,
    tensor_at,
)  # fmt: skip
from torch import Tensor

from lmcast.plugins.latent import mla_attention as mla
from lmcast.plugins.launch.launch_plan import MachineCode, draft, written

SIZES = (2, 8, 4, 16, 8)  # of mla_attention: heads and widths


def attention(room: int, batch: int = 1, tokens: int = 1) -> tuple:
    """Return arguments of mla_attention, whose cache has this room."""
    torch.manual_seed(room)
    return mla.case([3] * batch, [tokens] * batch, room, SIZES)


def tensors(args: tuple) -> list[Tensor]:
    return [arg for arg in args if isinstance(arg, Tensor)]


def growing_plan(args: tuple, sm: int = SM) -> tuple[str, bytes]:
    plugin = mla.mla_attention
    return plan(plugin, opened(plugin, args, True), growing_cases(plugin, args), sm)


class Bound:
    """A session's inputs and outputs on the device; in_place: past is present."""

    def __init__(self, session: Any, text: str, inputs: list[Tensor], in_place: bool = True):
        self.session, self.binding = session, session.io_binding()
        self.held, self.outputs = [on_device(tensor) for tensor in inputs], []
        for i, one in enumerate(self.held):
            self.binding.bind_ortvalue_input(f"in{i}", one)
        for i, (dtype, alias, shape) in enumerate(outputs_of(text, inputs)):
            reuse = in_place and alias >= 0
            out = self.held[alias] if reuse else empty_on_device(shape, dtype)
            self.outputs.append(out)
            self.binding.bind_ortvalue_output(f"out{i}", out)

    def run(self, name: str) -> None:
        note(name)
        self.session.run_with_iobinding(self.binding)
        note(f"after {name}")

    def output(self, i: int) -> Tensor:
        return tensor_at(self.outputs[i].data_ptr(), self.outputs[i].shape(), torch.float32)


def differs(bound: Bound, args: tuple) -> bool:
    close = mla.mla_attention.close[torch.float32]
    return not all(
        torch.allclose(bound.output(i), want, atol=close.atol, rtol=close.rtol)
        for i, want in enumerate(eager(mla.mla_attention, args))
    )


def states() -> dict[str, Any]:
    """A state that is not updated in place, and caches that grow in one session."""
    args = attention(6)
    text, code = growing_plan(args)
    session = session_of(graph(code, [("mla_attention", text, tensors(args))]))
    apart = Bound(session, text, tensors(args), in_place=False)
    apart.run("apart")
    past = tensor_at(apart.held[3].data_ptr(), args[3].shape, torch.float32)
    found: dict[str, Any] = {"apart": differs(apart, args), "kept": torch.equal(past, args[3])}
    found["bytes"] = args[3].nbytes
    for room, batch in ((6, 1), (700, 1), (6, 3)):
        args = attention(room, batch)
        bound = Bound(session, text, tensors(args))
        bound.run(f"{room} {batch}")
        found[f"{room} {batch}"] = differs(bound, args)
    bound.run("again")
    found["shapes"] = [output.shape for output in session.get_outputs()]
    return found


def captured() -> bool:
    """A step as a CUDA graph, whose inputs change; return whether it is then wrong."""
    args = attention(6)
    text, code = growing_plan(args)
    model = graph(code, [("mla_attention", text, tensors(args))])
    session = session_of(model, enable_cuda_graph="1")
    bound = Bound(session, text, tensors(args))
    for name in ("capture", "replay"):
        bound.run(name)
    other = attention(6)[:2] + tuple(
        arg * 2 if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args[2:]
    )
    for i, tensor in enumerate(tensors(other)):
        bound.held[i].update_inplace(tensor.numpy())
    bound.run("changed")
    return differs(bound, other)


def shared(folder: str) -> int:
    """Three nodes, two of them alike, whose machine code is a file beside the graph."""
    code, nodes, args = MachineCode(), [], attention(6)
    convolution = REGISTRY["causal_conv"]
    for plugin, given in (
        (mla.mla_attention, args), (mla.mla_attention, args), (convolution, convolution.cases()[1]),
    ):  # fmt: skip
        drawn = draft(plugin.name, opened(plugin, given, True), growing_cases(plugin, given))
        cubins = [{SM: stand_in(kernel, SM)} for kernel in drawn.kernels]
        nodes.append((plugin.name, written(drawn, cubins, code), tensors(given)))
    path = Path(folder, "model.onnx")
    onnx.save_model(
        graph(bytes(code.blob), nodes), str(path), save_as_external_data=True,
        location="kernels.bin", size_threshold=0,
    )  # fmt: skip
    note("load")
    session = session_of(str(path))
    note("loaded")
    del session
    return len(code.places)


def said(make: Callable[[], Any]) -> str:
    """Return the error of what must fail."""
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    kinds = (errors.Fail, errors.RuntimeException, errors.InvalidArgument, errors.InvalidGraph)
    try:
        make()
    except (*kinds, RuntimeError) as error:
        return str(error)
    return ""


def refusals() -> dict[str, str]:
    """What is wrong -> what is said of it."""
    args = attention(6)
    text, code = growing_plan(args)
    node = ("mla_attention", text, tensors(args))
    damaged = code[:30] + bytes([code[30] ^ 1]) + code[31:]
    loaded = graph(code, [node])
    loaded.graph.input.append(loaded.graph.input[0])
    loaded.graph.input[-1].CopyFrom(
        onnx.helper.make_tensor_value_info("kernels", onnx.TensorProto.UINT8, [len(code)])
    )
    del loaded.graph.initializer[:]
    fewer = graph(code, [node])
    del fewer.graph.node[0].output[1], fewer.graph.output[1]
    longer = graph(code, [node])
    longer.graph.node[0].attribute[0].s += b" more"
    half = [t.half() if t.is_floating_point() else t for t in tensors(args)]
    other_sm, other_code = growing_plan(args, 89)
    session = session_of(graph(code, [node]))
    large = attention(6, 5)
    return {
        "SM": said(lambda: session_of(graph(other_code, [(node[0], other_sm, node[2])]))),
        "damaged": said(lambda: session_of(graph(damaged, [node]))),
        "shorter": said(lambda: session_of(graph(code[:-1], [node]))),
        "plan": said(lambda: session_of(longer)),
        "input": said(lambda: session_of(loaded)),
        "outputs": said(lambda: session_of(fewer)),
        "type": said(lambda: session_of(graph(code, [(node[0], text, half)]))),
        "shape": said(lambda: Bound(session, text, tensors(large)).run("large")),
    }


def sessions(folder: str) -> dict[str, Any]:
    """All of these, in one process."""
    start()
    found = {"states": states(), "captured": captured(), "shared": shared(folder)}
    return found | {"refused": refusals()}


def exhausted() -> str:
    """More scratch memory than is left; afterwards the session still runs what fits."""
    start()
    few, many = attention(6), attention(600, 4, 512)
    text, code = growing_plan(few)
    session = session_of(graph(code, [("mla_attention", text, tensors(few))]))
    bound = Bound(session, text, tensors(many))
    said_of_it = said(lambda: bound.run("many"))
    Bound(session, text, tensors(few)).run("few")
    return said_of_it
