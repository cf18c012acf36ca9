"""ONNX Runtime: capabilities of its CPU provider, loading a graph, and running it in place."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmcast.exporter.backends.images import FEATURES
from lmcast.exporter.backends.images import inputs as inputs_of
from lmcast.exporter.backends.large_pages import in_large_pages
from lmcast.exporter.backends.ort import ort
from lmcast.exporter.backends.runner import Loading, Shaped
from lmcast.exporter.dtypes import COMPUTED, DTYPES
from lmcast.exporter.engine.description import Description, Graph, TowerGraph
from lmcast.exporter.engine.manifest import EngineError, Manifest
from lmcast.exporter.engine.names import ENGINE_JSON, MODEL, ROOT
from lmcast.exporter.engine.own_weights import own_weights
from lmcast.plugins.errors import InputError

# ONNX Runtime's names -> those of exporter/dtypes.py
NAMED = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float8e4m3fn)": "float8_e4m3fn",
}
LARGE = 32 << 20  # bytes of weights, of which the addresses do not fit into a processor's tables
BLOCK, ALIGNED = 32 << 20, 64  # bytes of memory that states share, and of where one may begin
# What ONNX Runtime raises where it does not take a graph, or fails to run one.
REFUSALS = (
    *(
        getattr(ort.capi.onnxruntime_pybind11_state, name)
        for name in ("Fail", "NotImplemented", "RuntimeException", "InvalidGraph",
                     "InvalidProtobuf", "InvalidArgument", "NoSuchFile", "EPFail")
    ),
    RuntimeError,
)  # fmt: skip


class BackendError(InputError):
    """A graph that this machine's ONNX Runtime cannot load."""


@dataclass(frozen=True)
class Bound:
    """The binding of a call, and what has to outlive it.

    to: what it was made for. inputs: by name, those that change from call to call, with the memory
    that they lie in.
    """

    to: object
    binding: ort.IOBinding
    states: list[ort.OrtValue]
    inputs: dict[str, tuple[np.ndarray, ort.OrtValue]]


class States(list[tuple[str, np.ndarray]]):
    """Arrays that calls update in place, by name, with the binding of the last call."""

    def __init__(self, arrays: Iterable[tuple[str, np.ndarray]]):
        super().__init__(arrays)
        self.bound: Bound | None = None


def open_runner(manifest: Manifest, loading: Loading) -> "Runner":
    """Return the graph of an engine, loaded; raises InputError where it cannot run here."""
    require_kernels(manifest.about.dtype)
    graph = manifest.about.graph
    if loading.model is not None:
        return Runner(manifest, graph, loading.threads, loading.model)
    prepack = (loading.prepack or graph.prepack) and not loading.exact
    runner = Runner(manifest, graph, loading.threads, prepack=prepack)
    require_contract(runner._session, runner._path, manifest.about)
    return runner


class Runner:
    """One loaded graph; states are numpy arrays that a call updates in place.

    model: the bytes of another graph, as of read_graph; None for the file that `graph` names in
        the engine.
    """

    limits = None
    place = "this machine"
    gpu = None

    def __init__(
        self,
        manifest: Manifest,
        graph: Graph,
        threads: int | None,
        model: bytes | None = None,
        prepack: bool = False,
    ):
        options = session_options(manifest, graph)
        if threads is not None:
            options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Prepacking makes a private copy of every weight, in the layout the kernels like best.
        options.add_session_config_entry("session.disable_prepacking", "01"[not prepack])
        self._path = manifest.directory / graph.file
        self._features = DTYPES[manifest.about.dtype].numpy
        size = sum(file.size for file in manifest.files) + sum(f.size for f in manifest.linked)
        with in_large_pages() if prepack and size >= LARGE else nullcontext():
            self._session = opened(manifest, model, options, ["CPUExecutionProvider"])

    def memory(self, states: Sequence[Shaped]) -> tuple[int, int]:
        """Return the bytes that states would take, and those of this machine."""
        need = sum(math.prod(shape) * DTYPES[dtype].bytes for _, shape, dtype in states)
        return need, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def allocate(self, states: Sequence[Shaped], kept: States | None = None) -> States:
        """Return zeros, behind what `kept` has, which is empty afterwards: attention multiplies
        what it masks by 0, and 0 times NaN is NaN."""
        made = States(zeros(states))
        if kept is not None:
            kept.bound = None
            for _, array in reversed(made):  # so that one block at a time takes its memory twice
                _, old = kept.pop()
                array[tuple(slice(0, n) for n in old.shape)] = old
        return made

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        states: States,
        outputs: Sequence[str] = ("logits",),
        *,
        rows: slice = slice(None),
        kept: Mapping[str, ort.OrtValue] | None = None,
    ) -> list[np.ndarray]:
        """Run once over these rows of the states, which are updated in place; return the named
        outputs. kept: further inputs, which no call changes and none copies."""
        bound = self._bound(states, rows, outputs)
        for name, value in (kept or {}).items():
            bound.binding.bind_ortvalue_input(name, value)
        for name, array in inputs.items():
            memory, _ = bound.inputs.get(name, (None, None))
            if memory is not None and memory.shape == array.shape:
                memory[...] = array
                continue
            kind = self._features if name == FEATURES else array.dtype
            memory = array.astype(kind)  # a copy
            bound.inputs[name] = memory, value_of(memory)
            bound.binding.bind_ortvalue_input(name, bound.inputs[name][1])
        for name in outputs:  # in new memory: earlier results belong to the caller
            bound.binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(bound.binding)
        values = bound.binding.get_outputs_as_ortvaluevector()
        return [values[i].numpy() for i in range(len(outputs))]

    def _bound(self, states: States, rows: slice, outputs: Sequence[str]) -> Bound:
        """Return a binding to these rows, reused if the last call had the same ones.

        To bind the states of 28 layers takes 0.6 ms: 2 % of a step of Qwen3-0.6B in int4. New
        values for the inputs of a step, 0.1.
        """
        wanted = self._session, rows.start, rows.stop, tuple(outputs)
        if states.bound is None or states.bound.to != wanted:
            binding = self._session.io_binding()
            held = []
            for name in outputs:  # first, as their places among all outputs are by this order
                binding.bind_output(name, "cpu")
            for name, array in states:
                value = value_of(array[rows])
                held.append(value)
                binding.bind_ortvalue_input(f"{name}.past", value)
                binding.bind_ortvalue_output(f"{name}.present", value)
            states.bound = Bound(wanted, binding, held, {})
        return states.bound


def zeros(states: Sequence[Shaped]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of states, of which several share a block of memory.

    numpy asks for large pages where an array has at least 4 MB: with 4,096 tokens, a state of
    SmolLM2-135M has 3.3, and a step takes 0.9 of the time where they lie together.
    """
    block, at = np.zeros(0, np.uint8), 0
    rest = sum(_padded(state) for state in states)
    for state in states:
        (name, shape, dtype), size = state, _padded(state)
        if at + size > block.nbytes:
            block = np.zeros(min(rest, max(size, BLOCK)) + ALIGNED, np.uint8)
            at = -block.ctypes.data % ALIGNED
        kind = DTYPES[dtype]
        used = block[at : at + math.prod(shape) * kind.bytes]
        yield name, used.view(kind.numpy).reshape(shape)
        at, rest = at + size, rest - size


def _padded(state: Shaped) -> int:
    """Return the bytes of a state, up to where the next one may begin."""
    _, shape, dtype = state
    return -(-math.prod(shape) * DTYPES[dtype].bytes // ALIGNED) * ALIGNED


def session_options(manifest: Manifest, graph: Graph | TowerGraph) -> ort.SessionOptions:
    """Return what is asked of ONNX Runtime for a graph of an engine, whatever runs it."""
    options = ort.SessionOptions()
    # Errors reach the user as exceptions; the runtime's own log would print them again.
    options.log_severity_level = 4
    if graph.optimized:
        # The passes of the target have rewritten the graph: nothing is left to be found. Constants
        # are computed at load by the first level.
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            level.ORT_ENABLE_BASIC if graph.folded else level.ORT_DISABLE_ALL
        )
    else:
        # ONNX Runtime 1.31 fuses products between FP8 in fp32 graphs into one it has no kernel for.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    # Planning which values may share memory takes time by the square of the number of those of
    # unknown size (ONNX Runtime 1.31: 3 s for four layers of 128 experts), and saves nothing: of
    # the values of the experts most are empty.
    options.enable_mem_reuse = isinstance(graph, TowerGraph) or not graph.split_experts
    # A memory pattern is a second place for the values of calls: a prompt of 1,024 tokens of
    # SmolLM2-135M peaks at 329 MB without, at 363 with it, at the same speed. It begins with room
    # for all weights, although they are mapped: a model larger than memory fails to load.
    options.enable_mem_pattern = False
    linked = manifest.about.graph.weights == "link"
    folder = ROOT if linked else str(manifest.directory.absolute())
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    return options


def opened(
    manifest: Manifest,
    model: bytes | None,
    options: ort.SessionOptions,
    providers: list[Any],
    file: str = MODEL,
) -> ort.InferenceSession:
    """Return a graph of an engine, MODEL or VISION, or one given as bytes, loaded; raises
    BackendError."""
    path, given = manifest.directory / file, dict[str, ort.OrtValue]()
    if manifest.about.graph.weights == "link" and model is None:
        # There is one folder for all files; the engine, which has the rest, may lie anywhere.
        given = {name: value_of(array) for name, array in own_weights(manifest, file).items()}
        options.add_external_initializers([*given], [*given.values()])
    try:
        # Without a fallback: with one, what another provider says hides what is wrong with this.
        session = ort.InferenceSession(
            model or str(path), options, providers=providers, enable_fallback=0
        )
    except REFUSALS as error:
        reason = " ".join(str(error).split())
        raise BackendError(f"{path}: ONNX Runtime {ort.__version__} refuses it: {reason}") from None
    session.given = given  # it may read them for as long as it lives
    return session


def require_contract(session: ort.InferenceSession, path: Path, about: Description) -> None:
    """Refuse another graph than engine.json describes: other names, dtypes or axes."""
    wanted: dict[str, tuple[str, list[int | str]]] = {
        name: (dtype, list(axes)) for name, (dtype, axes) in inputs_of(about).items()
    }
    if about.graph.total_length:
        wanted["total_length"] = "int32", [1]
    for state in about.graph.states:
        for end in ("past", "present"):
            wanted[f"{state.name}.{end}"] = state.dtype, list(state.shape)
    values = (*session.get_inputs(), *session.get_outputs())
    found = {value.name: (NAMED.get(value.type, value.type), value.shape) for value in values}
    computed, axes = found.pop("logits", ("", []))
    if computed not in COMPUTED or axes != ["B", "R", about.vocab_size]:
        wanted["logits"] = about.dtype, ["B", "R", about.vocab_size]
        found["logits"] = computed, axes
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise BackendError(
                f"{path}: is not the graph of its {ENGINE_JSON}: {name} is"
                f" {_described(found.get(name))} there, and {_described(wanted.get(name))} in"
                f" {ENGINE_JSON}; export again"
            )


def _described(value: tuple[str, list[int | str]] | None) -> str:
    return "absent" if value is None else f"{value[0]} {value[1]}"


def value_of(array: np.ndarray) -> ort.OrtValue:
    """Wrap a contiguous array as an OrtValue over the same memory."""
    if array.dtype.kind == "V":  # one that numpy lacks: ONNX Runtime knows it by its number alone
        codes = array.view(f"u{array.itemsize}")
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(codes, DTYPES[array.dtype.name].onnx)
    return ort.OrtValue.ortvalue_from_numpy(array)


def require_kernels(dtype: str) -> None:
    """Refuse a dtype that the CPU provider has no matrix multiplication for."""
    if dtype == "bfloat16":
        raise EngineError(
            "dtype bfloat16: ONNX Runtime's CPU has no matrix multiplication for it; use --dtype"
            " float32 (it loses nothing), or --target onnx --no-parity for another runtime"
        )
