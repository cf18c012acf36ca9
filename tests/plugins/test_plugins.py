"""Every operator through every backend but its kernels (test_runtimes.py), against eager."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from operators import REGISTRY, eager, label, one_node
from torch import Tensor

from lmcast.exporter.backends.onnxruntime import value_of
from lmcast.plugins.plugin import DOMAIN, Close, Plugin

EACH = [(plugin, i) for plugin in REGISTRY.values() for i in range(len(plugin.cases()))]
RUNS = [(p, backend, i) for p, i in EACH for backend in ("onnx", "reference")]


def cast(args: tuple, dtype: torch.dtype) -> tuple:
    """Return arguments with all floating-point tensors in a dtype; codes stay what they are."""
    return tuple(
        a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() and not is_code(a) else a
        for a in args
    )


def is_code(value: Any) -> bool:
    """Whether a value is a tensor of FP8, of which no bit may differ."""
    return isinstance(value, Tensor) and value.dtype == torch.float8_e4m3fn


def bounds(plugin: Plugin, args: tuple, output: Tensor) -> Close:
    return Close(0) if is_code(output) else plugin.close[args[0].dtype]


def run(plugin: Plugin, backend: str, args: tuple) -> list[Tensor]:
    """Return what a backend computes.

    "onnx" is the body in ONNX Runtime, "reference" in the evaluator of ONNX itself.
    """
    model = one_node(plugin, args)
    onnx.checker.check_model(model, full_check=True)
    tensors = [array(arg) for arg in args if isinstance(arg, Tensor)]
    names = [value.name for value in model.graph.input]
    if backend == "reference":
        feed = dict(zip(names, tensors, strict=True))
        return [tensor(out) for out in ReferenceEvaluator(model).run(None, feed)]
    return run_in_place(model.SerializeToString(), dict(zip(names, tensors, strict=True)),
                        [array(want) for want in eager(plugin, args)])  # fmt: skip


def array(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.float8_e4m3fn:  # which numpy itself does not have
        return tensor.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    return tensor.numpy()


def tensor(array: np.ndarray) -> Tensor:
    if array.dtype == ml_dtypes.float8_e4m3fn:
        return torch.from_numpy(array.view(np.uint8)).view(torch.float8_e4m3fn)
    return torch.from_numpy(array)


def run_in_place(model: bytes, feed: dict[str, np.ndarray], like: list[np.ndarray]) -> list[Tensor]:
    """Run a model in ONNX Runtime, into arrays like these: it gives no FP8 to numpy itself."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    binding, outs = session.io_binding(), [np.zeros_like(array) for array in like]
    held = [value_of(array) for array in (*feed.values(), *outs)]
    for name, value in zip(feed, held, strict=False):
        binding.bind_ortvalue_input(name, value)
    for out, value in zip(session.get_outputs(), held[len(feed) :], strict=True):
        binding.bind_ortvalue_output(out.name, value)
    session.run_with_iobinding(binding)
    return [tensor(out) for out in outs]


@pytest.mark.parametrize(("plugin", "backend", "i"), RUNS, ids=label)
def test_backend_agrees_with_eager(plugin: Plugin, backend: str, i: int):
    args = plugin.cases()[i]
    for got, want in zip(run(plugin, backend, args), eager(plugin, args), strict=True):
        close = bounds(plugin, args, want)
        torch.testing.assert_close(got, want, atol=close.atol, rtol=close.rtol)


@pytest.mark.parametrize(("plugin", "i"), EACH, ids=label)
def test_eager_is_a_sound_operator(plugin: Plugin, i: int):
    """Schema and shapes on fake tensors, by torch's own check."""
    args = plugin.cases()[i]
    op = getattr(getattr(torch.ops, DOMAIN), plugin.name).default
    checks = ["test_faketensor"]
    if not any(is_code(arg) for arg in args):  # torch's check compares by arithmetic
        checks.append("test_schema")
    assert set(torch.library.opcheck(op, args, test_utils=checks).values()) == {"SUCCESS"}


@pytest.mark.parametrize(("plugin", "i"), EACH, ids=label)
def test_eager_follows_the_dtype(plugin: Plugin, i: int):
    args = plugin.cases()[i]
    wide = cast(args, torch.float64)
    for rough, exact in zip(eager(plugin, args), eager(plugin, wide), strict=True):
        follows = rough.is_floating_point() and not is_code(rough)
        assert exact.dtype == (torch.float64 if follows else rough.dtype)
        close = bounds(plugin, args, rough)
        # Eager itself stays within the tolerance that it sets for others.
        torch.testing.assert_close(rough.to(exact.dtype), exact, atol=close.atol, rtol=close.rtol)


@pytest.mark.parametrize("plugin", REGISTRY.values(), ids=label)
def test_cases_are_the_same_every_time(plugin: Plugin):
    for one, other in zip(plugin.cases(), plugin.cases(), strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a is None) == (b is None)
            if is_code(a):
                assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))
            elif a is not None:
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("plugin", "i"), EACH, ids=label)
def test_body_is_the_operator(plugin: Plugin, i: int):
    args = dict(zip((a.name for a in plugin.schema.arguments), plugin.cases()[i], strict=True))
    tensors = {name: isinstance(value, Tensor) or None for name, value in args.items()}
    plain = {name: v for name, v in args.items() if not isinstance(v, Tensor | None)}
    body = plugin.function(tensors | plain)
    given = [name for name, v in args.items() if isinstance(v, Tensor | None)]
    while args[given[-1]] is None:  # an input that is left out keeps its place before others
        given.pop()
    assert [value.name for value in body.inputs] == given
    assert list(body.attributes) == list(plain)
    assert len(body.outputs) == len(plugin.schema.returns)
    assert {node.domain for node in body.all_nodes()} == {""}


@pytest.mark.parametrize(("plugin", "i"), EACH, ids=label)
def test_body_reads_each_old_state_once(plugin: Plugin, i: int):
    """A runtime may write a state where it lies: whoever read the old one later would read both."""
    args = dict(zip((a.name for a in plugin.schema.arguments), plugin.cases()[i], strict=True))
    body = plugin.function({n: v if not isinstance(v, Tensor) else True for n, v in args.items()})
    for state in (value for value in body.inputs if str(value.name).startswith("past")):
        readers = [use.node.op_type for use in state.uses() if use.node.op_type != "Shape"]
        assert len(readers) == 1, (state, readers)
