"""What a plan contains, read without a GPU: its graph is stored as text beside the code."""

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
# A value, with the bytes of a constant; or a product, with its operands: x, weight, factors.
LINE = re.compile(
    rb'tensor=\{ [^\n]*?(?:const_payload_size=(\d+) )?dims=[^\n]*? name="([^"\n]*)"[^\n]*type=(\w+)'
    rb'|fully_connected=\{ name="([^"\n]*)" output=[^\n]*? input=\{"([^"\n]*)" "([^"\n]*)"'
)
# layers.0.mixer.q.codes [profile 1]_U47, and the same without either ending.
LAYER = re.compile(r"( \[profile \d+\])?(_U\d+)?$")


@dataclass(frozen=True)
class Plan:
    """The contents of a plan, as far as its bytes tell."""

    sms: tuple[int, ...]
    fused: Mapping[str, int]  # the name of an attention kernel -> how often it is called
    plugins: Mapping[str, int]  # operator of ours -> how many layers are its plugin
    constants: Mapping[str, int]  # number format, as plans name it -> bytes of weights
    products: Mapping[str, frozenset[str]]  # layer -> formats of its operands, 'mixed' of several

    def check(self, request: Request, operators: Mapping[str, Mapping[str, int]]) -> None:
        """Refuse a plan that lacks operators; operators: name -> form -> how many. Raises
        BackendError."""
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

    def check_products(self, products: Mapping[str, str]) -> None:
        """Refuse a plan that multiplies in other formats; products: layer -> format of the
        operands.

        Raises BackendError.
        """
        for name, format in products.items():
            if (found := self.products.get(name, frozenset())) != {format}:
                raise BackendError(
                    f"the plan multiplies {name} in {', '.join(sorted(found)) or 'no known form'},"
                    f" not in {format}: TensorRT took a slower kernel"
                )

    def wider(self, codes: Mapping[str, int]) -> list[str]:
        """Return the weights that the plan stores in wider formats than its graph: same values,
        larger file.

        codes: bytes by format in the graph.
        """
        return [
            f"the plan has {self.constants.get(format, 0):,} bytes of {format} for {size:,} of the"
            " graph: TensorRT stores the others as wider numbers"
            for format, size in codes.items()
            if self.constants.get(format, 0) < size
        ]


def read_plan(path: Path) -> Plan:
    """Return what a plan contains; the file, which may be larger than memory, is streamed."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        sms = {int(sm[2:]) for found in TARGETS.findall(data) for sm in found.split()}
        fused = Counter(name.decode() for name in FUSED.findall(data))
        plugins = {found[1]: found[2].decode() for found in PLUGIN.finditer(data)}
        constants, products = _formats(data)
    return Plan(tuple(sorted(sms)), fused, Counter(plugins.values()), constants, products)


def _formats(data: mmap.mmap) -> tuple[Counter[str], dict[str, frozenset[str]]]:
    """Return the bytes of constants by format, and layer -> formats that it is multiplied in."""
    types, constants = dict[bytes, str](), Counter[str]()
    products = dict[str, frozenset[str]]()
    for found in LINE.finditer(data):
        size, name, kind, layers, *operands = found.groups()
        if layers is None:
            types[name] = kind.decode()
            constants[types[name]] += int(size or 0)
            continue
        first, second = (types.get(operand, "unknown") for operand in operands)
        format = frozenset([first if first == second else "mixed"])
        for layer in layers.decode().split("+"):  # of one input, multiplied together
            layer = LAYER.sub("", layer)
            products[layer] = products.get(layer, frozenset()) | format
    return constants, products
