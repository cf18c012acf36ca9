"""The record of an architecture."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.config.inert import Inert, at_any_value
from lmcast.graphs.config.reading import ConfigError, parse
from lmcast.graphs.weights.bind import Table


@dataclass(frozen=True, kw_only=True)
class Arch:
    """One architecture: how its config is read, its model built, its weights found.

    config: a dataclass of the keys that change the graph. inert: keys of its files that change
    nothing, each with the type of the values at which that holds, as a field of the config would
    have it (Any: whatever they are); both in the spelling that `tidy` gives. tidy: turns older
    spellings of a raw config into the Config's own. weights: says where our modules and parameters
    come from. beside: modules that checkpoints hold beside the text model, or what finds them by a
    config and the names of tensors: known, and left out. spare: modules and parameters of a layer
    that checkpoints also store where a layer of ours has none: left out too.
    """

    name: str  # the model_type
    config: type
    build: Callable[[Any], Decoder]
    weights: Table | Callable[[Any], Table]
    tidy: Callable[[dict[str, Any]], dict[str, Any]] = dict
    inert: Inert = field(default_factory=dict)
    beside: tuple[str, ...] | Callable[[Any, Collection[str]], tuple[str, ...]] = ()
    spare: tuple[str, ...] = ()

    def read(self, raw: Mapping[str, Any], inert: Collection[str] = (), within: str = "") -> Any:
        """Return the Config of a raw config.json, or raise ConfigError naming the key.

        A key that the Config does not have must be in INERT, self.inert or `inert`, or be null,
        false or empty. within: the path of `raw` in config.json: '' for all of it, else as
        'text_config.'.
        """
        keys = {key: value for key, value in raw.items() if f"{within}{key}" not in inert}
        own = {f"{within}{key}": accepted for key, accepted in self.inert.items()}
        at = f"config.json: {within}"
        try:
            return parse(self.config, self.tidy(keys), at, {**own, **at_any_value(inert)})
        except ConfigError as error:
            message = str(error)  # of tidy, which does not know where its keys lie
            message = message if at in message else message.replace("config.json: ", at, 1)
            raise ConfigError(f"{self.name}: {message}") from None

    def table(self, config: Any) -> Table:
        """Return where our modules and parameters come from, for one config."""
        return self.weights(config) if callable(self.weights) else self.weights

    def modules_beside(self, config: Any, tensors: Collection[str]) -> tuple[str, ...]:
        """Return the modules among these tensors that are known and left out."""
        return self.beside(config, tensors) if callable(self.beside) else self.beside
