"""What a plan says of itself. No GPU is needed: a plan holds its graph as text beside the code."""

import mmap
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.backends.tensorrt.request import Request

TARGETS = re.compile(rb"accelerators=\{ *((?:sm\d+ *)+)\}")
# layers.1.ffn.experts.moe_experts [profile 1]_U133, and the same without either ending.
PLUGIN = re.compile(rb'custom_layer=\{ name="([^"]*?\.([a-z_]+?)(?:_\d+)?)(?: \[|_U\d+"|")')
FUSED = re.compile(rb"function=\{ name=(_\w+mha\w*)")


@dataclass(frozen=True)
class Plan:
    """What was found in the bytes of a plan."""

    sms: tuple[int, ...]
    fused: Mapping[str, int]  # the name of an attention kernel -> how often it is called
    plugins: Mapping[str, int]  # operator of ours -> how many layers are its plugin

    def check(self, request: Request, operators: Mapping[str, Mapping[str, int]]) -> None:
        """Refuse a plan that lacks what it should have; operators: name -> form -> how many.

        Raises BackendError.
        """
        if self.sms != request.sms:
            raise BackendError(f"the plan is for SMs {list(self.sms)}, not {list(request.sms)}")
        for name, forms in operators.items():
            if self.plugins.get(name, 0) != forms.get("plugin", 0):
                raise BackendError(
                    f"the plan has {self.plugins.get(name, 0)} plugins {name} for"
                    f" {forms.get('plugin', 0)} of the graph: TensorRT took another form"
                )
        attentions = sum(forms.get("native", 0) for forms in operators.values())
        if sum(self.fused.values()) < attentions:
            raise BackendError(
                f"the plan calls {sum(self.fused.values())} kernels of fused attention for"
                f" {attentions} of the graph: TensorRT took slower ones for the others"
            )


def read_plan(path: Path) -> Plan:
    """Return what a plan says; it may be larger than memory, and is only looked through."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        sms = {int(sm[2:]) for found in TARGETS.findall(data) for sm in found.split()}
        fused = Counter(name.decode() for name in FUSED.findall(data))
        plugins = {found[1]: found[2].decode() for found in PLUGIN.finditer(data)}
    return Plan(tuple(sorted(sms)), fused, Counter(plugins.values()))
