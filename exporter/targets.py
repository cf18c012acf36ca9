"""The targets of an export: one record holds every fact about each; nothing else tests for names.

A new target is an entry of TARGETS, its passes and its runner. What a record refers to is imported
when it is called: the command line names targets before anything heavy is loaded, and engines run
without what exports them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmcast.exporter.engine.manifest import EngineError, Manifest

if TYPE_CHECKING:
    import onnx_ir as ir

    from lmcast.exporter.backends.cuda import Cuda
    from lmcast.exporter.backends.runner import Loading, Runner, RunTower
    from lmcast.exporter.backends.tensorrt.request import Request, Sizes
    from lmcast.exporter.passes import Pass
    from lmcast.exporter.progress import Progress
    from lmcast.graphs.weights.bind import Binding

# How codes of quantized weights are stored. standard: as ONNX defines them, for any runtime.
# kernels: for ONNX Runtime's own kernels: unsigned integers, those of E2M1 twice their number,
# FP8 as fp16, and scales in fp32. gpu_kernels: for those of its CUDA provider (weights/gpu_forms).
WeightForm = Literal["standard", "kernels", "gpu_kernels"]
# Options of export that only some targets read: the SMs of GPUs, the sizes of a plan's calls, and
# whether kernels may round inputs.
Option = Literal["sms", "sizes", "activations"]
# Options of a load that only some read: what is of ONNX Runtime's CPU, and that this is to run it.
Loads = Literal["threads", "prepack", "exact", "portable"]


@dataclass(frozen=True)
class Plans:
    """How a target compiles plans ahead of time, from the portable graph.

    order: (SMs, context of the engine, sizes) -> a request that can be fulfilled here.
    build: (engine directory, fields of engine.json, request, progress) -> the plan's entry there.

    Both raise BackendError.
    """

    order: "Callable[[tuple[int, ...], int, Sizes | None], Request]"
    build: "Callable[[Path, Mapping[str, Any], Request, Progress], dict[str, Any]]"


@dataclass(frozen=True)
class MachineCode:
    """How operators of ours become kernels of GPUs within the engine's own graph.

    choose: the SMs asked for, none for all -> those to compile for; raises BackendError.
    embed: (graph, SMs) -> None; its operators get machine code and how to launch it. Raises
        InputError for what has no kernel.
    """

    choose: "Callable[[tuple[int, ...]], tuple[int, ...]]"
    embed: "Callable[[ir.Model, tuple[int, ...]], None]"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime that engines are made for: how to export for it, and how to run the result.

    name: on the command line and in engine.json.
    about: for --help.
    passes: the rewrites of the portable graph, in order.
    weight_form: how quantized weights are stored.
    dtype: the default dtype to compute in; None: that of most weights.
    links_codes: whether its graph may point at quantized weights of the checkpoint that are stored
        in ONNX's own form (MXFP4); it must have kernels for them.
    computes_weights: whether its runtime makes a weight of several stored tensors, or of one in
        another layout, once at load; where it would in every call, such weights are copied.
    requires: Requirements on the runner, beside those of passes.
    refuse: (sources of the weights, dtype, whether the engine is to run here) -> None; raises
        EngineError for what the runtime has no kernels for.
    absent: why an engine of it does not run here, so that parity is not proven; '' where it does.
        Of plans, the request says that.
    prepare: import what the engine's runner needs; return the GPU at hand, None for the CPU.
    run: load the graph or the plan of an engine; raises InputError where it cannot run here.
    run_tower: the same of a tower, by the name of its file.
    plans: how plans are compiled; None where the engine's own graph is run.
    options: those that change something for it.
    loads: those of a load that do, or say what is done anyway.
    machine_code: how that graph gets kernels of ours; None where the runtime has all, or bodies do.
    clients: whether other programs open its engines.
    """

    name: str
    about: str
    passes: "Callable[[], tuple[Pass, ...]]"
    weight_form: WeightForm = "standard"
    dtype: str | None = None
    links_codes: bool = False
    computes_weights: bool = True
    requires: Mapping[str, Any] = field(default_factory=dict)
    refuse: "Callable[[Binding, str, bool], None]"
    absent: "Callable[[Manifest], str]" = lambda manifest: ""
    prepare: "Callable[[Manifest], Cuda | None]"
    run: "Callable[[Manifest, Loading], Runner]"
    run_tower: "Callable[[Manifest, Loading, str], RunTower]"
    plans: Plans | None = None
    options: frozenset[Option] = frozenset()
    loads: frozenset[Loads] = frozenset()
    machine_code: MachineCode | None = None
    clients: bool = False

    @property
    def carried(self) -> "Target":
        """The target whose graph the engine has: itself, or for plans the portable one, whose
        graph is shipped with them for other GPUs and CPUs."""
        return self if self.plans is None else get(PORTABLE)

    def require_options(
        self, sms: tuple[int, ...], sizes: "Sizes | None", activations: str | None
    ) -> None:
        """Refuse what was asked for and would change nothing; raises EngineError."""
        asked: dict[Option, list[str]] = {
            "sms": ["sm"] if sms else [],
            "sizes": [] if sizes is None else sizes.asked(),
            "activations": [] if activations is None else ["activations"],
        }
        unread = {option: names for option, names in asked.items() if option not in self.options}
        if names := [name for names in unread.values() for name in names]:
            given = ", ".join(f"--{name.replace('_', '-')}" for name in names)
            wanted = {option for option, names in unread.items() if names}
            readers = [target.name for target in TARGETS.values() if wanted <= target.options]
            raise EngineError(
                f"target {self.name} does not read {given}; leave that out, or give --target"
                f" {' or '.join(readers)}"
            )

    def require_loads(self, given: Mapping[Loads, object]) -> None:
        """Refuse what was asked of a load and would change nothing; raises EngineError."""
        names = [name for name, value in given.items() if value and name not in self.loads]
        if not names:
            return
        readers = [target.name for target in TARGETS.values() if set(names) <= target.loads]
        other = f"export with --target {' or '.join(readers)}"
        if "portable" in self.loads:
            other = "give --portable, which runs its graph on a CPU"
        raise EngineError(
            f"target {self.name} does not read {', '.join(f'--{name}' for name in names)}, as it"
            f" runs on a GPU; leave that out, or {other}"
        )

    def links(self, runs: bool) -> tuple[bool, bool]:
        """Return whether the graph may point at codes, and at what it has to lay out anew.

        runs: whether it is to run here.
        """
        return self.links_codes and not runs, self.computes_weights

    def order(self, sms: tuple[int, ...], context: int, sizes: "Sizes | None") -> "Request | None":
        """Return a request for a plan, None where none is compiled; raises BackendError."""
        return None if self.plans is None else self.plans.order(sms, context, sizes)

    def choose(self, sms: tuple[int, ...]) -> tuple[int, ...]:
        """Return the SMs that the graph gets machine code for; raises BackendError for others."""
        return () if self.machine_code is None else self.machine_code.choose(sms)

    def embed(self, graph: "ir.Model", sms: tuple[int, ...]) -> None:
        """Give the graph its machine code, where the target has some; what it was is kept."""
        if self.machine_code is not None:
            from lmcast.exporter.graph.bodies import keep_bodies

            keep_bodies(graph)
            self.machine_code.embed(graph, sms)

    def compile(
        self,
        engine: Path,
        fields: Mapping[str, Any],
        request: "Request | None",
        progress: "Progress",
    ) -> dict[str, Any]:
        """Build the plan of a request, if there is one; return the new fields of engine.json."""
        if self.plans is None or request is None:
            return {}
        return {"plans": [self.plans.build(engine, fields, request, progress)]}


def _portable_passes() -> "tuple[Pass, ...]":
    from lmcast.exporter import passes

    return passes.PORTABLE


def _cpu_passes() -> "tuple[Pass, ...]":
    from lmcast.exporter import passes

    return passes.CPU


def _tensorrt_passes() -> "tuple[Pass, ...]":
    from lmcast.exporter import passes

    return passes.TENSORRT


def _cuda_passes() -> "tuple[Pass, ...]":
    from lmcast.exporter import passes

    return passes.CUDA


def _cpu_refuses(binding: "Binding", dtype: str, runs: bool) -> None:
    from lmcast.exporter.backends.onnxruntime import require_kernels

    require_kernels(dtype)


def _portable_refuses(binding: "Binding", dtype: str, runs: bool) -> None:
    """Refuse what cannot be run here; other runtimes may have kernels for all of it."""
    if not runs:
        return
    from lmcast.exporter.weights.quantized_forms import without_kernel

    _cpu_refuses(binding, dtype, runs)
    if missing := without_kernel(binding):
        raise EngineError(
            f"target onnx: ONNX Runtime's CPU has no kernel for {missing}, so parity cannot be"
            " proven here; use --target cpu, or --no-parity for another runtime"
        )


def _tensorrt_refuses(binding: "Binding", dtype: str, runs: bool) -> None:
    """Refuse nothing yet: a plan need not run here, and what it cannot hold is refused by name when
    the graph is there (backends/tensorrt/formats.py)."""


def _cuda_refuses(binding: "Binding", dtype: str, runs: bool) -> None:
    from lmcast.exporter.backends.cuda_provider import kernels

    kernels.require(binding, dtype)


def _late(module: str, name: str) -> Callable[..., Any]:
    """Return a function of a backend, which is imported when that is called."""

    def call(*given: Any) -> Any:
        return getattr(import_module(f"lmcast.exporter.backends.{module}"), name)(*given)

    return call


def _prepare_onnxruntime(manifest: Manifest) -> None:
    import_module("lmcast.exporter.backends.onnxruntime")


def _run_onnxruntime(manifest: Manifest, loading: "Loading") -> "Runner":
    from lmcast.exporter.backends.onnxruntime import open_runner

    return open_runner(manifest, loading)


def _prepare_tensorrt(manifest: Manifest) -> "Cuda":
    from lmcast.exporter.backends.tensorrt import runner

    return runner.prepare(manifest)


def _run_tensorrt(manifest: Manifest, loading: "Loading") -> "Runner":
    from lmcast.exporter.backends.tensorrt import runner

    return runner.open_runner(manifest)


def _tensorrt(name: str, about: str) -> Target:
    """Return the target of one of NVIDIA's two libraries (backends/tensorrt/libraries.py)."""

    def order(sms: tuple[int, ...], context: int, sizes: "Sizes | None") -> "Request":
        from lmcast.exporter.backends.tensorrt import build, request

        return build.order(name, sms, context, sizes or request.Sizes())

    def compiled(
        engine: Path, fields: Mapping[str, Any], request: "Request", progress: "Progress"
    ) -> dict[str, Any]:
        from lmcast.exporter.backends.tensorrt.build import build_plan

        return build_plan(engine, fields, request, progress)

    return Target(
        name=name,
        about=about,
        passes=_tensorrt_passes,
        refuse=_tensorrt_refuses,
        prepare=_prepare_tensorrt,
        run=_run_tensorrt,
        run_tower=_late("tensorrt.tower_runner", "open_tower"),
        plans=Plans(order, compiled),
        options=frozenset({"sms", "sizes"}),
        loads=frozenset({"portable"}),
    )


ON_CPUS: frozenset[Loads] = frozenset({"threads", "prepack", "exact", "portable"})
DEFAULT, PORTABLE, DEFAULT_PLANS = "cpu", "onnx", "tensorrt-rtx"
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="cpu",
            about="for ONNX Runtime's CPU kernels",
            passes=_cpu_passes,
            weight_form="kernels",
            dtype="float32",
            requires={"optimized": True},
            options=frozenset({"activations"}),
            refuse=_cpu_refuses,
            prepare=_prepare_onnxruntime,
            run=_run_onnxruntime,
            run_tower=_late("onnxruntime_tower", "open_tower"),
            loads=ON_CPUS,
            clients=True,
        ),
        Target(
            name="onnx",
            about="standard operators only, for any runtime",
            passes=_portable_passes,
            dtype="float32",
            links_codes=True,
            refuse=_portable_refuses,
            prepare=_prepare_onnxruntime,
            run=_run_onnxruntime,
            run_tower=_late("onnxruntime_tower", "open_tower"),
            loads=ON_CPUS,
            clients=True,
        ),
        Target(
            name="cuda",
            about="for ONNX Runtime's kernels of NVIDIA GPUs, data-centre ones too",
            passes=_cuda_passes,
            weight_form="gpu_kernels",
            computes_weights=False,
            requires={"optimized": True, "onnxruntime": "1.31"},  # the one that it was tried with
            refuse=_cuda_refuses,
            absent=_late("cuda_provider.runner", "absent"),
            prepare=_late("cuda_provider.runner", "prepare"),
            run=_late("cuda_provider.runner", "open_runner"),
            run_tower=_late("cuda_provider.runner", "open_tower"),
            machine_code=MachineCode(
                _late("cuda_provider.kernels", "choose_sms"),
                _late("cuda_provider.kernels", "embed"),
            ),
            options=frozenset({"sms"}),
            clients=True,
        ),
        _tensorrt("tensorrt-rtx", "a plan for NVIDIA GPUs, compiled ahead, beside that graph"),
        _tensorrt("tensorrt", "the same for data-centre GPUs, compiled on one"),
    )
}


def get(name: str) -> Target:
    """Return a target by its name; raises EngineError for an unknown one."""
    if name not in TARGETS:
        raise EngineError(unknown(name))
    return TARGETS[name]


def unknown(name: str) -> str:
    return f"target {name!r} is unknown; accepted: {', '.join(TARGETS)}"


def with_plans() -> list[str]:
    """Return the names of the targets that compile plans."""
    return [target.name for target in TARGETS.values() if target.plans is not None]


def get_plans(name: str) -> Plans:
    """Return how a target compiles plans; raises EngineError for one that has none."""
    plans = TARGETS[name].plans if name in TARGETS else None
    if plans is None:
        accepted = ", ".join(with_plans())
        raise EngineError(f"target {name!r} is not built ahead of time; accepted: {accepted}")
    return plans
