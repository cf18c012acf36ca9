"""Bodies of operators, parsed and built by TensorRT for RTX with no GPU; nothing is computed."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest
import torch
from test_plugins import cast, label, one_node
from torch import Tensor

from lmcast.plugins.mla_attention import mla_attention
from lmcast.plugins.plugin import Plugin
from lmcast.plugins.sparse_attention import sparse_attention
from lmcast.plugins.sparse_index import sparse_index

pytestmark = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="needs tensorrt_rtx: pip install tensorrt-rtx-cu13"
)
SCRIPT = Path(__file__).parent / "rtx_builds.py"
# The axes that a model leaves open, by input, and the least and greatest size of each.
OPEN = {
    **dict.fromkeys(("query", "turned", "latent", "weights", "key"), "BT"),
    **dict.fromkeys(("past", "past_key"), "BC"),
    **dict.fromkeys(("cache_lengths", "token_counts"), "B"),
    "chosen": "BTK",
}
SIZES = {"B": (1, 4), "T": (1, 64), "C": (32, 8192), "K": (1, 32)}
CASES = [
    (mla_attention, 1),
    (sparse_attention, 1),
    (sparse_index, 1),
    (sparse_index, 6),  # more than one TopK
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("plugin", "i"), CASES, ids=label)
def test_body_builds(plugin: Plugin, i: int, dtype: torch.dtype, tmp_path: Path):
    args = cast(plugin.cases()[i], dtype)
    model = one_node(plugin, args)
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    shapes = {}
    for value, tensor in zip(model.graph.input, tensors, strict=True):
        letters = OPEN.get(value.name, "")
        sizes = [(*SIZES[axis], axis) for axis in letters]
        sizes += [(size, size, "") for size in tensor.shape[len(letters) :]]
        for dim, (low, _, axis) in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
            dim.Clear()
            if axis:
                dim.dim_param = axis
            else:
                dim.dim_value = low
        low, high = ([size[end] for size in sizes] for end in (0, 1))
        shapes[value.name] = [low, high, high]
    onnx.save(model, tmp_path / "one.onnx")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "one.onnx"), json.dumps(shapes)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert built.returncode == 0, built.stderr
    assert int(built.stdout.splitlines()[-1]) > 0, built.stderr
