"""What ONNX Runtime's CUDA provider needs of a machine: its package, libraries, a GPU it knows."""

import ctypes
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from lmcast.exporter.backends import native
from lmcast.exporter.backends.cuda import Cuda, require_gpu
from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.backends.ort import ort
from lmcast.exporter.engine.description import Description

PROVIDER = "CUDAExecutionProvider"
EXTRA = "pip install 'lmcast[cuda]'"
PACKAGES = ("onnxruntime", "onnxruntime-gpu")
# What the provider is linked with, and what it opens where that is there: cuDNN's attention is
# faster for prompts.
LINKED = ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10")
OPENED = ("libnvrtc.so.13", "libcufft.so.12", "libcudnn.so.9")

# Those that ONNX Runtime 1.31's wheel has machine code for; it has no PTX that others could take.
SMS = (80, 86, 89, 90, 120)
BLACKWELL = "--target tensorrt, built on such a GPU, or ONNX Runtime built from its sources"
ELSEWHERE = {
    75: "--target tensorrt-rtx",
    100: BLACKWELL,
    103: BLACKWELL,
    121: "--target tensorrt-rtx",
}
NO_KERNELS = "ONNX Runtime's package has no kernels for such GPUs"
LACKING = {75: "ONNX Runtime has no bfloat16 and no fused attention for such GPUs"}


def require_sm(sm: int) -> None:
    """Raise BackendError for an SM that the package has no kernels for."""
    if sm not in SMS:
        other = f"; there runs {ELSEWHERE[sm]}" if sm in ELSEWHERE else ""
        raise BackendError(
            f"SM{sm}: {LACKING.get(sm, NO_KERNELS)}; accepted: {', '.join(map(str, SMS))}{other}"
        )


def usable(about: Description) -> Cuda:
    """Return the GPU at hand for an engine, with the provider's libraries loaded.

    Raises InputError that says in one line what is missing.
    """
    require_gpu()
    require_package()
    gpu = Cuda()
    require_sm(gpu.sm)
    # Machine code runs on GPUs of its generation that are as new.
    if about.sms and not any(sm // 10 == gpu.sm // 10 and sm <= gpu.sm for sm in about.sms):
        compiled = ", ".join(f"SM{sm}" for sm in sorted(about.sms))
        raise BackendError(
            f"its machine code is for {compiled}, and this GPU, {gpu.name}, is SM{gpu.sm}: export"
            f" again with --sm {gpu.sm}, or without --sm for all"
        )
    need = sum(stored.bytes for stored in about.weights.values())
    if need > (free := gpu.bytes - gpu.used()):
        raise BackendError(
            f"its weights are {need:,} bytes, and this GPU, {gpu.name}, has {free:,} free of"
            f" {gpu.bytes:,}"
        )
    load_libraries()
    if about.sms:
        operators()
    return gpu


def operators() -> str:
    """Return the path of the library with operators of ours; raises BackendError without it."""
    return native.library("its graph, which has operators of ours")


def require_package() -> None:
    """Raise BackendError where ONNX Runtime is installed without its CUDA provider."""
    if PROVIDER in ort.get_available_providers():
        return
    found = [name for name in PACKAGES if _installed(name)]
    if len(found) == len(PACKAGES):
        raise BackendError(
            f"{' and '.join(found)} are both installed, one over the other, and what is left is for"
            f" CPUs: pip uninstall -y {' '.join(found)}, then {EXTRA}"
        )
    raise BackendError(
        f"ONNX Runtime {ort.__version__} is installed for CPUs alone: pip uninstall -y"
        f" {' '.join(found) or PACKAGES[0]}, then {EXTRA}"
    )


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def load_libraries() -> None:
    """Load what the provider links, of the system or of NVIDIA's packages, which it does not look
    into; raises BackendError."""
    for name in LINKED:
        if not load_library(name):
            raise BackendError(
                f"{name}, which ONNX Runtime's CUDA provider links, is not installed: {EXTRA}"
            )
    for name in OPENED:
        load_library(name)


def load_library(name: str) -> bool:
    """Load a shared library of the system or of NVIDIA's packages; say whether it is there."""
    spec = find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    packaged = [path for folder in folders for path in sorted(folder.glob(f"*/lib/{name}"))]
    for path in [name, *map(str, packaged)]:
        try:
            ctypes.CDLL(path)
        except OSError:
            continue
        return True
    return False
