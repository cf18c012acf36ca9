"""Quantization of one layer, weight by weight in the order of use.

Letters: n rows (tokens), N rows and K columns of a weight.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmcast.calib.formats import WEIGHTS
from lmcast.calib.presets import Preset
from lmcast.calib.recipe import Recipe, tensors
from lmcast.calib.statistics import InputStatistics
from lmcast.exporter.calibrate.choice import HELD_ROWS, Choice, Held, choose, weight_only
from lmcast.exporter.calibrate.experts import Tokens, quantize, stacked
from lmcast.exporter.calibrate.hidden_states import MIXER, Call, Stream, room
from lmcast.exporter.calibrate.units import Unit, refused
from lmcast.exporter.calibrate.work import round_inputs
from lmcast.graphs.blocks.kv_cache_format import Fp8Cache
from lmcast.graphs.blocks.moe import Experts
from lmcast.graphs.blocks.quantized import InputFormat
from lmcast.graphs.weights.quantized import Quantized, Scheme

VARIANTS = ("kept", "base")


@dataclass(frozen=True)
class Settings:
    """How layers are quantized.

    preset: None leaves all weights unquantized.
    fewest_tokens: that an expert needs for statistics of its own.
    scratch: directory for files of many activations.
    formats: parameter -> the format that it has instead of the preset's, None for unquantized.
    head: whether the output head is quantized too.
    kv: the format of cached keys and values, None for that of the model.
    """

    preset: Preset | None
    observer: str
    fewest_tokens: int
    scratch: Path
    formats: Mapping[str, str | None] = field(default_factory=dict)
    head: bool = False
    kv: str | None = None

    def preset_of(self, parameter: str) -> Preset | None:
        """Return how a weight is quantized, None for not at all."""
        if self.preset is None:
            return None
        format = self.formats.get(parameter, self.preset.weights)
        return None if format is None else replace(self.preset, weights=format)


@dataclass(frozen=True)
class Sight:
    """A stream at the input of a layer that is being quantized, with the inputs n,K of the
    layer's linear units in the unquantized model, by the first name of a unit."""

    stream: Stream
    reference: Mapping[str, Tensor]

    def inputs(self, index: int, unit: Unit) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the inputs of a unit, n,K, batch by batch, in both models."""
        name, done = unit.names[0], 0
        calls = unit.calls if len(unit.names) == 1 else 1
        for seen in self.stream.calls(index, [name], calls):
            x = _rows(seen)
            yield x, self.reference[name][done : done + len(x)]
            done += len(x)


def record(stream: Stream, index: int, units: Iterable[Unit], file: Path) -> dict[str, Tensor]:
    """Run a layer, and return the inputs n,K of each unit of linear layers.

    file: prefix of the files that large ones are stored in.
    """
    names = [unit.names[0] for unit in units if not unit.experts]
    kept: dict[str, Tensor] = {}
    done = dict.fromkeys(names, 0)
    for batch, calls in enumerate(stream.calls(index, names, advance=True)):
        tokens = stream.ids[stream.parts[batch]].numel()
        for number, name in enumerate(names):
            x = _rows([call for call in calls if call[0] == name])
            if name not in kept:
                rows = len(x) * stream.ids.numel() // tokens
                kept[name] = room((rows, x.shape[1]), file.with_name(f"{file.name} {number}"))
            kept[name][done[name] : done[name] + len(x)] = x
            done[name] += len(x)
    return kept


def _rows(calls: Iterable[Call]) -> Tensor:
    return torch.cat([x.flatten(0, -2) for _, (x, *_) in calls])


@dataclass
class Outcome:
    """What is written of a layer in one variant."""

    weights: dict[str, Scheme] = field(default_factory=dict)
    inputs: dict[str, InputFormat] = field(default_factory=dict)
    caches: dict[str, str] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)

    def add(self, parameter: str, quantized: Quantized) -> None:
        assert not quantized.divides and quantized.zeros is None
        self.weights[parameter] = quantized.scheme
        layout = tensors(parameter, quantized.scheme)
        self.values |= {layout.packed: quantized.codes, layout.scales: quantized.scales}
        if layout.shared is not None and quantized.shared is not None:
            self.values[layout.shared] = quantized.shared.float()

    def round(self, layer: str, inputs: InputFormat, smooth: Any, scale: Any) -> None:
        if inputs == InputFormat():
            return
        self.inputs[layer] = inputs
        for name, value in (("smooth", smooth), ("input_scale", scale)):
            if value is not None:
                self.values[f"{layer}.{name}"] = value.float()

    def hold(self, attention: str, format: str, scales: tuple[Tensor, Tensor]) -> None:
        self.caches[attention] = format
        at = (f"{attention}.cache.{leaf}" for leaf in Fp8Cache.wide)
        self.values |= dict(zip(at, scales, strict=True))

    def recipe(self, report: Mapping[str, Any]) -> Recipe:
        return Recipe(self.weights, self.inputs, self.caches, report)


class LayerWork:
    """Quantizes a layer that has its weights, in place."""

    def __init__(
        self, index: int, units: list[Unit], calibration: Sight, held: Sight, settings: Settings
    ):
        self.index, self.units, self.settings = index, units, settings
        self.calibration, self.held = calibration, held
        self.model = calibration.stream.model
        self.outcomes = {variant: Outcome() for variant in VARIANTS}
        self.records: list[dict[str, Any]] = []
        self.left: dict[str, str] = {}
        self.experts: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        """Fill `outcomes`; return the layer's part of the report."""
        mixing = [unit for unit in self.units if unit.names[0].startswith(f"{MIXER}.")]
        for unit in self.units:
            if unit.experts:
                self._experts(unit)
            else:
                self._linears(unit)
            if mixing and unit is mixing[-1]:
                for sight in (self.calibration, self.held):
                    sight.stream.settle()
        return {"weights": self.records, "left": self.left, "experts": self.experts}

    def _linears(self, unit: Unit) -> None:
        presets = self._presets(unit)
        if not presets:
            return
        statistics, held = self._seen(unit), self._held(unit)
        for leaf, preset in presets.items():
            parameter = f"layers.{self.index}.{leaf}"
            layer = parameter.removesuffix(".weight")
            weight = self.model.get_parameter(parameter)
            choice = choose(weight, statistics, held, preset, self.settings.observer)
            self.records.append(_record(parameter, choice))
            for variant in VARIANTS:
                candidate = getattr(choice, variant).candidate
                self.outcomes[variant].add(parameter, candidate.quantized)
                inputs = replace(choice.inputs, smooth=candidate.smooth is not None)
                self.outcomes[variant].round(layer, inputs, candidate.smooth, choice.scale)
            kept = choice.kept.candidate
            with torch.no_grad():
                weight.copy_(kept.quantized.dequantize())
            inputs = replace(choice.inputs, smooth=kept.smooth is not None)
            round_inputs(self.model, layer, inputs, kept.smooth, choice.scale)

    def _presets(self, unit: Unit) -> dict[str, Preset]:
        """Return the presets of a unit's weights, by their names in the layer; without
        unquantized ones."""
        leaves = unit.parameters(self.model.layers[self.index])
        found = {leaf: self._preset(f"layers.{self.index}.{leaf}") for leaf in leaves}
        return {leaf: preset for leaf, preset in found.items() if preset is not None}

    def _preset(self, parameter: str) -> Preset | None:
        """Return the preset of a weight; None where it stays unquantized, which is then
        recorded."""
        preset = self.settings.preset_of(parameter)
        if preset is None:
            return None
        weight = self.model.get_parameter(parameter)
        if weight.dim() == 3:
            preset = weight_only(preset)
        why = refused(tuple(weight.shape), WEIGHTS[preset.weights], preset.inputs)
        if why is not None:
            self.left[parameter] = why
            return None
        return preset

    def _seen(self, unit: Unit) -> InputStatistics:
        statistics: InputStatistics | None = None
        for x, reference in self.calibration.inputs(self.index, unit):
            statistics = statistics or InputStatistics(x.shape[-1])
            statistics.add(x, reference)
        assert statistics is not None, "a stream without chunks"
        return statistics

    def _held(self, unit: Unit) -> Held:
        rows = self.held.stream.ids.numel() * unit.calls // len(unit.names)
        every = max(1, rows // HELD_ROWS)
        pairs = [
            (x[::every].clone(), reference[::every].clone())
            for x, reference in self.held.inputs(self.index, unit)
        ]
        x, reference = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return Held(x, reference)

    def _experts(self, unit: Unit) -> None:
        (name,) = unit.names
        path = f"layers.{self.index}.{name}"
        stacks = self.model.get_submodule(path)
        assert isinstance(stacks, Experts)
        presets = {leaf.rpartition(".")[2]: preset for leaf, preset in self._presets(unit).items()}
        if not presets:
            return
        file = self.settings.scratch / "tokens"
        tokens = Tokens.of(self.calibration.stream, self.index, name, stacks.scale_input, file)
        held = Tokens.of(self.held.stream, self.index, name, stacks.scale_input,
                         file.with_name("held tokens"))  # fmt: skip
        found = quantize(stacks, tokens, held, presets, self.settings.fewest_tokens)
        for leaf, choices in found.choices.items():
            self._stack(f"{path}.{leaf}", choices)
        self.experts.append({"name": path, **found.coverage})

    def _stack(self, parameter: str, choices: list[Choice]) -> None:
        for variant in VARIANTS:
            parts = [getattr(choice, variant).candidate.quantized for choice in choices]
            self.outcomes[variant].add(parameter, stacked(parts))
        self.records += [
            _record(parameter, choice) | {"expert": e} for e, choice in enumerate(choices)
        ]


def _record(parameter: str, choice: Choice) -> dict[str, Any]:
    return {
        "name": parameter,
        "algorithm": choice.kept.algorithm,
        "error": choice.kept.error,
        "base_error": choice.base.error,
    }
