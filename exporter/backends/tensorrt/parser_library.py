"""The library that the parser of TensorRT for RTX looks for, under the name that it looks for."""

import ctypes
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

PLUGINS = "lmcast_tensorrt"  # holds the library; without it there are no plugins to parse
OPENED = "libtensorrt_rtx.so"


def provide_parser_library(module: ModuleType) -> None:
    """Make the parser of `module`, TensorRT as imported, take plugins where there are any.

    That of TensorRT for RTX 1.7 opens libtensorrt_rtx.so when it meets the first one, and NVIDIA's
    packages hold libtensorrt_rtx.so.1 alone: the process would end there. The loader knows what is
    loaded by the name inside of it, which no link to a file changes. So lmcast_tensorrt holds an
    empty library of that name, which needs the real one and so leads to its functions.
    """
    plugins = find_spec(PLUGINS)
    if module.__name__ == "tensorrt_rtx" and plugins is not None:
        assert plugins.origin is not None  # a package with an __init__.py
        ctypes.CDLL(str(Path(plugins.origin).with_name(OPENED)))
