"""Times of ONNX Runtime's own MoE operator in bf16, with weights that are drawn on the machine."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

TOKENS = (1, 16, 512)
# As in tests/benchmarks/kernel_works.py, which needs PyTorch: experts, routes, width, inner width.
MODELS = {"Qwen3-30B-A3B": (128, 8, 2048, 768), "gpt-oss-20b": (32, 4, 2880, 2880)}
WARM, TIMES = 3, 20  # the first runs choose among kernels
CHUNK = 1 << 22  # numbers


def write(folder: Path) -> None:
    """Write the graph of each model: the machine has no package that makes them."""
    folder.mkdir(parents=True)
    for name, (_, routes, _, _) in MODELS.items():
        (folder / f"{name}.onnx").write_bytes(graph(routes, name.startswith("gpt")))


def graph(routes: int, biased: bool) -> bytes:
    from onnx import TensorProto, helper

    names = ["x", "logits", "both", *(["both_bias"] if biased else [""]), "down"]
    names += ["down_bias"] if biased else []
    values = {name: [None] * (3 if name in ("both", "down") else 2) for name in names if name}
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.BFLOAT16, shape) for n, shape in values.items()
    ]
    out = helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [None, None])
    node = helper.make_node(
        "MoE", names, ["y"], domain="com.microsoft", k=routes, activation_type="swiglu",
        swiglu_fusion=1, normalize_routing_weights=1,
    )  # fmt: skip
    made = helper.make_graph([node], "graph", inputs, [out])
    domains = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    data: bytes = helper.make_model(made, opset_imports=domains, ir_version=11).SerializeToString()
    return data


def lines(gpu: Any, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the time of a call with so many tokens, as a session takes it: with the host's part."""
    random = np.random.default_rng(0)
    for name, (experts, _, width, inner) in MODELS.items():
        biased = name.startswith("gpt")
        with gpu.active():
            session = opened((folder / f"{name}.onnx").read_bytes(), gpu)
            shapes = {"both": (experts, 2 * inner, width), "down": (experts, width, inner)}
            if biased:
                shapes |= {"both_bias": (experts, 2 * inner), "down_bias": (experts, width)}
            held = {key: drawn(gpu, shape, random) for key, shape in shapes.items()}
            for tokens in TOKENS:
                given = {"x": (tokens, width), "logits": (tokens, experts)}
                held |= {key: drawn(gpu, shape, random) for key, shape in given.items()}
                seconds = timed(session, held, gpu.empty((tokens, width), "bfloat16"), gpu)
                yield {"operator": "MoE of ONNX Runtime", "model": name, "tokens": tokens,
                       "microseconds": 1e6 * seconds}  # fmt: skip


def opened(data: bytes, gpu: Any) -> Any:
    from lmcast.exporter.backends.cuda_provider.machine import PROVIDER
    from lmcast.exporter.backends.ort import ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    provider = (PROVIDER, {"user_compute_stream": str(gpu.stream)})
    return ort.InferenceSession(data, options, [provider], enable_fallback=0)


def drawn(gpu: Any, shape: tuple[int, ...], random: np.random.Generator) -> Any:
    """Return an array of the GPU with numbers of about 0.1, which repeat."""
    array, size = gpu.empty(shape, "bfloat16"), int(np.prod(shape))
    few = random.standard_normal(min(CHUNK, size)) * 0.1
    gpu.put(array, np.resize(few.astype(ml_dtypes.bfloat16), shape))
    gpu.wait()
    return array


def timed(session: Any, held: dict[str, Any], out: Any, gpu: Any) -> float:
    """Return the median time of a call in seconds."""
    from device.operators import bind

    binding = session.io_binding()
    for key, array in held.items():
        bind(binding.bind_input, key, array)
    bind(binding.bind_output, "y", out)
    taken = []
    for _ in range(WARM + TIMES):
        begin = time.perf_counter()
        session.run_with_iobinding(binding)
        gpu.wait()
        taken.append(time.perf_counter() - begin)
    return float(np.median(taken[WARM:]))
