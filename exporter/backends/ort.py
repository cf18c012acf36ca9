"""ONNX Runtime, imported here and nowhere else, with its telemetry off.

Version 1.31 writes a device id and a queue of events below ~/.cache, and sends them to its makers.
Only an environment variable before the first import prevents that: disable_telemetry_events() comes
after the files are written. A user's own ORT_DISABLE_TELEMETRY is respected.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

__all__ = ["ort"]
