"""Multimodal checkpoints, and texts taken out of them: finding the text model and its tensors."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks.altup import Spread
from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.config.inert import Inert, at_any_value
from lmcast.graphs.config.older_spellings import with_theta
from lmcast.graphs.config.reading import ConfigError, UnreadKeys, refuse_unread
from lmcast.graphs.towers.record import TowerArch
from lmcast.graphs.weights.bind import Table, moved, root_of
from lmcast.graphs.weights.quantized import Shapes, WeightError
from lmcast.graphs.weights.text_names import HUB, MODULES, Layout

TIE = "tie_word_embeddings"
MARKS: Mapping[Layout | None, tuple[str, ...]] = {
    HUB: ("language_model.",),
    MODULES: ("model.language_model.",),
}


# Kinds of towers, and the Config of each.
Towers = Sequence[tuple[TowerArch, Any]]


@dataclass(frozen=True)
class Text:
    """A text model that may stand in text_config.

    `defaults` are what Hugging Face takes where text_config is silent, of the keys that a text
    checkpoint must have: transformers 4 left out what equals a default. `theta`, likewise, is the
    rope_theta, of those that do not have one for each kind of layer.
    """

    arch: Arch
    defaults: Mapping[str, Any]
    theta: float | None = None


@dataclass(frozen=True, kw_only=True)
class Multimodal:
    """A multimodal architecture: a text model, and models of images and sound beside it."""

    name: str  # the model_type
    texts: Mapping[str, Text]  # by the model_type of text_config; the first where it has none
    inert: Inert  # keys of config.json beside text_config: what concerns the other models only
    beside: tuple[str, ...]  # modules of the other models
    tied: bool  # whether Hugging Face ties where config.json is silent and no head is stored
    tower: TowerArch | None = None  # the model of images that is built; None where none is
    audio: TowerArch | None = None  # that of sound, likewise

    def text(
        self,
        config: Mapping[str, Any],
        shapes: Shapes,
        inert: Collection[str] = (),
        towers: Towers = (),
    ) -> tuple[Arch, dict[str, Any]]:
        """Return how the text of a checkpoint is read and built, and its config.

        towers: those whose features it takes.
        Raises ConfigError for what is wrong around text_config, WeightError for mixed names.
        """
        at = "config.json: "
        try:
            known = {"text_config", TIE}
            refuse_unread(config, known, at, {**self.inert, **at_any_value(inert)})
            raw = config.get("text_config")
            if not isinstance(raw, Mapping):
                raise ConfigError(f"{at}text_config is {raw!r:.80}; accepted: an object")
            kind = raw.get("model_type", next(iter(self.texts)))
            if not isinstance(kind, str) or kind not in self.texts:
                raise ConfigError(
                    f"{at}text_config.model_type is {kind!r:.80}; accepted: {', '.join(self.texts)}"
                )
            layout = self._layout(shapes)
            stored = f"{layout('lm_head')}.weight" in shapes
            for within, holder in ((at, config), (f"{at}text_config.", raw)):
                if type(flag := holder.get(TIE, False)) is not bool:
                    raise ConfigError(f"{within}{TIE} is {flag!r:.80}; accepted: true or false")
            tie = self._tie(config.get(TIE), raw.get(TIE), stored)
        except UnreadKeys:
            raise
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from None
        text = self.texts[kind]
        arch = replace(laid_out(text.arch, layout, self.beside), name=self.name)
        if towers:
            arch = seeing(arch, towers, layout)
        return arch, {**text.defaults, **with_theta(raw, text.theta), TIE: tie}

    def _layout(self, shapes: Shapes) -> Layout:
        """Return how these tensors are named; raises WeightError for two ways at once."""
        modules = tuple(f"{module}." for module in self.beside)
        marks: dict[Layout | None, tuple[str, ...]] = {
            HUB: (*MARKS[HUB], *modules),
            MODULES: (*MARKS[MODULES], "lm_head.", *(f"model.{m}" for m in modules)),
        }
        return _one_of(marks, shapes) or HUB

    def _tie(self, outer: bool | None, inner: bool | None, stored: bool) -> bool:
        """Return whether the head is the embedding; raises ConfigError where nothing tells.

        Where the two configs differ, or both are silent, Hugging Face uses a head that is stored.
        """
        given = [flag for flag in (outer, inner) if flag is not None]
        if given and given[0] == given[-1]:
            return given[0]
        if given and not stored:
            raise ConfigError(
                f"config.json: {TIE} is {outer!r:.80}, but text_config.{TIE} is {inner!r:.80}, and"
                " no lm_head is stored that would settle it; make them equal"
            )
        return self.tied and not stored


def seeing(arch: Arch, towers: Towers, layout: Layout) -> Arch:
    """Return a text architecture whose model takes features of towers, of the text's width, and
    embeds the ids that are theirs."""
    own = [(tower.tokens, config) for tower, config in towers if tower.tokens is not None]
    tables = [tower.token_weights for tower, _ in towers if tower.tokens is not None]

    def build(config: Any) -> Decoder:
        model = arch.build(config)
        inputs = [name for tower, _ in towers for name in tower.text_inputs]
        deep = max(tower.depth(of_tower) for tower, of_tower in towers)
        model.see(config.hidden_size, *inputs, deep=deep)
        for tokens, of_tower in own:
            cast(Spread, model.embed).others.append(tokens(of_tower, config))
        return model

    def weights(config: Any) -> Table:
        table = dict(arch.table(config))
        for number, of_tower in enumerate(tables):
            stored = moved(of_tower, lambda name: layout.beside + name)
            table |= {f"embed.others.{number}.{ours}": entry for ours, entry in stored.items()}
        return table

    return replace(arch, build=build, weights=weights)


def as_stored(arch: Arch, config: Any, shapes: Shapes) -> Arch:
    """Return a text architecture that finds its tensors, named as in text checkpoints or, since
    transformers 5 writes the text of a multimodal checkpoint so, as in that.

    Raises WeightError for mixed names.
    """
    own = f"{root_of(arch.table(config))}.layers."
    layout = _one_of({None: (own,), **MARKS}, shapes)
    return arch if layout is None else laid_out(arch, layout)


def laid_out(arch: Arch, layout: Layout, others: Collection[str] = ()) -> Arch:
    """Return a text architecture for the tensors of a layout; others: modules of other models."""

    def beside(c: Any, tensors: Collection[str]) -> tuple[str, ...]:
        own = map(layout, arch.modules_beside(c, layout.in_text(tensors)))
        return (*(layout.beside + module for module in others), *own)

    return replace(arch, weights=lambda c: moved(arch.table(c), layout), beside=beside)


def _one_of(marks: Mapping[Layout | None, tuple[str, ...]], shapes: Shapes) -> Layout | None:
    """Return the layout whose marks begin names of tensors; raises WeightError for two."""
    found = {
        layout: min(names)
        for layout, prefixes in marks.items()
        if (names := [name for name in shapes if name.startswith(prefixes)])
    }
    if len(found) > 1:
        raise WeightError(
            f"tensors {' and '.join(found.values())} are named in two ways; accepted is either as"
            " in text checkpoints (model.layers...), as multimodal ones are on the hub"
            " (language_model.model...) or as Hugging Face's modules (model.language_model...),"
            " throughout"
        )
    return next(iter(found), None)
