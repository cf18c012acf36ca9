"""Text goes through three models side by side, layer by layer, while one of them is quantized."""

import copy
import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lmcast.calib.recipe import Recipe
from lmcast.exporter.calibrate.layer import VARIANTS, LayerWork, Pair, Settings
from lmcast.exporter.calibrate.measure import compare
from lmcast.exporter.calibrate.streams import Stream
from lmcast.exporter.calibrate.work import Work, install, joined
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.comparison import Measured
from lmcast.exporter.progress import Progress
from lmcast.exporter.quality import weight_bytes
from lmcast.graphs import Definition, fill
from lmcast.graphs.sources import tensors_of


class Run:
    """From the embedding to the logits. Results of layers are in `work`, also those of a run before
    that was killed, whose layers are run again but not quantized again."""

    def __init__(
        self,
        found: Definition,
        source: Checkpoint,
        sample: tuple[Tensor, Tensor],
        settings: Settings,
        work: Work,
    ):
        """sample: ids C,T int64 to calibrate on, and held out."""
        self.found, self.source, self.settings, self.work = found, source, settings, work
        self.quantized, self.reference = _own(found), _own(found)
        pairs = []
        for name, ids in zip(("calibration", "held-out"), sample, strict=True):
            streams = [
                Stream(definition.model, ids, work.folder / f"{name} {kind}")
                for kind, definition in (
                    ("quantized", self.quantized), ("reference", self.reference),
                )
            ]  # fmt: skip
            pairs.append(Pair(*streams))
        self.calibration, self.held = pairs
        self.base = Stream(self.quantized.model, sample[1], work.folder / "base")

    @property
    def layers(self) -> int:
        return len(self.found.model.layers)

    @torch.no_grad()
    def all(self, progress: Progress) -> dict[str, Measured]:
        """Quantize every layer, and return how far each variant is from the unquantized model."""
        self._enter()
        sizes = [sum(p.numel() for p in layer.parameters()) for layer in self.found.model.layers]
        done = sum(self.work.has(index, VARIANTS) for index in range(self.layers))
        if done:
            progress.say(f"{done} of {self.layers} layers are there from a run before")
        with progress.stage("calibrating", sum(sizes)) as step:
            for index, size in enumerate(sizes):
                self._layer(index)
                step(size)
        with progress.stage("comparing"):
            return self._compare()

    def recipes(self, variant: str) -> list[Recipe]:
        return [self.work.get(index, variant).recipe for index in range(self.layers)]

    def _streams(self, definition: Definition) -> list[Stream]:
        every = [
            self.calibration.quantized, self.held.quantized, self.base,
            self.calibration.reference, self.held.reference,
        ]  # fmt: skip
        return [stream for stream in every if stream.model is definition.model]

    def _enter(self) -> None:
        for definition in (self.quantized, self.reference):
            model = definition.model
            with self._filled(definition, model.embed):
                for stream in self._streams(definition):
                    stream.embed()
            if model.side is not None:
                with self._filled(definition, model.side) as side:
                    for stream in self._streams(definition):
                        stream.beside(side)

    def _layer(self, index: int) -> None:
        model = self.quantized.model
        with (
            self._filled(self.reference, self.reference.model.layers[index]),
            self._filled(self.quantized, model.layers[index]),
        ):
            if not self.work.has(index, VARIANTS):
                layer = LayerWork(index, self.calibration, self.held, self.settings)
                report = layer.run()
                for variant in VARIANTS:
                    outcome = layer.outcomes[variant]
                    self.work.put(index, variant, outcome.recipe(report), outcome.values)
            for stream in (self.calibration.reference, self.held.reference):
                stream.advance(index)
            install(model, self.work.get(index, "kept"), self.source)
            for stream in (self.calibration.quantized, self.held.quantized):
                stream.advance(index)
            install(model, self.work.get(index, "base"), self.source)
            self.base.advance(index)

    def _compare(self) -> dict[str, Measured]:
        sizes = {variant: self._bytes(joined(self.recipes(variant))) for variant in VARIANTS}
        sizes["reference"] = weight_bytes(self.found, self.source)
        with (
            self._filled(self.reference, self.reference.model.final),
            self._filled(self.quantized, self.quantized.model.final),
        ):
            others = {"kept": self.held.quantized, "base": self.base}
            return compare(self.held.reference, others, sizes)

    def _bytes(self, recipe: Recipe) -> int:
        """Return the bytes of all weights where some are as a recipe says."""
        shapes = {name: tuple(p.shape) for name, p in self.found.model.named_parameters()}
        rest = weight_bytes(self.found, self.source)
        for name, scheme in recipe.weights.items():
            stored = tensors_of(self.found.binding.sources[name])
            rest += scheme.bytes(shapes[name])
            rest -= sum(self.source.tensors[tensor].nbytes for tensor in set(stored))
        return rest

    @contextmanager
    def _filled(self, definition: Definition, part: nn.Module) -> Iterator[nn.Module]:
        """Give a part of a model its weights for as long as the block runs."""
        fill(definition, part, self.source.read, torch.float32)
        try:
            yield part
        finally:
            part.to("meta")


def bits(recipe: Recipe, found: Definition) -> float:
    """Return the mean size of a weight that a recipe quantizes, scales included."""
    shapes = {name: tuple(found.model.get_parameter(name).shape) for name in recipe.weights}
    numbers = sum(math.prod(shape) for shape in shapes.values())
    total = sum(scheme.bytes(shapes[name]) for name, scheme in recipe.weights.items())
    return 8 * total / numbers if numbers else 0.0


def _own(found: Definition) -> Definition:
    """Return a definition that can have its weights while another has its own."""
    return dataclasses.replace(found, model=copy.deepcopy(found.model.to("meta")))
