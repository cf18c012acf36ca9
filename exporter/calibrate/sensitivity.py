"""Sensitivity: the error that each weight alone causes in each format, which a budget is spent by.

Letters: n tokens, W width of hidden states.

With all other weights unquantized: the squared change of the hidden states W after the weight's
layer, relative to their squared size, mean over n held-out tokens. Codes are the nearest ones,
which is cheap; calibrated ones lose less in every format. Every layer counts the same, and so does
every token, so that the few with huge states (often the first ones) do not decide alone.
"""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lmcast.calib.algorithms.candidate import fitted
from lmcast.calib.budget import Option, candidates
from lmcast.calib.formats import WEIGHTS
from lmcast.calib.observers import static_scale
from lmcast.calib.presets import PLAIN, Preset
from lmcast.calib.statistics import InputStatistics
from lmcast.exporter.calibrate.hidden_states import Stream
from lmcast.exporter.calibrate.units import Unit, refused, units
from lmcast.exporter.calibrate.work import filled, round_inputs
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.progress import Progress
from lmcast.graphs import Definition
from lmcast.graphs.weights.sources import tensors_of

TOKENS = 1024  # held-out ones that a layer goes through once for each weight and format
WORST = 1e30  # an error that is no number


@torch.no_grad()
def sensitivity(
    found: Definition,
    source: Checkpoint,
    ids: Tensor,
    preset: Preset,
    observer: str,
    file: Path,
    progress: Progress,
) -> dict[str, list[Option]]:
    """Return the options of every weight that can be quantized in some candidate's format.

    ids C,T int64: held-out chunks. file: where many activations lie meanwhile; not those of TOKENS.
    """
    found = dataclasses.replace(found, model=copy.deepcopy(found.model.to("meta")))
    model, stored = found.model, stored_bytes(found, source)
    stream = Stream(model, ids[: max(1, TOKENS // ids.shape[1]), :TOKENS], file)
    with filled(found, model.embed, source):
        stream.embed()
    if model.side is not None:
        with filled(found, model.side, source) as side:
            stream.beside(side)
    options: dict[str, list[Option]] = {}
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in model.layers]
    with progress.stage("measuring what each weight costs", sum(sizes)) as step:
        for index, layer in enumerate(model.layers):
            with filled(found, layer, source):
                options |= _Layer(stream, index, preset, observer).options(stored)
                stream.advance(index)
            step(sizes[index])
    return options


def stored_bytes(found: Definition, source: Checkpoint) -> dict[str, float]:
    """Return the bytes of each parameter as it is stored; tensors of several are shared out."""
    sizes = {name: p.numel() for name, p in found.model.named_parameters()}
    used = {name: set(tensors_of(found.binding.sources[name])) for name in sizes}
    all_of: dict[str, int] = {}
    for name, tensors in used.items():
        for tensor in tensors:
            all_of[tensor] = all_of.get(tensor, 0) + sizes[name]
    return {
        name: sum(source.tensors[t].nbytes * sizes[name] / all_of[t] for t in sorted(tensors))
        for name, tensors in used.items()
    }


class _Layer:
    """A layer that has its weights, with the stream in front of it."""

    def __init__(self, stream: Stream, index: int, preset: Preset, observer: str):
        self.stream, self.index, self.preset, self.observer = stream, index, preset, observer
        self.wanted = self._outputs()

    def options(self, stored: Mapping[str, float]) -> dict[str, list[Option]]:
        found: dict[str, list[Option]] = {}
        for unit in units(self.stream, self.index):
            scale = self._scale(unit)
            for leaf in unit.parameters(self.stream.layers[self.index]):
                parameter = f"layers.{self.index}.{leaf}"
                made = self._quantized(parameter, unit, scale)
                if made:
                    found[parameter] = [*made, Option(None, stored[parameter], 0.0)]
        return found

    def _quantized(self, parameter: str, unit: Unit, scale: Tensor | None) -> list[Option]:
        model, options = self.stream.model, list[Option]()
        inputs = PLAIN if unit.experts else self.preset.inputs
        weight = model.get_parameter(parameter).clone()
        shape = tuple(weight.shape)
        for name in candidates(self.preset.weights):
            format = WEIGHTS[name]
            if refused(shape, format, inputs) is not None:
                continue
            packed = format.pack(fitted(weight, inputs, None))
            model.get_parameter(parameter).copy_(packed.dequantize())
            if not unit.experts:
                round_inputs(model, parameter.removesuffix(".weight"), inputs, None, scale)
            options.append(Option(name, format.scheme.bytes(shape), self._error()))
            model.get_parameter(parameter).copy_(weight)
            if not unit.experts:
                round_inputs(model, parameter.removesuffix(".weight"), PLAIN)
        return options

    def _error(self) -> float:
        shares = []
        for wanted, found in zip(self.wanted, self._outputs(), strict=True):
            size = wanted.square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)
            shares.append(((found - wanted).square().sum(-1) / size).flatten())
        error = float(torch.cat(shares).mean())
        return error if error < WORST else WORST

    def _outputs(self) -> list[Tensor]:
        return [self.stream.output(self.index, batch) for batch in range(len(self.stream.parts))]

    def _scale(self, unit: Unit) -> Tensor | None:
        """Return the scale of static inputs of a unit; None where they have none."""
        inputs = self.preset.inputs
        if unit.experts or inputs.format is None or not inputs.static:
            return None
        statistics: InputStatistics | None = None
        for calls in self.stream.calls(self.index, unit.names[:1]):
            for _, (x, *_) in calls:
                statistics = statistics or InputStatistics(x.shape[-1])
                statistics.add(x.flatten(0, -2))
        assert statistics is not None, "a stream without chunks"
        return torch.tensor(static_scale(statistics, inputs.format, self.observer))
