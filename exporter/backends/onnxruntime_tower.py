"""The graph of a tower in ONNX Runtime.

Letters: N pictures of one grid, M merged tokens, F = N * M features of width H.
"""

from collections.abc import Mapping

import numpy as np

from lmcast.exporter.backends.onnxruntime import (
    NAMED,
    REFUSALS,
    BackendError,
    opened,
    require_kernels,
    session_options,
    value_of,
)
from lmcast.exporter.backends.ort import ort
from lmcast.exporter.backends.runner import Loading
from lmcast.exporter.dtypes import DTYPES
from lmcast.exporter.engine.manifest import Manifest
from lmcast.exporter.engine.names import ENGINE_JSON


def open_tower(manifest: Manifest, loading: Loading, file: str) -> "Tower":
    """Return a tower of an engine, VISION or AUDIO, loaded for this CPU; raises InputError where it
    cannot run."""
    require_kernels(manifest.about.dtype)
    options = session_options(manifest, manifest.about.tower(file))
    if loading.threads is not None:
        options.intra_op_num_threads = loading.threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", "01"[not loading.prepack])
    # Values are as large as pictures. A place that later ones use again lasts as long as the call:
    # 5,476 patches of Pixtral's widths peak at 536 MB with such places, and at 362 without. What
    # they take is given back behind a call.
    options.enable_mem_reuse = False
    session = opened(manifest, None, options, ["CPUExecutionProvider"], file)
    return Tower(manifest, session, file, shrinks=True)


class Tower:
    """A loaded graph; raises BackendError for another one than engine.json describes.

    shrinks: give memory back after each call, where it is the CPU's.
    """

    def __init__(
        self, manifest: Manifest, session: ort.InferenceSession, file: str, shrinks: bool = False
    ):
        tower = manifest.about.tower(file)
        self._session, self._path = session, manifest.directory / file
        given, made = session.get_inputs(), session.get_outputs()
        found = {value.name: [str(n) for n in value.shape] for value in (*given, *made)}
        wanted = {name: list(axes) for name, axes in (*tower.inputs, *tower.outputs)}
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                raise BackendError(
                    f"{self._path}: is not the graph of its {ENGINE_JSON}: {name} is"
                    f" {found.get(name)} there, and {wanted.get(name)} in {ENGINE_JSON}; export"
                    " again"
                )
        self._kinds = {value.name: DTYPES[NAMED[value.type]].numpy for value in given}
        self._outputs = [name for name, _ in tower.outputs]
        self._options = ort.RunOptions()
        if shrinks:
            self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs, float32 F,H each; inputs: float32 and int64, by name."""
        given = {
            name: value_of(np.ascontiguousarray(array, self._kinds[name]))
            for name, array in inputs.items()
        }
        try:
            made = self._session.run_with_ort_values(self._outputs, given, self._options)
        except REFUSALS as error:
            said = " ".join(str(error).split())
            raise BackendError(
                f"{self._path}: ONNX Runtime {ort.__version__} does not run it: {said}"
            ) from None
        return [value.numpy().astype(np.float32) for value in made]
