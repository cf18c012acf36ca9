"""Linear attention and short convolutions: chunks, the kernels of ONNX Runtime, states in place."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import operators
import pytest
import torch
from torch import Tensor

from lmcast.exporter.passes.recurrent_kernels import recurrent_kernels
from lmcast.plugins.linear.causal_conv import causal_conv
from lmcast.plugins.linear.linear_attention import case, linear_attention
from lmcast.plugins.linear.onnx_body import CHANNEL_CHUNK, CHUNK
from lmcast.plugins.plugin import Plugin

OPERATORS = [(p, i) for p in (linear_attention, causal_conv) for i in range(len(p.cases()))]
EACH = pytest.mark.parametrize(("plugin", "i"), OPERATORS, ids=operators.label)
# Where each operator takes and gives its state, among its tensors and outputs.
STATES = {"linear_attention": 3, "causal_conv": 2}


def model(plugin: Plugin, args: tuple) -> ir.Model:
    """Return one node of an operator on inputs of these shapes, as a captured model has them."""
    found = ir.from_proto(operators.one_node(plugin, args))
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    for value, tensor in zip(found.graph.inputs, tensors, strict=True):
        value.shape = ir.Shape(tensor.shape)
    return found


def session(graph: ir.Model) -> ort.InferenceSession:
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto)
    options = ort.SessionOptions()
    options.log_severity_level = (
        4  # it names constants that nothing uses, which remove_unused drops
    )
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = proto.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(graph: ir.Model, plugin: Plugin, args: tuple) -> list[Tensor]:
    """Run with the state bound in place, as engines do, and return what the operator gives."""
    ready = session(graph)
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    arrays = [tensor.numpy().copy() for tensor in tensors]  # of which OrtValues are views
    held = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays]
    binding = ready.io_binding()
    for value, tensor in zip(ready.get_inputs(), held, strict=True):
        binding.bind_ortvalue_input(value.name, tensor)
    out, state = (value.name for value in ready.get_outputs())
    kept = held[STATES[plugin.name]]
    binding.bind_output(out, "cpu")
    binding.bind_ortvalue_output(state, kept)
    ready.run_with_iobinding(binding)
    made = binding.get_outputs()[0].numpy().copy()
    return [torch.from_numpy(made), torch.from_numpy(arrays[STATES[plugin.name]])]


def check(got: list[Tensor], plugin: Plugin, args: tuple) -> None:
    close = plugin.close[torch.float32]
    for one, want in zip(got, plugin.eager(*args), strict=True):
        torch.testing.assert_close(one, want, atol=close.atol, rtol=close.rtol)


@EACH
def test_bodies_agree_with_eager_on_states_in_place(plugin: Plugin, i: int):
    args = plugin.cases()[i]
    check(run(model(plugin, args), plugin, args), plugin, args)


@EACH
def test_forms_for_cpus_agree_with_eager_on_states_in_place(plugin: Plugin, i: int):
    args = plugin.cases()[i]
    graph = model(plugin, args)
    assert recurrent_kernels(graph) == 1
    check(run(graph, plugin, args), plugin, args)


LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 128, 129)


@pytest.mark.parametrize("kind", ["delta", "channels", "gated"])
def test_chunks_of_every_length_are_the_recurrence(kind: str):
    assert {CHUNK, CHANNEL_CHUNK} <= set(LENGTHS)
    options: dict[str, Any] = {"delta": kind != "gated", "channels": kind == "channels"}
    for tokens in LENGTHS:
        torch.manual_seed(tokens)
        args = case([tokens, 1 + tokens // 2], (2, 1, 8, 4), normalize=True, **options)
        check(run(model(linear_attention, args), linear_attention, args), linear_attention, args)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_equal_keys_leave_the_chunked_form_exact(strength: float):
    """All keys of a chunk the same: powers of what they tell each other would be astronomic."""
    torch.manual_seed(0)
    args = list(case([64], (2, 1, 8, 4)))
    args[1] = args[1][:, :1].expand_as(args[1]).contiguous()
    args[4], args[6] = torch.zeros_like(args[4]), torch.full_like(args[6], strength)
    check(run(model(linear_attention, tuple(args)), linear_attention, tuple(args)),
          linear_attention, tuple(args))  # fmt: skip


@pytest.mark.parametrize("decay", [-1e-7, -30.0, -1e4])
@pytest.mark.parametrize("channels", [False, True])
def test_decays_of_any_size(decay: float, channels: bool):
    """Beyond what fp32 holds as a factor, and so little that a chunk is all but a sum."""
    torch.manual_seed(0)
    args = list(case([40], (2, 1, 8, 4), normalize=True, channels=channels))
    args[4] = torch.full_like(args[4], decay)
    graphs = [model(linear_attention, tuple(args)) for _ in range(2)]
    recurrent_kernels(graphs[1])
    for graph in graphs:
        check(run(graph, linear_attention, tuple(args)), linear_attention, tuple(args))


@EACH
def test_a_call_in_two_is_the_call(plugin: Plugin, i: int):
    """From any starting state: the state after the first tokens is where the others begin."""
    args = list(plugin.cases()[i])
    at = STATES[plugin.name]
    counts = next(n for n, a in enumerate(args) if isinstance(a, Tensor) and a.dtype == torch.int64)
    wide = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    whole, end = plugin.eager(*wide)
    tokens, cut = whole.shape[1], (whole.shape[1] + 1) // 2
    state, outs = wide[at], []
    for begin, stop in ((0, cut), (cut, tokens)) if cut < tokens else ((0, tokens),):
        part = [
            a[:, begin:stop] if isinstance(a, Tensor) and a.dim() == 3 and a.shape[1] == tokens
            and n != at and (plugin is linear_attention or n == 0) else a
            for n, a in enumerate(wide)
        ]  # fmt: skip
        part[at], part[counts] = state, (args[counts] - begin).clamp(0, stop - begin)
        out, state = plugin.eager(*part)
        outs.append(out)
    for row, count in enumerate(args[counts].tolist()):
        torch.testing.assert_close(torch.cat(outs, 1)[row, :count], whole[row, :count])
    torch.testing.assert_close(state, end)


def test_padding_leaves_no_trace():
    """A padded row gives what it gives alone, bit for bit, whatever the padding holds."""
    torch.manual_seed(0)
    args = list(case([9, 4], (4, 2, 8, 16), normalize=True))
    out, state = linear_attention.eager(*args)
    spoiled = [a.clone() if isinstance(a, Tensor) else a for a in args]
    for tensor in (spoiled[0], spoiled[1], spoiled[2], spoiled[6]):
        tensor[1, 4:] = 1e3
    again, after = linear_attention.eager(*spoiled)
    assert torch.equal(after, state)
    assert torch.equal(again[1, :4], out[1, :4])
    got = run(model(linear_attention, tuple(spoiled)), linear_attention, tuple(spoiled))
    np.testing.assert_allclose(got[1], state, atol=1e-5)
