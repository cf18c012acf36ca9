"""The parts, each a file that ends in one PART: what is spoiled, how, and what is right."""

import sys
from importlib import import_module
from pathlib import Path

from fuzz.trial import Part

# Parts compare by what other tests do: fake_tensorrt, fuzz_configs, oracle.
sys.path += [str(Path(__file__).parents[2] / room) for room in ("backends", "graphs", "vision")]

PARTS: dict[str, Part] = {
    path.stem: vars(import_module(f"fuzz.parts.{path.stem}"))["PART"]
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if path.stem != "__init__"
}
