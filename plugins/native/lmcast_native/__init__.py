"""The library of lmcast's operators for runtimes on NVIDIA GPUs.

TensorRT's registry of plugins loads it (`load_library`), and options of ONNX Runtime's sessions
(`register_custom_ops_library`).
"""

from importlib.metadata import version
from pathlib import Path

__version__ = version("lmcast-native")

LIBRARY = Path(__file__).with_name("liblmcast_native.so")
