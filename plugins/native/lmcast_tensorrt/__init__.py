"""The library of TensorRT plugins for lmcast's operators: a registry's `load_library` takes it."""

from importlib.metadata import version
from pathlib import Path

__version__ = version("lmcast-tensorrt")

LIBRARY = Path(__file__).with_name("liblmcast_tensorrt.so")
