"""The record of a vision tower: how its config is read, how it is built, where its weights are."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from lmcast.graphs.blocks.tower import Tower
from lmcast.graphs.config.inert import Inert, at_any_value
from lmcast.graphs.config.reading import ConfigError, UnreadKeys, parse, without
from lmcast.graphs.weights.bind import Binding, Entry, Table, WeightError, bind, moved
from lmcast.graphs.weights.quantized import Layout, Shapes
from lmcast.graphs.weights.sources import View

DEPTHS = ("num_hidden_layers", "depth")
OF_TEXT = ("text_config", "tie_word_embeddings")
MODEL = "model."  # what Hugging Face's modules since 4.52 are named below


@dataclass(frozen=True, kw_only=True)
class TowerArch:
    """One kind of tower, with what projects its features into a text.

    name: of the tower: "pixtral".
    config: a dataclass of the keys of config.json around text_config that change the graph or tell
        of pictures; its field `vision_config` is a dataclass of those of the tower.
    build: the Config, and the Config of the text -> the tower.
    modules: of the checkpoint, as the hub names them, that hold the tower and its projector.
    weights: the weight table, or Config -> the weight table; names may have "model." before them.
    tidy: rewrites older spellings of a raw config into those of `config`.
    inert: further keys that change nothing, by their paths, as for an Arch.
    beside: modules within `modules` that are left out, or Config -> such modules.
    text_inputs: what the text takes of pictures besides features and rows, as Decoder.see does.
    depth: Config -> how many of the text's first layers add features of their own.
    forms: the same tower stored in another way, by how only names of that way begin.
    tokens: of ids that are its own, among those of the text: the Config, and that of the text -> a
        module that embeds them anew, `(input_ids B,T, x B,T,H) -> x`; None where there are none.
    token_weights: the weight table of that.
    """

    name: str
    config: type
    build: Callable[[Any, Any], Tower]
    modules: tuple[str, ...]
    weights: Table | Callable[[Any], Table]
    tidy: Callable[[dict[str, Any]], dict[str, Any]] = dict
    inert: Inert = field(default_factory=dict)
    beside: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    text_inputs: tuple[str, ...] = ()
    depth: Callable[[Any], int] = lambda _: 0
    forms: Mapping[str, "TowerArch"] = field(default_factory=dict)
    tokens: Callable[[Any, Any], nn.Module] | None = None
    token_weights: Table = field(default_factory=dict)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys around text_config that a tower reads or knows to change nothing."""
        own = [known.name for known in fields(self.config)]
        return (*own, *(key for key in self.inert if "." not in key))

    def read(self, raw: Mapping[str, Any], family: str, inert: Collection[str] = ()) -> Any:
        """Return the Config of a raw config.json; raises ConfigError that names the key.

        family: the model_type, which begins messages. inert: keys to ignore, by their paths; others
        that nothing reads raise UnreadKeys.
        """
        at = "config.json: "
        own = {key: value for key, value in raw.items() if key not in OF_TEXT}
        try:
            today = self.tidy(without(own, inert))
            return parse(self.config, today, at, {**self.inert, **at_any_value(inert)})
        except UnreadKeys:
            raise
        except ConfigError as error:
            raise ConfigError(f"{family}: {error}") from None

    def as_stored(self, names: Collection[str]) -> "TowerArch":
        """Return the form of this tower that tensors of these names are of."""
        own = [name.removeprefix(MODEL) for name in names]
        return next((f for m, f in self.forms.items() if any(n.startswith(m) for n in own)), self)

    def stored(self, names: Collection[str]) -> list[str]:
        """Return those of these names of tensors that are the tower's."""
        own = tuple(f"{before}{module}." for before in ("", MODEL) for module in self.modules)
        return [name for name in names if name.startswith(own)]

    def require_stored(self, config: Any, shapes: Shapes) -> None:
        """Raise WeightError where no tensor of the tower is stored, ConfigError where there are
        fewer than layers, so that none is built of a damaged number."""
        own = self.stored(shapes)
        if not own:
            raise WeightError(
                f"no tensor of {' or '.join(self.modules)} is stored, but config.json is of a model"
                " with such a tower"
            )
        of_tower = vars(config).get("vision_config")
        for key, layers in ({} if of_tower is None else vars(of_tower)).items():
            if key in DEPTHS and layers > len(own):
                raise ConfigError(
                    f"config.json: vision_config.{key} is {layers}, but the checkpoint has"
                    f" {len(own)} tensors of the tower"
                )

    def bind(
        self,
        config: Any,
        tower: Tower,
        shapes: Shapes,
        layouts: Mapping[str, Layout] | None = None,
        beside: Collection[str] = (),
    ) -> Binding:
        """Give every parameter of a tower a source among the tensors of a checkpoint.

        config: as read. shapes, layouts: as for `bind` of a text. beside: tensors that belong to
        quantized weights and are left out. Raises WeightError for a missing or misshaped tensor,
        for one of the tower's that nothing reads, and for names in two layouts.
        """
        own = self.stored(shapes)
        prefix = _prefix(own)
        table = self.weights(config) if callable(self.weights) else self.weights
        spare = self.beside(config) if callable(self.beside) else self.beside
        left = (*beside, *(f"{prefix}{module}" for module in spare))
        binding = bind(
            tower,
            moved(table, lambda name: f"{prefix}{name}"),
            {name: shapes[name] for name in own},
            left,
            layouts,
        )
        for name in binding.ignored:
            out = any(name == module or name.startswith(f"{module}.") for module in left)
            if not out and name not in binding.zeros:
                raise WeightError(
                    f"tensor {name} {list(shapes[name])} belongs to the vision tower, but nothing"
                    " reads it: config.json does not describe this checkpoint"
                )
        return binding


def _prefix(names: Collection[str]) -> str:
    """Return what stands before the modules; raises WeightError for two ways at once."""
    found = {
        prefix: min(of)
        for prefix in ("", MODEL)
        if (of := [name for name in names if name.startswith(MODEL) == bool(prefix)])
    }
    if len(found) > 1:
        raise WeightError(
            f"tensors {' and '.join(found.values())} are named in two ways; accepted: 'model.'"
            " before every module of the vision tower, or before none"
        )
    return next(iter(found), "")


def side_by_side(attention: str, stored: str, dim: int) -> dict[str, Entry]:
    """Return the entries of a weight table for queries, keys and values that are stored as rows of
    one matrix in this order, each of `dim`, with a bias."""
    return {
        f"{attention}.{part}.{leaf}": View(f"{stored}.{leaf}", (slice(n * dim, (n + 1) * dim),))
        for leaf in ("weight", "bias")
        for n, part in enumerate("qkv")
    }
