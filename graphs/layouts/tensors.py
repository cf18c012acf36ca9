"""The tensors of a quantized checkpoint, and which of them are weights."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase, translate
from typing import Protocol, TypeVar

import torch

from lmcast.graphs.config.reading import ConfigError
from lmcast.graphs.weights.quantized import Layout, Shapes, WeightError
from lmcast.graphs.weights.text_names import spellings

T = TypeVar("T")

# Scales of a layer's inputs, beside its weight, and of caches: known, and left out.
INPUTS = re.compile(
    r"(.+?)(\.|_)(activation_scale|input_scale|input_global_scale|input_zero_point|output_scale)$"
)
CACHE = re.compile(r"[._](q_scale|k_scale|v_scale|k_zero_point|v_zero_point|prob_scale)$")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
E8M0 = (torch.uint8, torch.float8_e8m0fnu)  # a byte either way
# What to do about a format that is not read: of any library, and of those that transformers undoes.
PLAIN = "take the release that is not quantized"
UNDONE = f"load it with transformers, model.dequantize() and save_pretrained() that, or {PLAIN}"


def is_activation(name: str) -> bool:
    """Whether a tensor is a scale of inputs or of a cache, not of a weight."""
    return bool(INPUTS.match(name) or CACHE.search(name))


@dataclass(frozen=True)
class Tensors:
    """All tensors of a checkpoint."""

    shapes: Shapes
    dtypes: Mapping[str, torch.dtype]

    def modules(self, leaf: str) -> list[str]:
        """Return the modules that have a tensor of this name."""
        return [n.removesuffix(f".{leaf}") for n in self.shapes if n.endswith(f".{leaf}")]

    def dtype(self, name: str, accepted: Collection[torch.dtype], beside: str = "") -> torch.dtype:
        """Return the dtype of a tensor, which belongs to `beside`; raises WeightError where it is
        missing or none of those accepted."""
        if name not in self.shapes:
            raise WeightError(f"tensor {name} is missing, which belongs to {beside}")
        assert self.dtypes, "dtypes of tensors are needed where weights are quantized"
        if self.dtypes[name] not in accepted:
            shown = ", ".join(sorted(str(d).removeprefix("torch.") for d in accepted))
            raise WeightError(f"tensor {name} is {self.dtypes[name]}; accepted: {shown}")
        return self.dtypes[name]

    def activations(self, weights: Collection[str]) -> frozenset[str]:
        """Return the tensors that belong to the quantization of these weights' inputs, and of
        caches."""
        found = ((name, INPUTS.match(name)) for name in self.shapes)
        modules = {weight.removesuffix(".weight") for weight in weights}
        inputs = {name for name, match in found if match and match[1] in modules}
        return frozenset(inputs | {name for name in self.shapes if CACHE.search(name)})


@dataclass(frozen=True)
class Found:
    """The quantized weights of a checkpoint, by the names that plain weights have.

    beside: tensors that are known and left out.
    """

    layouts: Mapping[str, Layout] = field(default_factory=dict)
    beside: frozenset[str] = frozenset()

    def shapes(self, stored: Shapes) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors as if none were quantized; raises WeightError where
        what belongs together does not fit."""
        parts = {tensor for layout in self.layouts.values() for tensor in layout.tensors}
        plain = {name: shape for name, shape in stored.items() if name not in parts}
        for name, layout in self.layouts.items():
            if name in plain:
                raise WeightError(
                    f"tensors {name} and {layout.tensors[0]} are forms of the same; accepted is one"
                )
        return plain | {name: layout.shape(stored) for name, layout in self.layouts.items()}


class Settings(Protocol):
    """A quantization_config."""

    def find(self, tensors: Tensors) -> Found:
        """Return the weights that are stored so; raises InputError where tensors contradict it."""
        ...


Finder = Callable[[str], str | None]  # a module -> the first entry of a list that names it


# What means another thing, or nothing, in one of several patterns: flags, names, numbers of groups.
ALONE = re.compile(r"\(\?|\\\d")


def by_patterns(patterns: Mapping[str, str], within: bool = False) -> Finder:
    """Return what finds modules by patterns (of entries of a list), from the start of their names,
    or anywhere `within` them; raises ConfigError for what is no pattern."""
    compiled: dict[str, re.Pattern[str]] = {}
    for entry, pattern in patterns.items():
        try:
            compiled[entry] = re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{entry!r} is no pattern: {error}") from None
    # One for all: lists have hundreds of entries, checkpoints a hundred thousand modules.
    alone = any(map(ALONE.search, patterns.values()))
    any_of = re.compile("" if alone else "|".join(patterns.values()) or "(?!)")
    how = re.Pattern.search if within else re.Pattern.match

    def find(module: str) -> str | None:
        if not how(any_of, module):
            return None
        return next((entry for entry, pattern in compiled.items() if how(pattern, module)), None)

    return find


def by_regex(entries: Sequence[str]) -> Finder:
    """Return what finds modules in a list of compressed-tensors: 're:...' or the name itself."""
    return by_patterns({e: e[3:] if e.startswith("re:") else rf"{re.escape(e)}\Z" for e in entries})


def by_wildcard(entries: Sequence[str]) -> Finder:
    """Return what finds modules in a list of ModelOpt or Quark: '*' stands for anything."""
    # One pattern: lists have hundreds of entries, checkpoints a hundred thousand modules.
    any_of = re.compile("|".join(map(translate, entries)) or "(?!)")

    def find(module: str) -> str | None:
        if not any_of.match(module):
            return None
        return next(entry for entry in entries if fnmatchcase(module, entry))

    return find


def by_part(entries: Sequence[str]) -> Finder:
    """Return what finds modules in a list: by their path, one above it, or the end of it."""

    def find(module: str) -> str | None:
        parts = (e for e in entries if f"{module}.".startswith(f"{e}.") or module.endswith(e))
        return next(parts, None)

    return find


def listed_as(module: str, find: Callable[[str], T | None]) -> T | None:
    """Return what `find` has for a module, by its own name, else by another spelling of it."""
    found = map(find, spellings(module))
    return next((entry for entry in found if entry is not None), None)


def require_listed(
    quantized: Collection[str], tensors: Tensors, key: str, listed: Sequence[str], find: Finder
) -> None:
    """Refuse a list of what is not quantized that contradicts the tensors.

    key: its name; find: what finds modules in it.

    Raises ConfigError for a module that is listed and quantized, and for one that is neither while
    others beside it are quantized: its numbers may be anything. A plain one may be listed in any
    spelling of its name.
    """
    for module in quantized:
        entry = find(module)
        if entry is not None:
            raise ConfigError(f"{key} has {entry!r}, but {module} is quantized; one is wrong")

    def covering(module: str) -> str | None:
        return next((entry for entry in listed if _covers(entry, module)), None)

    parents = {module.rpartition(".")[0] for module in quantized if module.endswith("_proj")}
    known = frozenset(quantized)
    for module in _projections(tensors):
        if module in known or module.rpartition(".")[0] not in parents:
            continue
        if listed_as(module, find) is None and listed_as(module, covering) is None:
            raise ConfigError(
                f"{key} does not list {module}, whose weight is plain while others beside it are"
                " quantized; one is wrong"
            )


def _projections(tensors: Tensors) -> Iterator[str]:
    for name, shape in tensors.shapes.items():
        if name.endswith("_proj.weight") and len(shape) == 2:
            yield name.removesuffix(".weight")


def _covers(entry: str, module: str) -> bool:
    """Tell whether an entry may mean a module, by a name that begins or ends otherwise too."""
    under = f".{module}".endswith(f".{entry}") or f".{entry}".endswith(f".{module}")
    return under or module.startswith(f"{entry}.")
