"""The fake GPU: what ONNX Runtime's own CUDA provider and NVIDIA's driver interface find on it."""

from typing import Any

import pytest

from fake_cuda import Log, Run, log_so_far, missing, note, on_fake_gpu
from fake_cuda.log import short

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
WIDTH = 256


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of softmax(x @ w) in float16."""
    from onnx import TensorProto, helper

    shape = ["B", WIDTH]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT16, shape) for n in "xy")
    w = helper.make_tensor("w", TensorProto.FLOAT16, [WIDTH, WIDTH], bytes(2 * WIDTH**2), raw=True)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Softmax", "a", "y")]
    graph = helper.make_graph(nodes, "g", [x], [y], [w])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return str(path)


# --- In the process on the fake GPU


def session(path: str, **options: str) -> Any:
    import onnxruntime as ort

    asked = ort.SessionOptions()
    asked.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    asked.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    providers = [("CUDAExecutionProvider", options)]
    # Otherwise it tries again with other providers, and says what is wrong with those.
    return ort.InferenceSession(path, asked, providers=providers, enable_fallback=0)


def run_model(path: str) -> dict[str, list[str]]:
    """Run it three times; return what is placed where."""
    import numpy as np

    made = session(path)
    for name in ("first", "second", "third"):
        note(name)
        made.run(None, {"x": np.ones((3, WIDTH), np.float16)})
    parts = made.get_provider_graph_assignment_info()
    return {part.ep_name: [n.op_type for p in parts for n in p.get_nodes()] for part in parts}


def run_graph(path: str) -> list[int]:
    """Run it as a CUDA graph, once to capture and twice again; return nodes of launches so far."""
    import numpy as np
    import onnxruntime as ort

    made = session(path, enable_cuda_graph="1")
    binding = made.io_binding()
    x = ort.OrtValue.ortvalue_from_numpy(np.ones((3, WIDTH), np.float16), "cuda", 0)
    y = ort.OrtValue.ortvalue_from_shape_and_type([3, WIDTH], np.float16, "cuda", 0)
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)
    for name in ("captured", "replayed", "again"):
        note(name)
        made.run_with_iobinding(binding)
    return [event.fields["nodes"] for event in log_so_far().of("graph")]


def refusal(path: str) -> str:
    """Return what is said where the model does not run."""
    import onnxruntime as ort

    try:
        run_model(path)
    except (ort.capi.onnxruntime_pybind11_state.Fail, RuntimeError) as e:
        return str(e)
    return ""


# ---


@pytest.fixture(scope="module")
def ran(model: str) -> Run:
    return on_fake_gpu(run_model, model, sm=90)


def shapes(log: Log) -> list[tuple[str, Any]]:
    return [(event.symbol, event.fields) for event in log.launches]


def test_provider_takes_every_node(ran: Run):
    assert ran.result == {"CUDAExecutionProvider": ["MatMul", "Softmax"]}


def test_launches_have_names_and_sizes(ran: Run):
    product, softmax = ran.log.after("second").launches
    assert product.name == "cublasGemmEx"
    assert [product.fields[n] for n in "mnk"] == [WIDTH, 3, WIDTH]
    assert softmax.name == "cuda::softmax_warp_forward"
    assert softmax.symbol.startswith("void onnxruntime::cuda::softmax_warp_forward<__half, ")
    assert softmax.fields["stream"] == product.fields["stream"] > 0


def test_copies_waits_and_memory(ran: Run):
    step = ran.log.after("second")
    assert [len(step.copies(way)) for way in ("HtoD", "DtoH", "DtoD")] == [1, 1, 0]
    assert step.of("wait") and not step.of("allocate")
    assert 2 * WIDTH**2 < ran.log.peak < 16 << 20


def test_runs_are_alike(ran: Run, model: str):
    again = on_fake_gpu(run_model, model, sm=90)
    assert shapes(ran.log.after("second")) == shapes(ran.log.after("third")) != []
    assert shapes(ran.log) == shapes(again.log)
    assert ran.log.peak == again.log.peak


def test_graphs(model: str):
    run = on_fake_gpu(run_graph, model, sm=90)
    plain, captured = (run.log.after(name) for name in ("captured", "replayed"))
    kept = [event for event in plain.events if not event.ran and event.kind in ("kernel", "blas")]
    assert [event.name for event in kept] == [event.name for event in captured.launches] != []
    assert run.result[-2:] == [len(kept)] * 2 and len(captured.of("graph")) == 1


NAMES = {
    "void flash::forward<Flash<128, (X)1>, true>(flash::Params)": "flash::forward",
    "onnxruntime::cuda::(anonymous namespace)::Fill(int*, int)": "cuda::Fill",
    "fmha::Softmax<A, B>::store(void*) const": "fmha::Softmax::store",
    "_ZN7cutlass13device_kernelINS_4gemm6kernel": "cutlass::device_kernel",
    "attend": "attend",
}


def test_names_are_short():
    assert {symbol: short(symbol) for symbol in NAMES} == NAMES


# What a GPU is -> what is said of it.
REFUSED = {
    "no machine code": ({"sm": 100}, "no kernel image is available for execution on the device"),
    "memory": ({"memory": 64 << 10}, "Failed to allocate memory for requested buffer of size"),
    "no GPU": ({"sm": None}, "no CUDA-capable device is detected"),
    "old driver": ({"driver": 12040}, "CUDA driver version is insufficient for CUDA runtime"),
    "no driver": ({"driver": None}, "libcuda.so.1: cannot open shared object file"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, model: str):
    gpu, said = REFUSED[what]
    run = on_fake_gpu(refusal, model, **gpu)
    assert run.result and said in run.result + run.output, (run.result, run.output)
