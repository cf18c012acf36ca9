"""Running a plan: states on the GPU, one context for prompts, one with a CUDA graph per step.

A captured CUDA graph refers to data in its TensorRT context, so the context must not change while
the graph may still run: decoding steps have contexts of their own, which are never bound again. All
work is on one stream, so that all contexts share their scratch memory.
"""

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

from lmcast.exporter.backends.cuda import Array, Cuda, OutOfMemory
from lmcast.exporter.backends.gpu_call import ALIGNED, Call, no_room, sizes_of
from lmcast.exporter.backends.images import inputs as inputs_of
from lmcast.exporter.backends.runner import Limits, SessionError, Shaped
from lmcast.exporter.backends.tensorrt.plans import Loaded, gpu, load_plan, modules
from lmcast.exporter.dtypes import COMPUTED, DTYPES
from lmcast.exporter.engine.description import Description
from lmcast.exporter.engine.description import State as Carried
from lmcast.exporter.engine.manifest import Manifest

STEP, PROMPT = 0, 1  # optimization profiles
Bound = tuple[str, Array, Array]  # a state's name, what is read, what is written
NAMED = {  # TensorRT's names -> those of exporter/dtypes.py
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "FP8": "float8_e4m3fn",
}


def prepare(manifest: Manifest) -> Cuda:
    """Import the libraries of an engine's plans, those that are here; return the GPU at hand."""
    for module in modules(manifest):
        if find_spec(module) is not None:
            import_module(module)
    return gpu(manifest)


def open_runner(manifest: Manifest) -> "Runner":
    """Return the plan of an engine that fits this machine, loaded; raises InputError."""
    loaded = load_plan(manifest)
    try:
        return Runner(loaded, manifest.about)
    except OutOfMemory:
        raise loaded.failed("finds too little free memory on the GPU to run in") from None


@dataclass
class State:
    """One state on the device. back: where a call writes it, None if in place."""

    name: str
    front: Array
    back: Array | None

    @property
    def written(self) -> Array:
        return self.front if self.back is None else self.back

    def swap(self) -> None:
        if self.back is not None:
            self.front, self.back = self.back, self.front


@dataclass
class Step:
    """A context for decoding steps over fixed states; replay: its CUDA graph, once captured."""

    context: Any
    tried: bool = False  # to capture it
    replay: Callable[[], None] | None = None


@dataclass(eq=False)
class Held:
    """The contexts and buffers that a plan keeps for one session."""

    rows: int
    states: list[State]
    call: "Call"  # of steps
    swapped: bool = False
    steps: dict[bool, Step] = field(default_factory=dict)
    contexts: list[Any] = field(default_factory=list)  # those of its steps

    def swap(self) -> None:
        for state in self.states:
            state.swap()
        self.swapped ^= any(state.back is not None for state in self.states)


class Runner:
    """One loaded plan, shared by sessions with separate states."""

    def __init__(self, loaded: Loaded, about: Description):
        self._loaded, self.gpu, self._engine = loaded, loaded.device, loaded.engine
        engine, plan = loaded.engine, loaded.plan
        self._vocab, states, self._inputs = about.vocab_size, about.graph.states, inputs_of(about)
        self._names = [state.name for state in states]
        self._require_contract(states)
        self.place = f"this GPU ({self.gpu.name})"
        most = [engine.get_tensor_profile_shape(n, PROMPT)[2] for n in ("input_ids", "logit_rows")]
        (rows, tokens), (_, logits) = map(tuple, most)
        self.limits = Limits(rows, plan.sizes["max_context"], tokens, logits, loaded.rebuild)
        self._dtype = NAMED[engine.get_tensor_dtype("logits").name]
        self._aliased = {n for n in self._names if self._in_place(n)}
        with self.gpu.active():
            size = max(engine.device_memory_size_v2, ALIGNED)
            self._scratch = self.gpu.empty((size,), "uint8")
            self._configs = contexts(loaded.trt, engine)
            self._prompt = self._context(PROMPT)
        self._idle: list[Any] = []  # contexts of sessions that have ended

    def memory(self, states: Sequence[Shaped]) -> tuple[int, int]:
        """Return the bytes that states would take, and those of the GPU."""
        need = 0
        for name, shape, dtype in states:
            buffers = 1 if name in self._aliased else 2
            need += buffers * math.prod(shape) * DTYPES[dtype].bytes
        return need, self.gpu.bytes

    def allocate(self, states: Sequence[Shaped], kept: None = None) -> Held:
        """Return zeros, once for a session: attention multiplies what it masks by 0, and 0 times
        NaN is NaN."""
        (rows,) = {shape[0] for _, shape, _ in states}
        made = []
        try:
            with self.gpu.active():
                for name, shape, dtype in states:
                    apart = name not in self._aliased
                    buffers = [self.gpu.zeros(shape, dtype) for _ in range(1 + apart)]
                    made.append(State(name, buffers[0], buffers[1] if apart else None))
                held = Held(rows, made, self._call({"B": rows, "T": 1, "R": 1, "F": 1}))
        except OutOfMemory:
            need, _ = self.memory(states)
            raise SessionError(
                f"{rows} rows need {need:,} bytes of state, and {self.place} has less than that"
                " free: run fewer rows, or build a plan with a shorter --max-context"
            ) from None
        weakref.finalize(held, self._idle.extend, held.contexts).atexit = False
        return held

    def run(
        self, inputs: Mapping[str, np.ndarray], states: Held, *, rows: slice
    ) -> list[np.ndarray]:
        """Run once over these rows of the states, and return the logits R,V of each."""
        batch, tokens = inputs["input_ids"].shape
        whole = batch == states.rows
        step = states.call.fits(inputs)
        try:
            with self.gpu.active():
                call = states.call if step else self._call(sizes_of(inputs))
                call.put(inputs)
                if step:
                    self._step(states)
                elif whole:
                    self._all_rows(call, states)
                else:
                    self._some_rows(call, states, rows)
                if whole:
                    states.swap()
                return [call.get()]
        except OutOfMemory:
            raise no_room(batch, tokens, self.place) from None

    def _step(self, held: Held) -> None:
        """Enqueue a decoding step: the first binds a context, the second captures it for all
        others."""
        step = held.steps.get(held.swapped)
        if step is None:
            context = self._idle.pop() if self._idle else self._context(STEP)
            held.contexts.append(context)
            self._bind(context, held.call, [(s.name, s.front, s.written) for s in held.states])
            held.steps[held.swapped] = Step(context)
            # What a shape needs for the first time is done here, where it need not be captured.
            self._execute(context)
            return
        if not step.tried:
            step.tried, step.replay = True, self._captured(step.context)
        if step.replay is not None:
            step.replay()
        else:
            self._execute(step.context)

    def _captured(self, context: Any) -> Callable[[], None] | None:
        stream = self.gpu.stream
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(stream):
            return None
        return self.gpu.capture(lambda: context.execute_async_v3(stream))

    def _all_rows(self, call: Call, held: Held) -> None:
        self._bind(self._prompt, call, [(s.name, s.front, s.written) for s in held.states])
        self._execute(self._prompt)

    def _some_rows(self, call: Call, held: Held, rows: slice) -> None:
        """Run over some rows; the states of the others keep their places."""
        bound: list[Bound] = []
        for state in held.states:
            place = state.front.rows(rows)
            past = self.gpu.copied(place) if place.address % ALIGNED else place
            present = past if state.back is None else self.gpu.copied(place)
            bound.append((state.name, past, present))
        self._bind(self._prompt, call, bound)
        self._execute(self._prompt)
        for state, (_, _, present) in zip(held.states, bound, strict=True):
            if present.address != (place := state.front.rows(rows)).address:
                self.gpu.copy(place, present)

    def _call(self, sizes: Mapping[str, int]) -> Call:
        return Call(self.gpu, self._inputs, sizes, self._vocab, self._dtype)

    def _context(self, profile: int) -> Any:
        context = self._engine.create_execution_context(self._configs[profile])
        if context is None:
            raise self._loaded.failed("makes no context to run it in")
        context.set_device_memory(self._scratch.address, self._scratch.nbytes)
        if not context.set_optimization_profile_async(profile, self.gpu.stream):
            raise self._loaded.failed(f"does not take its profile {profile}")
        return context

    def _bind(self, context: Any, call: Call, states: Sequence[Bound]) -> None:
        """Set the input sizes and all addresses of a context."""
        done = [context.set_tensor_address("logits", call.logits.address)]
        outputs = {"logits": call.logits.shape}
        for name in self._given:
            done.append(context.set_input_shape(name, call.shapes[name]))
            done.append(context.set_tensor_address(name, call.address(name)))
        for name, past, present in states:
            done.append(context.set_input_shape(f"{name}.past", past.shape))
            done.append(context.set_tensor_address(f"{name}.past", past.address))
            done.append(context.set_tensor_address(f"{name}.present", present.address))
            outputs[f"{name}.present"] = present.shape
        if not all(done):
            raise self._loaded.failed(f"does not take a call of {call.shapes}")
        for name, shape in outputs.items():
            found = tuple(context.get_tensor_shape(name))
            if found != shape:
                raise self._loaded.failed(f"would write {name} of {list(found)}, not {list(shape)}")

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self.gpu.stream):
            raise self._loaded.failed("does not run it")

    def _in_place(self, name: str) -> bool:
        """Say whether a state is to be written where it is read."""
        other = self._engine.get_aliased_input_tensor(f"{name}.present")
        if other and other != f"{name}.past":
            raise self._loaded.failed(f"has {name}.present in the memory of {other}")
        return bool(other) or name in self._loaded.plan.in_place

    def _require_contract(self, states: Sequence[Carried]) -> None:
        """Refuse a plan of another graph than engine.json describes."""
        engine = self._engine
        names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        kinds: dict[str, str] = {
            f"{s.name}.{end}": s.dtype for s in states for end in ("past", "present")
        }
        wanted = dict(kinds)
        # An input that the graph does not use may be gone.
        self._given = [name for name in self._inputs if name in names]
        wanted |= {name: self._inputs[name][0] for name in self._given}
        if wrong := sorted(names ^ {*wanted, "logits"}):
            raise self._loaded.failed(
                f"is not of this engine: {wrong[0]} is in one of the two alone"
            )
        for name in sorted(names):
            found = engine.get_tensor_dtype(name).name
            if NAMED.get(found) not in ([wanted[name]] if name in wanted else COMPUTED):
                raise self._loaded.failed(f"is not of this engine: its {name} is {found}")
            if engine.get_tensor_location(name) != self._loaded.trt.TensorLocation.DEVICE:
                raise self._loaded.failed(f"wants {name} in host memory")
        if engine.num_optimization_profiles != len((STEP, PROMPT)):
            raise self._loaded.failed(f"has {engine.num_optimization_profiles} profiles, not 2")


def contexts(trt: ModuleType, engine: Any) -> tuple[Any, Any]:
    """Return what contexts are made with: of steps, and of prompts.

    TensorRT for RTX compiles kernels as it meets shapes. Those of a step must be there when it is
    captured; prompts are of many lengths, so theirs may come later, and general ones run till then.
    """
    managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return managed, managed
    kinds = trt.DynamicShapesKernelSpecializationStrategy
    step, prompt = engine.create_runtime_config(), engine.create_runtime_config()
    compiled = step.create_runtime_cache()
    for config, kind in ((step, kinds.EAGER), (prompt, kinds.LAZY)):
        config.set_execution_context_allocation_strategy(managed)
        config.dynamic_shapes_kernel_specialization_strategy = kind
        config.set_runtime_cache(compiled)
    return step, prompt
