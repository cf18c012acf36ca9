"""The library that the parser of TensorRT for RTX opens, under the name that it uses."""

import ctypes
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

PLUGINS = "lmcast_tensorrt"  # holds the library; without it there are no plugins to parse
OPENED = "libtensorrt_rtx.so"


def provide_parser_library(module: ModuleType) -> None:
    """Make the parser of `module`, the imported TensorRT, able to load plugins.

    With its first plugin, that of TensorRT for RTX 1.7 opens libtensorrt_rtx.so, but NVIDIA's
    packages have only libtensorrt_rtx.so.1: the process would end there. The loader identifies
    libraries by the SONAME inside, which a link cannot change. So lmcast_tensorrt has an empty
    library of that name that depends on the real one.
    """
    plugins = find_spec(PLUGINS)
    if module.__name__ == "tensorrt_rtx" and plugins is not None:
        assert plugins.origin is not None  # a package with an __init__.py
        ctypes.CDLL(str(Path(plugins.origin).with_name(OPENED)))
