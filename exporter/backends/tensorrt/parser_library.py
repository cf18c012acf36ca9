"""The library that the parser of TensorRT for RTX opens, under the name that it uses."""

import ctypes
from types import ModuleType

from lmcast.exporter.backends.native import beside_library

OPENED = "libtensorrt_rtx.so"


def provide_parser_library(module: ModuleType) -> None:
    """Make the parser of `module`, the imported TensorRT, able to load plugins.

    With its first plugin, that of TensorRT for RTX 1.7 opens libtensorrt_rtx.so, but NVIDIA's
    packages have only libtensorrt_rtx.so.1: the process would end there. The loader identifies
    libraries by the SONAME inside, which a link cannot change. So lmcast_native has an empty
    library of that name that depends on the real one.
    """
    empty = beside_library(OPENED)  # without the package there are no plugins to parse
    if module.__name__ == "tensorrt_rtx" and empty is not None:
        ctypes.CDLL(str(empty))
