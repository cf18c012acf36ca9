"""A graph of an engine, for those that look at it or run another over the same weights."""

import onnx_ir as ir

from lmcast.exporter.engine.manifest import Manifest
from lmcast.exporter.engine.names import MODEL, ROOT


def read_graph(manifest: Manifest, file: str = MODEL) -> ir.Model:
    """Return a graph of an engine, one of GRAPHS; no weight of it is read.

    What a linked one points at is named by its absolute path, in the engine itself too.
    """
    graph = ir.load(manifest.directory / file)
    if manifest.about.graph.weights == "link":
        own = {file.path: str(manifest.directory.absolute() / file.path) for file in manifest.files}
        for value in graph.graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                location = own.get(str(tensor.location), str(tensor.location)).removeprefix(ROOT)
                value.const_value = ir.ExternalTensor(
                    location, tensor.offset, tensor.length, tensor.dtype,
                    shape=tensor.shape, name=str(value.name), base_dir=ROOT,
                )  # fmt: skip
    return graph
