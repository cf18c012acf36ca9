"""The record of an architecture."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.config.inert import Inert, at_any_value
from lmcast.graphs.config.older_spellings import layer_types_of_today
from lmcast.graphs.config.reading import ConfigError, UnreadKeys, parse, without
from lmcast.graphs.weights.bind import Table


@dataclass(frozen=True, kw_only=True)
class Arch:
    """One architecture: how its config is read, how its model is built, where its weights are.

    name: the model_type.
    config: a dataclass of the keys that change the graph.
    build: Config -> the model.
    weights: the weight table, or Config -> the weight table.
    tidy: rewrites older spellings of a raw config into those of `config`; kinds of layers are in
        the words of today already.
    inert: further keys that change nothing, in the spelling after `tidy`, each with the type of the
        values for which that holds, as a field of `config` would have it (Any: all values).
    beside: modules beside the text model, or what finds them by a config and the names of tensors;
        they are known, and left out.
    spare: modules and parameters that checkpoints also store in layers which have no such part;
        left out too.
    """

    name: str
    config: type
    build: Callable[[Any], Decoder]
    weights: Table | Callable[[Any], Table]
    tidy: Callable[[dict[str, Any]], dict[str, Any]] = dict
    inert: Inert = field(default_factory=dict)
    beside: tuple[str, ...] | Callable[[Any, Collection[str]], tuple[str, ...]] = ()
    spare: tuple[str, ...] = ()

    def read(self, raw: Mapping[str, Any], inert: Collection[str] = (), within: str = "") -> Any:
        """Return the Config of a raw config.json; raises ConfigError that names the key.

        A key that is no field of the Config must be in INERT, self.inert or `inert`, or be null,
        false or empty; else UnreadKeys is raised. `inert` has paths in the spelling of the file or
        in that after `tidy`.

        within: the path of `raw` in config.json, as 'text_config.'; '' where it is the whole file.
        """
        keys = without(raw, inert, within)  # as the file has them; `tidy` may rename some
        own = {f"{within}{key}": accepted for key, accepted in self.inert.items()}
        at = f"config.json: {within}"
        try:
            today = self.tidy(layer_types_of_today(keys))
            return parse(self.config, today, at, {**own, **at_any_value(inert)})
        except UnreadKeys:
            raise
        except ConfigError as error:
            message = str(error)  # of tidy, which does not know where its keys lie
            message = message if at in message else message.replace("config.json: ", at, 1)
            raise ConfigError(f"{self.name}: {message}") from None

    def table(self, config: Any) -> Table:
        """Return the weight table for a config."""
        return self.weights(config) if callable(self.weights) else self.weights

    def modules_beside(self, config: Any, tensors: Collection[str]) -> tuple[str, ...]:
        """Return the modules among these tensors that are known and left out."""
        return self.beside(config, tensors) if callable(self.beside) else self.beside
