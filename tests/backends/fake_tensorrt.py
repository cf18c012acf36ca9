"""A TensorRT that computes with ONNX Runtime, and holds whoever uses it to its rules.

A plan of it is JSON that says which portable graph it stands for. The GPU is fake_driver's. Broken
rules are assertion errors or, as in TensorRT, a false returned.
"""

import json
import math
from collections.abc import Sequence
from enum import Enum, IntEnum
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from fake_driver import STREAM, Driver

from lmcast.exporter.backends import onnxruntime
from lmcast.exporter.backends.onnxruntime_tower import open_tower
from lmcast.exporter.backends.runner import Loading
from lmcast.exporter.engine.manifest import read_manifest, write_manifest
from lmcast.exporter.engine.names import VISION

VERSION = "1.7.1.116"
SCRATCH = 3000  # bytes that a call needs beside its states
GPUS: list[Driver] = []  # the one at hand is the last


class DataType(Enum):
    FLOAT, INT64 = 0, 1


class TensorLocation(Enum):
    DEVICE, HOST = 0, 1


class ExecutionContextAllocationStrategy(Enum):
    STATIC, USER_MANAGED = 0, 2


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY, EAGER = 0, 1


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    def log(self, severity: "ILogger.Severity", msg: str) -> None: ...


class IRuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
    strategy, cache = ExecutionContextAllocationStrategy.STATIC, None

    def create_runtime_cache(self) -> object:
        return object()

    def set_runtime_cache(self, cache: object) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy
    ) -> None:
        self.strategy = strategy


class ICudaEngine:
    """A plan for the graph of the engine in `directory`, with its states in place or not."""

    num_optimization_profiles, device_memory_size_v2 = 2, SCRATCH

    def __init__(self, text: dict[str, Any], logger: ILogger):
        directory = Path(text["directory"])
        self.text, self.logger = text, logger
        manifest = read_manifest(directory)
        self.graph = manifest.about.graph
        self.session = onnxruntime.Runner(manifest, self.graph, 1)._session
        self.contexts: list[IExecutionContext] = []
        self.capturable = text.get("capturable", True)
        self.kinds = {v.name: v.type for v in (*self.session.get_inputs(), *self.outputs())}
        ENGINES.append(self)

    def outputs(self) -> list[Any]:
        return self.session.get_outputs()

    @property
    def num_io_tensors(self) -> int:
        return len(self.kinds)

    def get_tensor_name(self, index: int) -> str:
        return list(self.kinds)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.INT64 if "int64" in self.kinds[name] else DataType.FLOAT

    def get_tensor_location(self, name: str) -> TensorLocation:
        assert name in self.kinds
        return TensorLocation.DEVICE

    def get_aliased_input_tensor(self, name: str) -> str | None:
        own = name.removesuffix(".present")
        return f"{own}.past" if own in self.text["aliased"] else None

    def sizes(self, profile: int) -> dict[str, tuple[int, int]]:
        """The least and the most of each axis."""
        asked = self.text["request"]
        held, batch = asked["max_context"], (1, asked["max_batch"])
        tokens = (1, asked["max_tokens"] if profile else 1)
        rows = (1, asked["opt_tokens"] if profile else 1)
        features = (1, asked["max_batch"] * asked["max_tokens"] if profile else 1)
        return {"B": batch, "C": (held, held), "T": tokens, "R": rows, "F": features}

    def axes(self, name: str) -> list[Any]:
        states = {s.name: s.shape for s in self.graph.states}
        return states.get(name.rpartition(".")[0]) or dict(self.graph.inputs)[name]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        sizes = self.sizes(profile_index)
        bounds = [sizes.get(axis) or (int(axis), int(axis)) for axis in self.axes(name)]
        least, most = (tuple(b[end] for b in bounds) for end in (0, 1))
        return [least, least, most]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(
        self, how: IRuntimeConfig | ExecutionContextAllocationStrategy
    ) -> "IExecutionContext":
        managed = ExecutionContextAllocationStrategy.USER_MANAGED
        if isinstance(how, IRuntimeConfig):
            assert how.strategy == managed
            self.contexts.append(IExecutionContextRtx(self, how))
        else:
            assert how == managed
            self.contexts.append(IExecutionContext(self, None))
        return self.contexts[-1]


class TowerPlan(ICudaEngine):
    """A plan for the tower of that engine; ranges: least, usual and most of its axes."""

    num_optimization_profiles = 1

    def __init__(self, text: dict[str, Any], logger: ILogger):
        manifest = read_manifest(Path(text["directory"]))
        self.text, self.logger, self.vision = text, logger, manifest.about.vision
        assert self.vision is not None
        self.session = open_tower(manifest, Loading(threads=1), VISION)._session
        self.contexts: list[IExecutionContext] = []
        self.kinds = {v.name: v.type for v in (*self.session.get_inputs(), *self.outputs())}
        ENGINES.append(self)

    def sizes(self, profile: int) -> dict[str, tuple[int, int]]:
        return {axis: (least, most) for axis, (least, _, most) in self.text["ranges"].items()}

    def axes(self, name: str) -> list[Any]:
        return list(dict(self.vision.inputs)[name])

    def create_execution_context(self, how: Any) -> "IExecutionContext":
        assert isinstance(how, IRuntimeConfig)
        self.contexts.append(TowerContext(self, how))
        return self.contexts[-1]


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig | None):
        self.engine, self.config = engine, config
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.changes = self.ran = 0  # how often it was changed; what that was when it last ran
        self.replays = 0

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0 and size >= SCRATCH
        self.memory = GPUS[-1].at(memory, size)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle == STREAM
        self.profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        self.changes += 1
        least, _, most = self.engine.get_tensor_profile_shape(name, self.profile)
        bounds = zip(least, shape, most, strict=True)
        if not all(low <= size <= high for low, size, high in bounds):
            self.engine.logger.log(ILogger.Severity.ERROR, f"{name} {shape} is not in the profile")
            return False
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in self.engine.kinds
        self.changes += 1
        self.addresses[name] = memory
        return memory % 256 == 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name != "logits":
            return self.shapes[name.replace(".present", ".past")]
        (out,) = (v for v in self.engine.outputs() if v.name == name)
        return (*self.shapes["logit_rows"], out.shape[-1])

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == STREAM and self.memory is not None
        self.check_overlaps()
        changes = self.changes
        if Driver.capturing is None:
            self.ran = changes
            self.compute()
            return True
        if not self.engine.capturable:
            return False
        if self.config is not None:
            kind = self.config.dynamic_shapes_kernel_specialization_strategy
            assert kind == DynamicShapesKernelSpecializationStrategy.EAGER, "may be replaced"
        assert self.ran == changes, "the first run with new shapes cannot be captured"

        def again() -> None:
            assert self.changes == changes, "changed after it was captured"
            self.replays += 1
            self.compute()

        Driver.capturing.append(again)
        return True

    def spans(self, names: list[str]) -> dict[str, range]:
        sizes = {n: math.prod(self.get_tensor_shape(n)) * (8 if "int64" in k else 4)
                 for n, k in self.engine.kinds.items()}  # fmt: skip
        return {n: range(self.addresses[n], self.addresses[n] + sizes[n]) for n in names}

    def check_overlaps(self) -> None:
        inputs = self.spans([v.name for v in self.engine.session.get_inputs()])
        outputs = self.spans([v.name for v in self.engine.outputs()])
        for name, span in outputs.items():
            own = name.removesuffix(".present")
            aliased = own in self.engine.text["aliased"]
            assert not aliased or span == inputs[f"{own}.past"], "must be in place"
            in_place = aliased or own in self.engine.text["in_place"]
            for other, read in (*inputs.items(), *outputs.items()):
                allowed = other == name or (in_place and other == f"{own}.past")
                apart = span.stop <= read.start or read.stop <= span.start
                assert allowed or apart, f"{name} overlaps {other}"

    def compute(self) -> None:
        kinds = self.engine.kinds
        feed = {v.name: self.view(v.name, kinds).copy() for v in self.engine.session.get_inputs()}
        until = feed["cache_lengths"] + self.shapes["input_ids"][1]
        assert until.max() <= self.engine.text["request"]["max_context"], "written behind the end"
        names = [v.name for v in self.engine.outputs()]
        for name, value in zip(names, self.engine.session.run(names, feed), strict=True):
            self.view(name, kinds)[...] = value

    def view(self, name: str, kinds: dict[str, str]) -> np.ndarray:
        dtype = np.dtype(np.int64 if "int64" in kinds[name] else np.float32)
        shape = self.get_tensor_shape(name)
        raw = GPUS[-1].at(self.addresses[name], math.prod(shape) * dtype.itemsize)
        return raw.view(dtype).reshape(shape)


class IExecutionContextRtx(IExecutionContext):
    """What only TensorRT for RTX has."""

    def is_stream_capturable(self, stream: int) -> bool:
        assert stream == STREAM
        return self.engine.capturable


class TowerContext(IExecutionContextRtx):
    """A context of a tower, whose outputs have a row for each token."""

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        (width,) = (v.shape[-1] for v in self.engine.outputs() if v.name == name)
        count, tokens = self.shapes["patches"][:2]
        return count * tokens, width

    def check_overlaps(self) -> None:
        spans = list(self.spans(list(self.engine.kinds)).values())
        assert all(a.stop <= b.start or b.stop <= a.start for a in spans for b in spans if a != b)

    def compute(self) -> None:
        kinds, session = self.engine.kinds, self.engine.session
        feed = {v.name: self.view(v.name, kinds).copy() for v in session.get_inputs()}
        names = [v.name for v in self.engine.outputs()]
        for name, value in zip(names, session.run(names, feed), strict=True):
            self.view(name, kinds)[...] = value


class Runtime:
    def __init__(self, logger: ILogger):
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        text = bytes(serialized_engine)
        if not text.startswith(b"{"):
            self.logger.log(ILogger.Severity.ERROR, "magic tag\nis wrong")
            return None
        known = json.loads(text)
        return (TowerPlan if "ranges" in known else ICudaEngine)(known, self.logger)


class IPluginRegistry:
    loaded: ClassVar[list[str]] = []

    def load_library(self, plugin_path: str) -> object:
        self.loaded.append(plugin_path)
        return object()


ENGINES: list[ICudaEngine] = []  # all that were loaded
CLASSES = (
    DataType,
    TensorLocation,
    ExecutionContextAllocationStrategy,
    DynamicShapesKernelSpecializationStrategy,
    ILogger,
    IRuntimeConfig,
    ICudaEngine,
    IExecutionContext,
    Runtime,
    IPluginRegistry,
)


def module(version: str = VERSION, name: str = "tensorrt_rtx", lacks: Sequence[str] = ()) -> Any:
    """Return a module that imports by this name."""
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    made.__dict__.update({c.__name__: c for c in CLASSES if c.__name__ not in lacks})
    made.__dict__["__version__"] = version
    made.__dict__["get_plugin_registry"] = IPluginRegistry
    return made


def add_plan(
    source: Path, to: Path, aliased: list[str], *, entry: Any = None, **sizes: int
) -> Path:
    """Copy an engine with a plan added; sizes: of its request; entry: changes of engine.json's."""
    to.mkdir(parents=True)
    fields = dict(read_manifest(source).fields)
    for file in read_manifest(source).files:
        (to / file.path).parent.mkdir(exist_ok=True)
        (to / file.path).write_bytes((source / file.path).read_bytes())
    request = {"target": "tensorrt-rtx", "sms": [89, 120], "max_batch": 3, "max_context": 64,
               "max_tokens": 32, "opt_batch": 1, "opt_tokens": 32, **sizes}  # fmt: skip
    made = {"file": "plans/p.plan", "request": request, "library": f"tensorrt_rtx {VERSION}",
            "operators": {}, "in_place": [], **(entry or {})}  # fmt: skip
    text = {"directory": str(source), "request": request, "aliased": aliased}
    (to / "plans").mkdir()
    (to / "plans/p.plan").write_text(json.dumps(text | {"in_place": made["in_place"]}))
    if (tower := made.get("vision")) is not None:
        (to / tower["file"]).write_text(json.dumps(text | {"ranges": tower["ranges"]}))
    write_manifest(to, fields | {"target": request["target"], "plans": [made]})
    return to
