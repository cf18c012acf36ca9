"""The package with the library that runs our kernels inside other runtimes (plugins/native)."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from lmcast.exporter.backends.onnxruntime import BackendError

PACKAGE = "lmcast_native"
INSTALL = "lmcast-native (in the sources: pip install ./plugins/native)"


def library(needed_by: str) -> str:
    """Return the path of the shared library.

    Raises BackendError where the package is not installed; needed_by: what needs it, and for what.
    """
    if find_spec(PACKAGE) is None:
        raise BackendError(
            f"{needed_by}, needs the package {PACKAGE}, which is not installed: pip install"
            f" {INSTALL}"
        )
    return str(import_module(PACKAGE).LIBRARY)


def beside_library(name: str) -> Path | None:
    """Return the path of another file of the package, None where it is not installed."""
    found = find_spec(PACKAGE)
    return Path(found.origin).with_name(name) if found and found.origin else None
