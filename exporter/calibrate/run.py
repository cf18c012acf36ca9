"""One calibration: text through three models side by side, layer by layer."""

import copy
import dataclasses
import math
import time
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from lmcast.calib.recipe import Recipe
from lmcast.exporter.calibrate.caches import scales
from lmcast.exporter.calibrate.head import head_of, is_tied, quantized_head
from lmcast.exporter.calibrate.hidden_states import MIXER, Stream
from lmcast.exporter.calibrate.layer import VARIANTS, LayerWork, Settings, Sight, record
from lmcast.exporter.calibrate.measure import compare
from lmcast.exporter.calibrate.units import units
from lmcast.exporter.calibrate.work import Work, filled, hold_cache, install, joined
from lmcast.exporter.checkpoint.tensors import Checkpoint
from lmcast.exporter.progress import Progress
from lmcast.exporter.prove.divergence import Measured
from lmcast.exporter.prove.quality import weight_bytes
from lmcast.graphs import Definition
from lmcast.graphs.weights.sources import tensors_of


class Run:
    """A pass from the embedding to the logits, with one part of the model in memory.

    Results of layers are in `work`, also those of an earlier run that was killed: such layers run
    again, but are not quantized again.
    """

    def __init__(
        self,
        found: Definition,
        source: Checkpoint,
        sample: tuple[Tensor, Tensor],
        settings: Settings,
        work: Work,
    ):
        """sample: ids C,T int64 to calibrate on, and held out."""
        self.source, self.settings, self.work = source, settings, work
        self.found = found = dataclasses.replace(found, model=copy.deepcopy(found.model.to("meta")))

        def streams(name: str) -> list[Stream]:
            files = [work.folder / f"{name} {part}" for part in ("calibration", "held-out")]
            return [Stream(found.model, *given) for given in zip(sample, files, strict=True)]

        self.reference, self.kept = streams("reference"), streams("kept")
        self.base = Stream(found.model, sample[1], work.folder / "base")

        self.head = head_of(found.model) if settings.head else None

    @property
    def layers(self) -> int:
        return len(self.found.model.layers)

    @property
    def parts(self) -> int:
        """How many results `work` has: of the layers, and then of the head."""
        return self.layers + (self.head is not None)

    @torch.no_grad()
    def all(self, progress: Progress) -> dict[str, Measured]:
        """Quantize every layer; return the divergence of each variant from the unquantized
        model."""
        began, tokens = time.monotonic(), sum(stream.ids.numel() for stream in self.reference)
        progress.say(f"calibrating {self.layers} layers, {tokens:,} tokens through each")
        self._enter()
        sizes = [sum(p.numel() for p in layer.parameters()) for layer in self.found.model.layers]
        done = sum(self.work.has(index, VARIANTS) for index in range(self.layers))
        if done:
            progress.say(f"{done} of {self.layers} layers are there from a run before")
        with progress.stage("calibrating", sum(sizes)) as step:
            for index, size in enumerate(sizes):
                self._layer(index)
                step(size)
                seconds = time.monotonic() - began
                progress.say(f"layer {index + 1} of {self.layers} is done after {seconds:.0f} s")
        with progress.stage("comparing"):
            return self._compare()

    def recipes(self, variant: str) -> list[Recipe]:
        return [self.work.get(index, variant).recipe for index in range(self.parts)]

    def _enter(self) -> None:
        model, others = self.found.model, [*self.kept, self.base]
        tied = self.head is not None and is_tied(model, self.head)
        with self._filled(model.embed):
            for stream in self.reference:
                stream.embed()
            if tied:
                self._quantize_head()
            for stream in others:
                stream.embed()
        if model.side is not None:
            with self._filled(model.side) as side:
                for stream in [*self.reference, *others]:
                    stream.beside(side)

    def _layer(self, index: int) -> None:
        model = self.found.model
        with self._filled(model.layers[index]):
            if self.work.has(index, VARIANTS):
                for stream in self.reference:
                    stream.advance(index)
            else:
                self._quantize(index)
            install(model, self.work.get(index, "kept"), self.source)
            for stream in self.kept:
                stream.advance(index)
            install(model, self.work.get(index, "base"), self.source)
            self.base.advance(index)

    def _quantize(self, index: int) -> None:
        parts = units(self.reference[1], index)  # mostly the shorter text
        kv = self.settings.kv
        held_by = scales(self.reference[0], index, self.settings.observer) if kv else None
        calibration, held = (
            Sight(kept, record(reference, index, parts, reference.file))
            for kept, reference in zip(self.kept, self.reference, strict=True)
        )
        layer = LayerWork(index, parts, calibration, held, self.settings)
        if kv and held_by:
            name = f"layers.{index}.{MIXER}"
            hold_cache(self.found.model, name, kv, *held_by)  # for what is multiplied behind it
            for outcome in layer.outcomes.values():
                outcome.hold(name, kv, held_by)
        report = layer.run()
        for variant, outcome in layer.outcomes.items():
            self.work.put(index, variant, outcome.recipe(report), outcome.values)

    def _quantize_head(self) -> None:
        """Give the head the weights that are written of it, in both variants."""
        assert self.head is not None and self.settings.preset is not None
        if not self.work.has(self.layers, VARIANTS):
            outcome, record = quantized_head(self.found.model, self.head, self.settings.preset)
            recipe = outcome.recipe({"weights": [record], "left": {}, "experts": []})
            for variant in VARIANTS:
                self.work.put(self.layers, variant, recipe, outcome.values)
        install(self.found.model, self.work.get(self.layers, "kept"), self.source)

    def _compare(self) -> dict[str, Measured]:
        with self._filled(self.found.model.final) as final:
            unquantized = final
            if self.head is not None:
                unquantized = copy.deepcopy(final)
                self._quantize_head()
            sizes = {variant: self._bytes(joined(self.recipes(variant))) for variant in VARIANTS}
            sizes["reference"] = weight_bytes(self.found.binding, self.source)
            others = {"kept": self.kept[1], "base": self.base}
            return compare((self.reference[1], unquantized), others, final, sizes)

    def _bytes(self, recipe: Recipe) -> int:
        """Return the bytes of all weights where some are as a recipe says."""
        shapes = {name: tuple(p.shape) for name, p in self.found.model.named_parameters()}
        rest = weight_bytes(self.found.binding, self.source)
        for name, scheme in recipe.weights.items():
            stored = tensors_of(self.found.binding.sources[name])
            rest += scheme.bytes(shapes[name])
            rest -= sum(self.source.tensors[tensor].nbytes for tensor in set(stored))
        return rest

    def _filled(self, part: nn.Module) -> AbstractContextManager[nn.Module]:
        return filled(self.found, part, self.source)


def bits(recipe: Recipe, found: Definition) -> float:
    """Return the mean size of a weight that a recipe quantizes, scales included."""
    shapes = {name: tuple(found.model.get_parameter(name).shape) for name in recipe.weights}
    numbers = sum(math.prod(shape) for shape in shapes.values())
    total = sum(scheme.bytes(shapes[name]) for name, scheme in recipe.weights.items())
    return 8 * total / numbers if numbers else 0.0
