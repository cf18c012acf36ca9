"""Weights that no checkpoint has, in files of the engine, and what linked ones read of them."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from lmcast.exporter.engine.manifest import EngineError, read_manifest, write_manifest
from lmcast.exporter.engine.names import KERNELS, ROOT, is_read_whole
from lmcast.exporter.engine.own_weights import own_weights
from lmcast.exporter.weights import made
from lmcast.exporter.weights.place import WeightsError

FILES = ["weights/graph-00001.safetensors", "weights/kernels-00001.safetensors"]


def graph_of(*tensors: ir.TensorProtocol) -> ir.Model:
    values = [ir.Value(name=str(tensor.name), const_value=tensor) for tensor in tensors]
    return ir.Model(ir.Graph([], [], nodes=[], initializers=values), ir_version=11)


def test_what_is_made_lies_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Machine code, whatever its size, what is computed when it is written, and what is large."""
    monkeypatch.setattr(made, "LEAST", 16)
    table = np.arange(12).reshape(3, 4).astype(ml_dtypes.bfloat16)
    arrays = {
        KERNELS: np.arange(5, dtype=np.uint8), "odd": np.arange(17, dtype=np.uint8),
        "table": table, "joined": table[:1],
    }  # fmt: skip
    tensors = [ir.tensor(array, name=name) for name, array in arrays.items()]
    small, *_, joined = ir.tensor([1, 2], ir.DataType.INT32, name="small"), *tensors
    tensors[-1] = ir.LazyTensor(lambda: joined, joined.dtype, joined.shape, name="joined")
    graph = graph_of(small, *tensors)
    hashes = made.place_made(graph, tmp_path)
    assert sorted(hashes) == FILES and [is_read_whole(file) for file in FILES] == [False, True]
    left = graph.graph.initializers
    assert not isinstance(left.pop("small").const_value, ir.ExternalTensor)
    write_manifest(tmp_path, {}, hashes)
    found = own_weights(read_manifest(tmp_path))
    assert found.keys() == arrays.keys() == left.keys()
    for name, value in left.items():
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor) and tensor.offset is not None
        assert tensor.offset % found[name].itemsize == 0
        for array in (found[name], tensor.numpy()):
            np.testing.assert_array_equal(array, arrays[name])
    assert made.place_made(graph, tmp_path) == {}, "a second time there is nothing left to do"


DAMAGES = {
    "cut off": lambda data: data[:-1],
    "no header": lambda data: b"\xff" * len(data),
    "another dtype": lambda data: data.replace(b"U8", b"XX"),
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(damage: str, tmp_path: Path):
    """Where no hash tells, as of a large one that is damaged on its disk."""
    tensor = ir.tensor(np.arange(5, dtype=np.uint8), name=KERNELS)
    made.place_made(graph_of(tensor), tmp_path)
    file = tmp_path / FILES[1]
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    write_manifest(tmp_path, {})
    with pytest.raises(EngineError, match=f"{FILES[1]}: is not as lmcast has written it"):
        own_weights(read_manifest(tmp_path))


def test_a_linked_file_of_the_same_name_is_refused(tmp_path: Path):
    """A graph that is linked to it names both alike."""
    linked = ir.ExternalTensor(
        FILES[1], 0, 4, ir.DataType.UINT8, shape=ir.Shape([4]), name="w", base_dir=ROOT
    )
    code = ir.tensor(np.arange(5, dtype=np.uint8), name=KERNELS)
    with pytest.raises(WeightsError, match=f"/{FILES[1]}: .* use --weights copy"):
        made.place_made(graph_of(linked, code), tmp_path)
