"""The two TensorRT libraries: finding each, and what it can build here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from types import ModuleType

from lmcast.exporter.backends.cuda import local_sm
from lmcast.exporter.backends.onnxruntime import BackendError


@dataclass(frozen=True)
class Library:
    """One of NVIDIA's TensorRT packages, by the name of the target that its plans are for."""

    target: str
    module: str  # as Python imports it
    extra: str  # of lmcast, that installs it
    shared: str  # the file that its parser opens by name; the package has it with a version behind


LIBRARIES: Mapping[str, Library] = {
    library.target: library
    for library in (
        Library("tensorrt-rtx", "tensorrt_rtx", "rtx", "libtensorrt_rtx.so"),
        Library("tensorrt", "tensorrt", "tensorrt", "libnvinfer.so"),
    )
}


def require(target: str) -> Library:
    """Return the library of a target; raises BackendError if it is not installed."""
    library = LIBRARIES[target]
    if find_spec(library.module) is None:
        raise BackendError(
            f"target {target} needs the package {library.module}, which is not installed:"
            f" pip install 'lmcast[{library.extra}]'"
        )
    return library


def load(library: Library) -> ModuleType:
    """Import a library; raises BackendError where it is damaged or for another machine."""
    try:
        return import_module(library.module)
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise BackendError(f"{library.module} cannot be loaded: {reason}") from error


def choose_sms(library: Library, asked: tuple[int, ...]) -> tuple[int, ...]:
    """Return the SMs to build for, by default of the GPU at hand; raises BackendError."""
    known, here = capabilities(load(library)), local_sm()
    if not known:  # the library builds for the GPU that it runs on, and for no other
        if here is None:
            raise BackendError(
                f"target {library.target} is built on a GPU of the kind it is for, and none is"
                f" here: export with --target onnx, and run `lmcast build ENGINE --target"
                f" {library.target}` there"
            )
        known = [here]
    accepted = ", ".join(map(str, known))
    if not asked and here is None:
        raise BackendError(f"no GPU is here: --sm says which ones the plan is for: {accepted}")
    sms = asked or (here,)
    for sm in sms:
        if sm not in known:
            raise BackendError(
                f"SM{sm}: {library.target} builds no plan for it here; accepted: {accepted}"
                f"{_elsewhere(library, sm)}"
            )
    return tuple(sm for sm in sms if sm is not None)


def _elsewhere(library: Library, sm: int | None) -> str:
    """Say which other target has plans for an SM that this one lacks."""
    if library.target == "tensorrt-rtx" and sm in (90, 100, 103):  # data-centre GPUs
        return f"; SM{sm} is of --target tensorrt, built on such a GPU"
    return ""


def cuda_version(library: Library) -> int | None:
    """Return the CUDA version that a library's package is for, whose drivers its plans need."""
    names = packages_distributions().get(library.module, [])
    found = [int(match[1]) for name in names if (match := re.search(r"cu(\d+)$", name))]
    return found[0] if found else None


def capabilities(trt: ModuleType) -> list[int]:
    """Return the SMs that plans can be built for with no GPU at hand: 89 for SM89; may be none."""
    kinds = getattr(trt, "ComputeCapability", None)
    names = [] if kinds is None else kinds.__members__
    return sorted(int(name[2:]) for name in names if name.startswith("SM"))
