"""The weights of a layer that can be quantized, in the order in which they are used."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from lmcast.calib.formats import WeightFormat
from lmcast.exporter.calibrate.experts import STACKS
from lmcast.exporter.calibrate.hidden_states import Stream
from lmcast.graphs.blocks.moe import Experts
from lmcast.graphs.blocks.quantized import InputFormat
from lmcast.plugins.quantize.quantize_input import BLOCKS

FEWEST_OUTPUTS = 32  # gates and the like: little to gain, and much depends on them


@dataclass(frozen=True)
class Unit:
    """Modules of a layer that are called with the same tensor, by their names in the layer.

    calls: how often, all together. experts: the only module is a stack of experts.
    """

    names: tuple[str, ...]
    calls: int
    experts: bool

    def parameters(self, layer: nn.Module) -> list[str]:
        """Return the weights of the unit, by their names in its layer."""
        if not self.experts:
            return [f"{name}.weight" for name in self.names]
        (name,) = self.names
        stacks = layer.get_submodule(name)
        return [f"{name}.{leaf}" for leaf in STACKS if getattr(stacks, leaf) is not None]


def units(stream: Stream, index: int) -> list[Unit]:
    """Return the units of a layer in the order of their first calls.

    The layer has its weights, and the stream is at its input.
    """
    layer = stream.layers[index]
    named = dict(layer.named_modules())
    open_ = {name: 0 for name, module in named.items() if isinstance(module, nn.Linear | Experts)}
    (seen,) = stream.calls(index, open_, batches=1)
    places: dict[str, list[int]] = {}
    for name, (x, *_) in seen:
        places.setdefault(name, []).append(id(x))  # `seen` holds x, so that no other has its id
    groups: dict[tuple[int | str, ...], list[str]] = {}
    for name, found in places.items():
        shared = len(found) == 1 and not isinstance(named[name], Experts)
        groups.setdefault((found[0],) if shared else (name,), []).append(name)
    return [
        Unit(tuple(names), sum(len(places[name]) for name in names),
             isinstance(named[names[0]], Experts))
        for names in groups.values()
    ]  # fmt: skip


def refused(shape: tuple[int, ...], format: WeightFormat, inputs: InputFormat) -> str | None:
    """Return why a weight ...,N,K stays unquantized; None where it can be quantized."""
    outputs, width = shape[-2:]
    if len(shape) == 2 and outputs < FEWEST_OUTPUTS:
        return f"{outputs} outputs: fewer than {FEWEST_OUTPUTS}"
    runs = format.scheme.block[1] or 8 // format.scheme.bits
    for what, run in (
        ("the format's", runs),
        ("the rotation's", inputs.rotation or 1),
        ("the inputs'", (BLOCKS[inputs.format] if inputs.format else 0) or 1),
    ):
        if width % run:
            return f"{width} inputs: no multiple of {what} {run}"
    return None


def left_over(model: nn.Module, quantized: frozenset[str]) -> Iterator[str]:
    """Yield the matrices that stay unquantized."""
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and name not in quantized:
            yield name
