"""Running engines of target cuda: ONNX Runtime's CUDA provider, and nothing on the CPU.

States are device memory, which a call is given as what it reads and as what it writes. Decoding
steps are CUDA graphs over fixed addresses. ONNX Runtime captures one by running it several times,
so what such runs change is put back; and it frees none, so memory of sessions that have ended is
kept with the graphs over it, for later sessions of the same sizes.
"""

import math
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmcast.exporter.backends import native, onnxruntime_tower
from lmcast.exporter.backends.cuda import Array, Cuda, DeviceError, OutOfMemory
from lmcast.exporter.backends.cuda_provider.machine import PROVIDER, operators, usable
from lmcast.exporter.backends.gpu_call import Call, no_room, sizes_of
from lmcast.exporter.backends.images import inputs as inputs_of
from lmcast.exporter.backends.onnxruntime import (
    NAMED,
    REFUSALS,
    BackendError,
    opened,
    require_contract,
    session_options,
)
from lmcast.exporter.backends.ort import ort
from lmcast.exporter.backends.runner import Loading, SessionError, Shaped
from lmcast.exporter.dtypes import DTYPES
from lmcast.exporter.engine.manifest import Manifest
from lmcast.exporter.engine.names import MODEL
from lmcast.plugins.errors import InputError

MOST_GRAPHS = 64  # of an engine: each keeps memory of the driver's; steps beyond run without
ALIGNED = 16  # bytes: of what kernels read at once
PLAIN = -1  # the id of a run that is no graph
FATAL = 4  # of a message to the log
# As ONNX Runtime says it, and CUDA; and what CUDA says within what ONNX Runtime says of it.
NO_MEMORY = ("Failed to allocate memory", "out of memory")
CUDA_SAYS = re.compile(r"CUDA failure \d+: .*?(?= ; )")
HOST = "total_length"  # the input that stays on the host
Bound = tuple[str, Array]  # a state's name, and where it is read and written


def absent(manifest: Manifest) -> str:
    """Return why an engine does not run here, '' where it does."""
    try:
        usable(manifest.about)
    except InputError as error:
        return str(error)
    return ""


def prepare(manifest: Manifest) -> Cuda:
    """Return the GPU at hand, with the provider's libraries loaded; raises InputError."""
    where = manifest.directory
    try:
        return usable(manifest.about)
    except DeviceError as error:
        raise DeviceError(
            f"{where}: {error}; without one `lmcast inspect`, `verify`, `pack` and `sign` take this"
            " engine, and `lmcast export` makes by default one that runs"
        ) from None
    except InputError as error:
        raise BackendError(f"{where}: {error}") from None


def open_runner(manifest: Manifest, loading: Loading) -> "Runner":
    """Return the graph of an engine, loaded on the GPU; raises InputError where it cannot be."""
    return Runner(manifest, prepare(manifest), loading.model)


def open_tower(manifest: Manifest, loading: Loading, file: str) -> "Tower":
    """Return a tower of an engine, VISION or AUDIO, loaded on the GPU; raises InputError where it
    cannot be."""
    return Tower(manifest, prepare(manifest), file)


class Tower:
    """A loaded tower. Its inputs and outputs are copied there and back by ONNX Runtime."""

    def __init__(self, manifest: Manifest, gpu: Cuda, file: str):
        self._gpu, self._manifest = gpu, manifest
        with gpu.active():
            session = _loaded(manifest, gpu, None, file)
            self._run = onnxruntime_tower.Tower(manifest, session, file)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs, float32 F,H each; inputs: float32 and int64, by name."""
        try:
            with self._gpu.active():
                return self._run(inputs)
        except BackendError as error:
            if not any(words in str(error) for words in NO_MEMORY):
                raise
            raise OutOfMemory(
                f"a picture or sound needs more memory than this GPU ({self._gpu.name}) has free:"
                " make it smaller"
            ) from None


@dataclass(eq=False)
class Buffers:
    """States of some sizes, and the call of a step over them. number: of its graph, if captured."""

    sizes: tuple[Shaped, ...]
    states: list[Bound]
    call: Call
    binding: ort.IOBinding
    steps: int = 0
    number: int = PLAIN


@dataclass(eq=False)
class Held:
    """What a runner keeps for one session."""

    buffers: Buffers

    @property
    def rows(self) -> int:
        return self.buffers.call.shapes["input_ids"][0]


class Runner:
    """One loaded graph, shared by sessions with separate states."""

    limits = None

    def __init__(self, manifest: Manifest, gpu: Cuda, model: bytes | None):
        about, self.gpu = manifest.about, gpu
        self._graph, self._vocab, self._context = about.graph, about.vocab_size, about.context
        self._inputs = inputs_of(about)
        self._path = manifest.directory / about.graph.file
        self.place = f"this GPU ({gpu.name})"
        with gpu.active():
            self._session = _loaded(manifest, gpu, model)
        require_contract(self._session, self._path, about)
        (logits,) = (out for out in self._session.get_outputs() if out.name == "logits")
        self._dtype = NAMED[logits.type]
        self._idle: list[Buffers] = []  # of sessions that have ended
        self._graphs = 0

    def memory(self, states: Sequence[Shaped]) -> tuple[int, int]:
        """Return the bytes that states would take, and those of the GPU."""
        need = sum(math.prod(shape) * DTYPES[dtype].bytes for _, shape, dtype in states)
        return need, self.gpu.bytes

    def allocate(self, states: Sequence[Shaped], kept: Held | None = None) -> Held:
        """Return zeros, behind what `kept` has: attention multiplies what it masks by 0, and 0
        times NaN is NaN."""
        sizes = tuple(states)
        with self.gpu.active():
            buffers = self._buffers(sizes)
            for _, array in buffers.states:
                self.gpu.clear(array)
            for (_, to), (_, source) in zip(
                buffers.states, kept.buffers.states if kept else [], strict=kept is not None
            ):
                self.gpu.copy(to, source)
        held = Held(buffers)
        weakref.finalize(held, self._idle.append, buffers).atexit = False
        return held

    def _buffers(self, sizes: tuple[Shaped, ...]) -> Buffers:
        """Return memory of these sizes: of a session that has ended, or new."""
        for buffers in self._idle:
            if buffers.sizes == sizes:
                self._idle.remove(buffers)
                return buffers
        try:
            return self._made(sizes)
        except OutOfMemory:
            self._idle.clear()
        try:
            return self._made(sizes)
        except OutOfMemory:
            need, _ = self.memory(sizes)
            raise SessionError(
                f"{sizes[0][1][0]} rows need {need:,} bytes of state, and {self.place} has less"
                " than that free: run fewer rows, or shorter ones"
            ) from None

    def _made(self, sizes: tuple[Shaped, ...]) -> Buffers:
        states = [(name, self.gpu.empty(shape, dtype)) for name, shape, dtype in sizes]
        call = self._call({"B": sizes[0][1][0], "T": 1, "R": 1, "F": 1})
        # Frozen in a graph, which reads the lengths of rows on the device: as long as they may be.
        # Capacities may be greater; for positions beyond the context there are no angles.
        by_name = {state.name: state.shape for state in self._graph.states}
        room = [a.shape[by_name[n].index("C")] for n, a in states if "C" in by_name[n]]
        longest = min(max([1, *room]), self._context)  # padding has room behind the context
        return Buffers(sizes, states, call, self._bound(call, states, longest))

    def run(
        self, inputs: Mapping[str, np.ndarray], states: Held, *, rows: slice
    ) -> list[np.ndarray]:
        """Run once over these rows of the states, and return the logits B,R,V."""
        batch, tokens = inputs["input_ids"].shape
        try:
            with self.gpu.active():
                if states.buffers.call.fits(inputs):
                    return [self._step(states.buffers, inputs)]
                places = [(name, array.rows(rows)) for name, array in states.buffers.states]
                return [self._with_room(places, lambda: self._prompt(places, inputs))]
        except OutOfMemory:
            self._idle.clear()
            raise no_room(batch, tokens, self.place) from None

    def _prompt(self, places: Sequence[Bound], inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Run a call over some rows, where their states are among those of others."""
        call = self._call(sizes_of(inputs))
        call.put(inputs)
        bound = [(n, self.gpu.copied(a) if a.address % ALIGNED else a) for n, a in places]
        total = int(inputs[HOST][0]) if HOST in inputs else 0
        self._run(self._bound(call, bound, total), PLAIN)
        for (_, place), (_, array) in zip(places, bound, strict=True):
            if array is not place:
                self.gpu.copy(place, array)
        return call.get()

    def _with_room(self, states: Sequence[Bound], call: Callable[[], np.ndarray]) -> np.ndarray:
        """Return what a call gives; where memory ends within, of another one from the same states,
        in which that of sessions that have ended is free."""
        if not self._idle:
            return call()
        saved: Sequence[tuple[Array, Array]] = ()
        try:
            saved = self._saved(states)
            return call()
        except OutOfMemory:
            self._idle.clear()
        self._put_back(saved)
        return call()

    def _step(self, buffers: Buffers, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Run a decoding step: the second captures it for all others."""
        buffers.call.put(inputs)
        buffers.steps += 1
        if buffers.number == PLAIN and buffers.steps > 1 and self._graphs < MOST_GRAPHS:
            self._capture(buffers)
        self._run(buffers.binding, buffers.number)
        return buffers.call.get()

    def _capture(self, buffers: Buffers) -> None:
        """Capture the graph of a step, which runs it several times."""
        saved = self._saved(buffers.states)
        self._graphs += 1
        self._run(buffers.binding, self._graphs)
        buffers.number = self._graphs
        self._put_back(saved)

    def _saved(self, states: Sequence[Bound]) -> list[tuple[Array, Array]]:
        """Enqueue copies of what the same call would change once more; return what is a copy of
        what. Not of caches: there the same is written in the same places."""
        fixed = {state.name for state in self._graph.states if "C" not in state.shape}
        return [(array, self.gpu.copied(array)) for name, array in states if name in fixed]

    def _put_back(self, saved: Sequence[tuple[Array, Array]]) -> None:
        for array, before in saved:
            self.gpu.copy(array, before)

    def _call(self, sizes: Mapping[str, int]) -> Call:
        return Call(self.gpu, self._inputs, sizes, self._vocab, self._dtype)

    def _bound(self, call: Call, states: Sequence[Bound], total: int) -> ort.IOBinding:
        """Return a binding of a call to states. total: tokens of the longest row behind it."""
        binding = self._session.io_binding()
        for name, (dtype, _) in self._inputs.items():
            kind, shape = DTYPES[dtype].onnx, list(call.shapes[name])
            binding.bind_input(name, "cuda", 0, kind, shape, call.address(name))
        if self._graph.total_length:
            binding.bind_cpu_input(HOST, np.array([total], np.int32))
        self._bind_output(binding, "logits", call.logits)
        for name, array in states:
            kind, shape = DTYPES[array.dtype].onnx, list(array.shape)
            binding.bind_input(f"{name}.past", "cuda", 0, kind, shape, array.address)
            self._bind_output(binding, f"{name}.present", array)
        return binding

    def _bind_output(self, binding: ort.IOBinding, name: str, array: Array) -> None:
        kind, shape = DTYPES[array.dtype].onnx, list(array.shape)
        binding.bind_output(name, "cuda", 0, kind, shape, array.address)

    def _run(self, binding: ort.IOBinding, graph: int) -> None:
        """Enqueue a run, as the graph of this id if it has one."""
        options = ort.RunOptions()
        options.log_severity_level = FATAL
        options.add_run_config_entry("gpu_graph_id", str(graph))
        # Whoever reads the logits waits for them.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        try:
            self._session.run_with_iobinding(binding, options)
        except REFUSALS as error:
            reason = " ".join(str(error).split())
            if any(words in reason for words in NO_MEMORY):
                raise OutOfMemory(reason) from None
            found = CUDA_SAYS.search(reason)
            raise BackendError(
                f"{self._path}: ONNX Runtime {ort.__version__} does not run it on {self.place}:"
                f" {found[0] if found else reason}"
            ) from None


def _loaded(
    manifest: Manifest, gpu: Cuda, model: bytes | None, file: str = MODEL
) -> ort.InferenceSession:
    """Return a graph, one of GRAPHS, on the GPU; raises BackendError."""
    path = manifest.directory / file
    # What CUDA refuses is said there, once more or where it is no error: by no session's own log.
    ort.set_default_logger_severity(FATAL)
    try:
        return opened(manifest, model, *_provider(manifest, gpu, file), file)
    except BackendError as error:
        said = str(error)
    if any(words in said for words in NO_MEMORY):
        why = f"{path}: this GPU ({gpu.name}) has too little free memory to load it"
    elif unknown := re.search(r"lmcast:(\w+)\S* is not a registered", said):
        why = (
            f"{path}: {native.PACKAGE} is older than its {unknown[1]}: pip install {native.INSTALL}"
        )
    else:
        found = CUDA_SAYS.search(said)
        why = f"{path}: ONNX Runtime {ort.__version__} refuses it: {found[0]}" if found else said
    raise BackendError(why)


def _provider(manifest: Manifest, gpu: Cuda, file: str) -> tuple[ort.SessionOptions, list[Any]]:
    """Return the options of a session, and its provider with its own."""
    about = manifest.about
    seen = None if file == MODEL else about.tower(file)
    options = session_options(manifest, seen or about.graph)
    # A node without a kernel for GPUs would be run by the CPU, with copies there and back.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # What calls need is taken in few large pieces: by their exact sizes, which no other call's need
    # fits, 300 prompts of growing lengths took 60 times what the longest needs. Weights stay exact.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    if manifest.about.sms:
        options.register_custom_ops_library(operators())
    own = {
        "enable_cuda_graph": "01"[file == MODEL],
        "user_compute_stream": str(gpu.stream),
        "arena_extend_strategy": "kNextPowerOfTwo",
    }
    return options, [(PROVIDER, own)]
