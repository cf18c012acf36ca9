"""The plans of an engine: choosing the one that runs here, or saying why none does; loading it."""

import hashlib
import mmap
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from types import ModuleType
from typing import Any

from lmcast.exporter.backends import native
from lmcast.exporter.backends.cuda import Cuda, DeviceError
from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.backends.tensorrt import libraries
from lmcast.exporter.engine.description import PlanEntry
from lmcast.exporter.engine.manifest import EngineError, Manifest
from lmcast.exporter.engine.names import ENGINE_JSON
from lmcast.exporter.engine.sealed import open_without_waiting

SIZES = ("max_batch", "max_context", "max_tokens", "opt_batch", "opt_tokens", "max_pixels")


@dataclass(frozen=True)
class Plan:
    """The entry of one plan in engine.json."""

    file: str
    target: str
    sms: tuple[int, ...]
    sizes: Mapping[str, int]  # by the names of the options that it was built with
    library: str  # 'tensorrt_rtx 1.7.1.116': plans are for this version alone
    plugins: tuple[str, ...]  # operators of ours in it that are plugins
    in_place: frozenset[str]  # states updated in place, beside those that TensorRT aliases
    widen: bool = False  # whether weights of 4 bits were stored as ones of 8
    tower: str | None = None  # the file of the tower's plan, where the engine takes pictures


@dataclass(frozen=True)
class Loaded:
    """A plan loaded in TensorRT, with the device it runs on. file: that of the text, or of the
    tower."""

    plan: Plan
    file: str
    directory: Path  # of its engine
    device: Cuda
    trt: ModuleType
    logger: Any
    messages: deque[str]  # the last errors that the logger was told
    runtime: Any
    engine: Any = None

    def rebuild(self, **sizes: int) -> str:
        """Return the command that builds the plan again, with these of its sizes changed."""
        return build_command(self.directory, self.plan, **sizes)

    def failed(self, what: str) -> BackendError:
        """Return the error that says what TensorRT does not do with the plan."""
        said = "; ".join(self.messages) or "nothing"
        return BackendError(f"{self.file}: {self.plan.library} {what}; it said: {said}")


def load_plan(manifest: Manifest) -> Loaded:
    """Return the plan of an engine that fits this machine; raises InputError."""
    plan, device, trt = choose(manifest)
    return _loaded(manifest, plan, plan.file, device, trt)


def load_tower(manifest: Manifest) -> Loaded:
    """Return that of its tower; raises InputError."""
    plan, device, trt = choose(manifest)
    if plan.tower is None:
        raise BackendError(
            f"{manifest.directory}: {plan.file} has no plan of the tower beside it:"
            f" `{build_command(manifest.directory, plan)}` builds both"
        )
    return _loaded(manifest, plan, plan.tower, device, trt)


def _loaded(manifest: Manifest, plan: Plan, file: str, device: Cuda, trt: ModuleType) -> Loaded:
    """Return a file of a plan, loaded."""
    library, (logger, messages) = plugin_library(plan), _logger(trt)
    where, runtime = manifest.directory, trt.Runtime(logger)
    loaded = Loaded(plan, file, where, device, trt, logger, messages, runtime)
    if library is not None:
        _load_plugins(trt, library)
    engine = runtime.deserialize_cuda_engine(checked(manifest, file))
    if engine is None:
        raise loaded.failed(f"does not take it (`{loaded.rebuild()}` builds it again)")
    return replace(loaded, engine=engine)


def read_plans(manifest: Manifest) -> list[Plan]:
    """Return the plans of an engine; raises EngineError for entries of another form."""
    return [_plan(item, manifest) for item in manifest.about.plans]


def choose(manifest: Manifest) -> tuple[Plan, Cuda, ModuleType]:
    """Return the first plan that runs here, with the GPU and the library.

    Raises InputError that says what would make one run.
    """
    plans, where, device = read_plans(manifest), manifest.directory, gpu(manifest)
    fitting = [plan for plan in plans if device.sm in plan.sms]
    if not fitting:
        target = _target(plans[0].target, device.sm)
        raise BackendError(
            f"{where}: has plans for {_kinds(plans)}; this GPU, {device.name}, is SM{device.sm}:"
            f" `lmcast build {quote(str(where))} --target {target} --sm {device.sm}` makes one"
        )
    problems = []
    for plan in fitting:
        try:
            return plan, device, _library(plan, build_command(where, plan))
        except BackendError as error:
            problems.append(error)
    raise problems[0]


def gpu(manifest: Manifest) -> Cuda:
    """Return the GPU at hand; raises DeviceError where there is none that can be used."""
    try:
        return Cuda()
    except DeviceError as error:
        raise DeviceError(
            f"{manifest.directory}: {error}, and its plans are for {_kinds(read_plans(manifest))};"
            " its portable graph runs on a CPU (--portable)"
        ) from None


def modules(manifest: Manifest) -> list[str]:
    """Return the names of the libraries of an engine's plans, as Python imports them."""
    return [libraries.LIBRARIES[plan.target].module for plan in read_plans(manifest)]


def build_command(engine: Path, plan: Plan, **sizes: int) -> str:
    """Return the command that builds a plan, with these of its sizes changed."""
    sms = ",".join(map(str, plan.sms))
    options = [f"--{n.replace('_', '-')} {size}" for n, size in {**plan.sizes, **sizes}.items()]
    words = ["lmcast build", quote(str(engine)), f"--target {plan.target} --sm {sms}", *options]
    return " ".join([*words, *(["--widen"] if plan.widen else [])])


def plugin_library(plan: Plan) -> str | None:
    """Return the path of the shared library with a plan's plugins, None where it has none."""
    if not plan.plugins:
        return None
    return native.library(f"{plan.file}, which has {', '.join(plan.plugins)} of ours")


def _plan(item: PlanEntry, manifest: Manifest) -> Plan:
    asked = item.request
    known = asked.target in libraries.LIBRARIES and asked.sms
    files = [item.file, *([] if item.vision is None else [item.vision.file])]
    if not known or not {*files} <= {file.path for file in manifest.files}:
        raise EngineError(
            f"{manifest.directory / ENGINE_JSON}: plans has {item.file} for {asked.target} and SMs"
            f" {list(asked.sms)}; accepted: a listed file, {', '.join(libraries.LIBRARIES)}, and at"
            " least one SM: build it again"
        )
    plugins = tuple(sorted(name for name, forms in item.operators.items() if "plugin" in forms))
    sizes = {name: size for name in SIZES if (size := getattr(asked, name)) is not None}
    in_place = frozenset(item.in_place)
    tower = item.vision.file if item.vision is not None else None
    return Plan(
        item.file, asked.target, asked.sms, sizes, item.library, plugins, in_place, asked.widen,
        tower,
    )  # fmt: skip


def _library(plan: Plan, build: str) -> ModuleType:
    """Return the library of a plan in the version that built it; raises BackendError."""
    library = libraries.require(plan.target)
    trt = libraries.load(library)
    here = f"{library.module} {trt.__version__}"
    if here != plan.library:
        raise BackendError(
            f"{plan.file} was built by {plan.library}, and here is {here}: plans are for one"
            f" version alone; install that one, or `{build}` builds it again"
        )
    return trt


def _target(target: str, sm: int) -> str:
    """Return the target that has plans for an SM, as far as the library here can tell."""
    rtx = libraries.LIBRARIES["tensorrt-rtx"]
    if target != rtx.target or find_spec(rtx.module) is None:
        return target
    known = libraries.capabilities(libraries.load(rtx))
    return target if not known or sm in known else "tensorrt"


def _kinds(plans: list[Plan]) -> str:
    """Return '89 and 120 with tensorrt-rtx, 90 with tensorrt'."""
    return ", ".join(
        f"{' and '.join(f'SM{sm}' for sm in plan.sms)} with {plan.target}" for plan in plans
    )


def checked(manifest: Manifest, name: str) -> mmap.mmap:
    """Return the bytes of a plan, which is native code: only what engine.json has the hash of."""
    (listed,) = (file for file in manifest.files if file.path == name)
    path = manifest.directory / name
    try:
        with open(path, "rb", opener=open_without_waiting) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found == listed.sha256 and listed.size:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror}") from error
    raise EngineError(
        f"{path}: sha256 differs: recorded {listed.sha256}, found {found}; it is not loaded: build"
        " it again"
    )


def _logger(trt: Any) -> tuple[Any, deque[str]]:
    """Return a logger, and the last errors that it was told."""
    messages: deque[str] = deque(maxlen=3)

    class Logger(trt.ILogger):
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                messages.append(" ".join(message.split()))

    return Logger(), messages


@cache
def _load_plugins(trt: ModuleType, library: str) -> Any:
    """Register the plugins of a shared library, once in a process.

    The handle is None where they are registered already, or cannot be: then no plan loads, and
    what TensorRT said is told.
    """
    return trt.get_plugin_registry().load_library(library)
