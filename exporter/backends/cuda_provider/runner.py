"""Engines of target cuda: whether they run here."""

from pathlib import Path
from typing import TYPE_CHECKING

from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.engine.manifest import Manifest

if TYPE_CHECKING:
    from lmcast.exporter.backends.cuda import Cuda
    from lmcast.exporter.backends.runner import Loading, Runner

DRIVERS = ("/dev/nvidiactl", "/dev/dxg")  # on Linux, and on WSL


def absent() -> str:
    """Return why no engine of this target runs here."""
    if any(Path(driver).exists() for driver in DRIVERS):
        return "this lmcast has no runner for target cuda yet"
    return "no NVIDIA GPU is here"


def prepare(manifest: Manifest) -> "Cuda":
    """Raise BackendError: no engine of this target runs here."""
    raise BackendError(
        f"{manifest.directory}: an engine of target cuda, and {absent()}; here `lmcast inspect`,"
        " `verify`, `pack` and `sign` work, and `lmcast export --target cpu` makes an engine that"
        " runs"
    )


def open_runner(manifest: Manifest, loading: "Loading") -> "Runner":
    """Raise BackendError, as `prepare`."""
    prepare(manifest)
    raise AssertionError
