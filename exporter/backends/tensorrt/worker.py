"""A process that builds one plan: some graphs make the library abort, which must end it alone.

Argument: a Job as JSON. Each line on standard output is an event as JSON: {"stage": name, "total":
steps}, {"done": steps}, {"message": text} and at the end {"built": facts} or {"error": text}.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import numpy as np
import onnx_ir as ir

from lmcast.exporter import passes, targets
from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.backends.tensorrt import caches, formats, libraries, low_precision
from lmcast.exporter.backends.tensorrt.embed import embed, load_plugins
from lmcast.exporter.backends.tensorrt.parser_library import provide_parser_library
from lmcast.exporter.backends.tensorrt.request import Bounds, Request
from lmcast.exporter.graph.operator_forms import forms
from lmcast.exporter.passes.inline_parts import inline_parts
from lmcast.graphs import archs
from lmcast.plugins.errors import InputError

Tell = Callable[..., None]
NOT_AN_ERROR = "cudaError 35"  # no driver: nothing here needs one
# What the library says, and what its user can do.
ADVICE = (
    (r"K exceeds the maximum value allowed \((\d+)\)",
     "TopK takes at most {0} of a row there: this model runs with --target onnx or cpu alone"),
    (r"for Turing \(SM75\): FP32 GEMM", "SM75 multiplies no fp32: export with --dtype float16"),
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A plan to build."""

    graph: str  # the file of the portable graph
    folder: str  # that the files of its weights are named below
    architecture: str
    output: str
    request: Request
    # Of a tower: least, usual and most of its axes. None: a text's, which the request has.
    axes: Mapping[str, Bounds] | None = None

    @property
    def profiles(self) -> Sequence[Mapping[str, Bounds]]:
        return self.request.profiles if self.axes is None else [self.axes]

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def read_job(text: str) -> Job:
    fields = json.loads(text)
    request = fields["request"]
    return Job(**fields | {"request": Request(**request | {"sms": tuple(request["sms"])})})


@dataclass
class Build:
    """One build in progress: the library, and its messages."""

    trt: ModuleType
    request: Request
    tell: Tell
    messages: list[str] = field(default_factory=list)

    def logger(self) -> Any:
        """Return a logger that collects errors; the library's own would print them."""

        def log(_: Any, severity: Any, message: str) -> None:
            if severity <= self.trt.ILogger.Severity.ERROR and NOT_AN_ERROR not in message:
                self.messages.append(message)
                self.tell(message=message)

        return type("Logger", (self.trt.ILogger,), {"log": log})()

    def monitor(self) -> Any:
        """Return a progress monitor for the builder; only its outermost phases are shown."""
        outer = set[str]()

        def phase_start(_: Any, name: str, parent: str | None, steps: int) -> None:
            if parent is None:
                outer.add(name)
                self.tell(stage=name, total=steps)

        def step_complete(_: Any, name: str, step: int) -> bool:
            if name in outer:
                self.tell(done=1)
            return True

        def phase_finish(_: Any, name: str) -> None:
            outer.discard(name)

        methods = {f.__name__: f for f in (phase_start, step_complete, phase_finish)}
        return type("Monitor", (self.trt.IProgressMonitor,), methods)()


def prepare(file: str, request: Request) -> ir.Model:
    """Return a portable graph rewritten for TensorRT, of fixed capacity."""
    graph = ir.load(file)
    inline_parts(graph)
    formats.require(graph, request)
    caches.require(graph, request)
    passes.run(graph, targets.get(request.target).passes())
    low_precision.rewrite(graph, request)
    for value in [*graph.graph.inputs, *(v for node in graph.graph for v in node.outputs)]:
        if value.shape is not None:
            sizes = [request.max_context if str(size) == "C" else size for size in value.shape]
            value.shape = ir.Shape(sizes)
    return graph


def parse(build: Build, parser: Any, graph: ir.Model, job: Job) -> list[Any]:
    """Parse a graph, with weights by pointer; return the objects that must outlive the build."""
    data = ir.to_proto(graph).SerializeToString()
    mapped: dict[str, np.ndarray] = {}
    made: list[np.ndarray] = []
    failed = not parser.load_model_proto(data, job.graph)
    for name, value in graph.graph.initializers.items():
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor)
        path = os.path.join(job.folder, tensor.location)
        if path not in mapped:
            mapped[path] = np.memmap(path, mode="r", dtype=np.uint8)
        begin = tensor.offset or 0
        stored = mapped[path][begin : begin + (tensor.length or tensor.nbytes)]
        if low_precision.MADE in value.meta:
            made.append(stored := value.meta[low_precision.MADE].compute(stored))
        failed = failed or not parser.load_initializer(name, stored.ctypes.data, stored.nbytes)
    if failed or not parser.parse_model_proto():
        raise BackendError(parser_errors(parser) or "; ".join(build.messages))
    return [data, *mapped.values(), *made]


def parser_errors(parser: Any) -> str:
    """Return what a parser found, by the names of our layers."""
    found = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        lines = [line for line in error.desc().splitlines() if NOT_AN_ERROR not in line]
        found.append(f"{error.node_name()} ({error.node_operator()}): {' '.join(lines)}")
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more


def configure(build: Build, builder: Any, graph: ir.Model, job: Job) -> Any:
    """Return the builder's settings: profiles, SMs, and full precision for fp32."""
    trt, request = build.trt, build.request
    config = builder.create_builder_config()
    config.progress_monitor = build.monitor()
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32: parity is held to it
    for ranges in job.profiles:
        profile = builder.create_optimization_profile()
        for value in graph.graph.inputs:
            assert value.shape is not None
            axes = [size if isinstance(size, int) else ranges[str(size)] for size in value.shape]
            if all(isinstance(size, int) for size in axes):
                continue
            bounds = [[a if isinstance(a, int) else a[end] for a in axes] for end in range(3)]
            profile.set_shape(value.name, *bounds)
        config.add_optimization_profile(profile)
    if hasattr(config, "num_compute_capabilities"):
        config.num_compute_capabilities = len(request.sms)
        for i, sm in enumerate(request.sms):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), i)
    return config


def write(build: Build, builder: Any, network: Any, config: Any, output: Path) -> None:
    """Build the plan, and stream it into a file without a second copy in memory."""
    with open(output, "wb") as file:
        methods = {"write": lambda _, data: file.write(data)}
        writer = type("Writer", (build.trt.IStreamWriter,), methods)()
        built = builder.build_serialized_network_to_stream(network, config, writer)
    if not built or not output.stat().st_size:
        raise BackendError(f"TensorRT builds no plan: {advised('; '.join(build.messages[-3:]))}")


def advised(message: str) -> str:
    """Return the library's message, after the remedy if one is known."""
    for pattern, advice in ADVICE:
        if found := re.search(pattern, message):
            return f"{advice.format(*found.groups())} ({message})"
    return message


def run(job: Job, tell: Tell) -> dict[str, Any]:
    """Build one plan; return the facts about it. Raises InputError."""
    request = job.request
    library = libraries.require(request.target)
    trt = libraries.load(library)
    provide_parser_library(trt)
    build = Build(trt, request, tell)
    archs.get(job.architecture)  # its operators register themselves
    tell(stage="rewriting the graph", total=None)
    graph = prepare(job.graph, request)
    tell(stage="compiling kernels", total=None)
    logger = build.logger()
    in_place = sorted([*embed(graph, request), *caches.in_place(graph)])
    found = forms(graph, plugins=True)
    if any("plugin" in kinds for kinds in found.values()):
        load_plugins(trt, logger)
    tell(stage="parsing", total=None)
    builder = trt.Builder(logger)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    held = parse(build, parser, graph, job)
    config = configure(build, builder, graph, job)
    write(build, builder, network, config, Path(job.output))
    del held
    return {
        "library": f"{library.module} {trt.__version__}",
        "cuda": libraries.cuda_version(library),
        "operators": found,
        "in_place": in_place,
        "codes": formats.codes(graph),
        "products": formats.products(graph),
    }


def serve(text: str, events: TextIO) -> None:
    """Build the plan of a job given as JSON; write events."""

    def tell(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")

    try:
        tell(built=run(read_job(text), tell))
    except InputError as error:
        tell(error=str(error))


if __name__ == "__main__":
    # The library and what it loads print where they like: only events go to the reader.
    stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    serve(sys.argv[1], stream)
