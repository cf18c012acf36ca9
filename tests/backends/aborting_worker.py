"""Stands for the worker that builds plans, where the library ends its process."""

import json
import os

print(json.dumps({"stage": "parsing", "total": None}), flush=True)
print(json.dumps({"message": "layers.0.mixer: internal error"}), flush=True)
os.abort()
