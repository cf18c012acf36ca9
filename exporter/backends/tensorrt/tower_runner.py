"""Running the plan of a tower: pictures of one grid to features, on the GPU.

Letters: N pictures of one grid, M merged tokens of each, K patches of a token, F features.
"""

from collections.abc import Mapping

import numpy as np

from lmcast.exporter.backends import onnxruntime_tower
from lmcast.exporter.backends.cuda import Array, OutOfMemory
from lmcast.exporter.backends.gpu_call import ALIGNED
from lmcast.exporter.backends.runner import Loading, RunTower, SessionError
from lmcast.exporter.backends.tensorrt.plans import Loaded, load_tower
from lmcast.exporter.backends.tensorrt.runner import NAMED, contexts
from lmcast.exporter.dtypes import COMPUTED
from lmcast.exporter.engine.description import Vision
from lmcast.exporter.engine.manifest import Manifest
from lmcast.exporter.engine.names import AUDIO

Given = Mapping[str, np.ndarray]
PROFILE = 0  # the only one
KINDS = dict.fromkeys(("patches", "pixels", "weights"), "float32")  # the others are int64


def open_tower(manifest: Manifest, loading: Loading, file: str) -> RunTower:
    """Return the plan of an engine's tower that fits this machine, loaded; raises InputError.

    Of sounds there is none: their graph is run on the CPU.
    """
    if file == AUDIO:
        return onnxruntime_tower.open_tower(manifest, loading, file)
    vision, loaded = manifest.about.vision, load_tower(manifest)
    assert vision is not None
    try:
        return Tower(loaded, vision)
    except OutOfMemory:
        raise loaded.failed("finds too little free memory on the GPU to run in") from None


class Tower:
    """One loaded plan, whose only context all calls share."""

    def __init__(self, loaded: Loaded, vision: Vision):
        self._loaded, self.gpu = loaded, loaded.device
        self._axes, self._outputs = dict(vision.inputs), [name for name, _ in vision.outputs]
        self._first = vision.inputs[0][0]  # the pictures: of all inputs it alone has N
        engine = loaded.engine
        self._require_contract()
        self._most = engine.get_tensor_profile_shape(self._first, PROFILE)[2]
        with self.gpu.active():
            self._scratch = self.gpu.empty((max(engine.device_memory_size_v2, ALIGNED),), "uint8")
            _, lazy = contexts(loaded.trt, engine)
            self._context = engine.create_execution_context(lazy)
            if self._context is None:
                raise loaded.failed("makes no context to run it in")
            self._context.set_device_memory(self._scratch.address, self._scratch.nbytes)
            if not self._context.set_optimization_profile_async(PROFILE, self.gpu.stream):
                raise loaded.failed(f"does not take its profile {PROFILE}")

    def __call__(self, inputs: Given) -> list[np.ndarray]:
        """Return the outputs of the tower, float32 F,H each; several calls for many pictures.

        inputs: float32 and int64, by name, of pictures of one grid. Raises SessionError for a
        picture larger than the plan takes.
        """
        pictures = inputs[self._first]
        for axis, size, most in zip(
            self._axes[self._first][1:], pictures.shape[1:], self._most[1:], strict=True
        ):
            if size > most:
                what = {"M": "tokens", "K": "patches of a token"}.get(axis, "numbers")
                raise SessionError(
                    f"a picture becomes {size} {what}, and {self._loaded.file} takes {most}: make"
                    f" it smaller (--max-pixels), or `{self._loaded.rebuild()}` with a larger"
                    " --max-context or --max-pixels makes one that takes more"
                )
        step = self._most[0]
        calls = [self._call(inputs, slice(i, i + step)) for i in range(0, len(pictures), step)]
        return [np.concatenate(parts) for parts in zip(*calls, strict=True)]

    def _call(self, inputs: Given, pictures: slice) -> list[np.ndarray]:
        given = {name: np.ascontiguousarray(inputs[name]) for name in self._given}
        given[self._first] = given[self._first][pictures]
        try:
            with self.gpu.active():
                held = {name: self._put(name, array) for name, array in given.items()}
                return [array.astype(np.float32) for array in self._run(held)]
        except OutOfMemory:
            raise OutOfMemory(
                f"{len(given[self._first])} pictures do not fit into the free memory of this GPU"
                f" ({self.gpu.name}): give smaller ones (--max-pixels)"
            ) from None

    def _put(self, name: str, array: np.ndarray) -> Array:
        made = self.gpu.empty(array.shape, KINDS.get(name, "int64"))
        self.gpu.put(made, array)
        return made

    def _run(self, held: Mapping[str, Array]) -> list[np.ndarray]:
        """Run once, and return the outputs as they are on the host."""
        context, done, failed = self._context, [], self._loaded.failed
        for name, array in held.items():
            done.append(context.set_input_shape(name, array.shape))
            done.append(context.set_tensor_address(name, array.address))
        if not all(done):
            shapes = {name: array.shape for name, array in held.items()}
            raise failed(f"does not take a call of {shapes}")
        made = []
        for name in self._outputs:
            shape = tuple(context.get_tensor_shape(name))
            kind = NAMED[self._loaded.engine.get_tensor_dtype(name).name]
            made.append(self.gpu.empty(shape, kind))
            if not context.set_tensor_address(name, made[-1].address):
                raise failed(f"does not write {name} of {list(shape)}")
        if not context.execute_async_v3(self.gpu.stream):
            raise failed("does not run it")
        found = [self.gpu.host(array.shape, array.dtype) for array in made]
        for to, array in zip(found, made, strict=True):
            self.gpu.get(to, array)
        self.gpu.wait()
        return found

    def _require_contract(self) -> None:
        """Refuse a plan of another graph than engine.json describes."""
        engine, loaded = self._loaded.engine, self._loaded
        names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        # An input that the graph does not use may be gone.
        self._given = [name for name in self._axes if name in names]
        if wrong := sorted(names ^ {*self._given, *self._outputs}):
            raise loaded.failed(f"is not of this engine: {wrong[0]} is in one of the two alone")
        for name in sorted(names):
            found = NAMED.get(engine.get_tensor_dtype(name).name)
            own = COMPUTED if name in self._outputs else [KINDS.get(name, "int64")]
            if found not in own:
                raise loaded.failed(f"is not of this engine: its {name} is {found}")
            if engine.get_tensor_location(name) != loaded.trt.TensorLocation.DEVICE:
                raise loaded.failed(f"wants {name} in host memory")
        if engine.num_optimization_profiles != 1:
            raise loaded.failed(f"has {engine.num_optimization_profiles} profiles, not 1")
