"""Binding the tensors of a checkpoint to our parameters, by table, strict on both sides."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from lmcast.graphs.weights.quantized import Layout, Scheme, Shapes, WeightError
from lmcast.graphs.weights.sources import (
    Joined,
    Leaf,
    Packed,
    Source,
    Stack,
    View,
    leaves,
    shape_of,
    tensors_of,
)  # fmt: skip

__all__ = [
    "COMMON", "HEAD_NORMS", "QK_NORMS", "SANDWICH", "SCALED_ENDS", "Binding", "EachExpert", "Entry",
    "Table", "WeightError", "bind",
]  # fmt: skip

# Tensors that tools wrote although they follow from the config.
LEFTOVERS = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|attention\.(bias|masked_bias)"
    r"|self_attn\.(slope_rate|(query|key|diagonal)_decay))$"  # of MiniMax's linear attention
)


@dataclass(frozen=True)
class EachExpert:
    """An entry of a weight table: a Stack of one part for every expert, which '{e}' counts."""

    part: Source


# An entry of a table: for one of our modules (a path) or one parameter (where it comes from; of
# several forms the first that the checkpoint has). '{i}' is the number of the layer; an entry may
# also be of one layer alone.
Entry = str | Source | EachExpert | tuple[Source | EachExpert, ...]
Table = Mapping[str, Entry]


@dataclass(frozen=True)
class Binding:
    """Where every parameter comes from.

    `copies` are tensors stored again under a tie: each must equal the other, value by value.
    `ignored` are tensors of modules that this definition does not build, and `zeros` those among
    them that must be all zeros: biases of layers that have none, which GPTQ's tools write. `wide`
    are parameters that stay in fp32 where they are stored so, whatever the others are computed in.
    """

    sources: Mapping[str, Source]
    copies: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]
    wide: frozenset[str] = frozenset()
    zeros: tuple[str, ...] = ()

    def tensors(self) -> list[str]:
        """Return the names of all tensors that parameters are made of, once each."""
        return list(dict.fromkeys(t for s in self.sources.values() for t in tensors_of(s)))

    @property
    def layouts(self) -> Mapping[str, Layout]:
        """Every tensor of a quantized weight, and how that is stored."""
        found = (leaf for source in self.sources.values() for leaf in leaves(source))
        layouts = (leaf.layout for leaf in found if isinstance(leaf, Packed))
        return {tensor: layout for layout in layouts for tensor in layout.tensors}

    def dtype(self, name: str, stored: torch.dtype, asked: torch.dtype) -> torch.dtype:
        """Return what a parameter is computed in where the model is computed in `asked`."""
        kept = name in self.wide and stored == torch.float32 and asked.itemsize < stored.itemsize
        return stored if kept else asked


# Names that most decoder checkpoints share; architectures add to them or override them.
COMMON: dict[str, Entry] = {
    "embed": "model.embed_tokens",
    "final.norm": "model.norm",
    "final.head": "lm_head",
    "layers.{i}.pre_mixer": "model.layers.{i}.input_layernorm",
    "layers.{i}.pre_ffn": "model.layers.{i}.post_attention_layernorm",
    **{f"layers.{{i}}.mixer.{x}": f"model.layers.{{i}}.self_attn.{x}_proj" for x in "qkvo"},
    **{f"layers.{{i}}.ffn.{x}": f"model.layers.{{i}}.mlp.{x}_proj" for x in ("gate", "up", "down")},
}

# Norms of queries and keys over all heads (OLMo 2), and of each head (Qwen3).
QK_NORMS: dict[str, Entry] = {
    f"layers.{{i}}.mixer.{x}_norm": f"model.layers.{{i}}.self_attn.{x}_norm" for x in "qk"
}
HEAD_NORMS: dict[str, Entry] = {f"{ours}.norm": theirs for ours, theirs in QK_NORMS.items()}

# Norms on both sides of either branch (Gemma), or behind it alone (OLMo 2).
SANDWICH: dict[str, Entry] = {
    "layers.{i}.post_mixer": "model.layers.{i}.post_attention_layernorm",
    "layers.{i}.pre_ffn": "model.layers.{i}.pre_feedforward_layernorm",
    "layers.{i}.post_ffn": "model.layers.{i}.post_feedforward_layernorm",
}

# An embedding and a head that are both `Scaled`.
SCALED_ENDS: dict[str, Entry] = {
    "embed.inner": "model.embed_tokens",
    "final.head.inner": "lm_head",
}


def bind(
    model: nn.Module,
    table: Table,
    shapes: Shapes,
    beside: Iterable[str] = (),
    layouts: Mapping[str, Layout] | None = None,
) -> Binding:
    """Give every parameter of `model` a source among the tensors of a checkpoint.

    table: the weight table.
    shapes: of all tensors, by name; quantized weights have the shape and name of plain ones.
    beside: modules that the model does not have, whose tensors are ignored.
    layouts: how quantized weights are stored, by name.

    Raises WeightError for a missing or misshaped tensor, and for a surplus one below a module that
    the model has: the definition would be wrong.
    """
    layouts = layouts or {}
    sources = {
        name: packed(name, _source(name, parameter, table, shapes), layouts)
        for name, parameter in model.named_parameters()
    }
    parts = (leaf for source in sources.values() for leaf in leaves(source))
    used = {part.tensor if isinstance(part, View) else part.values.tensor for part in parts}
    beside = frozenset(beside)
    ties = _copies(model, table, sources, shapes)
    copies = tuple(sorted(pair for tie in ties for pair in _as_stored(*tie, layouts)))
    rest = sorted(shapes.keys() - used - {copy for copy, _ in ties})
    rest = [name for name in rest if not LEFTOVERS.search(name)]
    root = root_of(table)
    built = {path for name in used for path in _ancestors(name, root)}
    zeros = tuple(name for name in rest if _bias_beside(name, used, shapes))
    for name in rest:
        if name in zeros:
            continue
        paths = [name, *_ancestors(name, root)]
        if any(path in built for path in paths) and not any(path in beside for path in paths):
            raise WeightError(
                f"tensor {name} {list(shapes[name])} belongs to a module of this architecture, but"
                " nothing reads it: config.json does not describe this checkpoint"
            )
    return Binding(sources, copies, tuple(rest), frozenset(wide(model)), zeros)


def _bias_beside(name: str, used: Collection[str], shapes: Shapes) -> bool:
    """Tell whether a tensor is in name and shape the bias of a matrix that is read."""
    module, _, leaf = name.rpartition(".")
    weight = f"{module}.weight"
    if leaf != "bias" or weight not in used:
        return False
    return len(shapes[weight]) == 2 and tuple(shapes[name]) == tuple(shapes[weight][:1])


def require_zeros(name: str, value: Tensor) -> None:
    """Raise WeightError where a part of one of Binding.zeros is not zero."""
    if value.any():
        raise WeightError(
            f"tensor {name} is not all zeros, but nothing reads it: config.json describes a layer"
            " without a bias; accepted: a bias of zeros, or a config.json that asks for one"
        )


def spared(model: nn.Module, table: Table, spare: Sequence[str], layers: int) -> tuple[str, ...]:
    """Return the checkpoint's names of `spare` parts, of layers where the model has none."""
    have = {name for name, _ in (*model.named_modules(), *model.named_parameters())}
    ours = [f"layers.{i}.{name}" for i in range(layers) for name in spare]
    found = [_lookup(name, table) for name in ours if name not in have]
    return tuple(str(entry).replace("{i}", layer) for entry, layer in found)


def _source(name: str, parameter: nn.Parameter, table: Table, shapes: Shapes) -> Source:
    """Return the source of one parameter, whose shape has been checked."""
    entry, layer = _lookup(name, table)
    if isinstance(entry, str):
        forms: tuple[Source | EachExpert, ...] = (View(entry),)
    else:
        forms = entry if isinstance(entry, tuple) else (entry,)
    found = [_numbered(form, layer, parameter.shape[0]) for form in forms]
    stored = dict.fromkeys(first for s in found if (first := tensors_of(s)[0]) in shapes)
    if len(stored) > 1:
        raise WeightError(f"tensors {' and '.join(stored)} are forms of the same; accepted is one")
    source = next(iter(_fitting(found, tuple(parameter.shape), shapes)), found[0])
    for tensor in tensors_of(source):
        if tensor not in shapes:
            near = [n for n in shapes if n.rpartition(".")[0] == tensor.rpartition(".")[0]]
            raise WeightError(
                f"tensor {tensor} is missing (for {name} {list(parameter.shape)});"
                f" the checkpoint has {near or 'nothing under that name'}"
            )
    shape = shape_of(source, shapes)
    if shape != tuple(parameter.shape):
        tensor = tensors_of(source)[0]
        part = "" if isinstance(source, View) and source.whole else f" (as {name}: {list(shape)})"
        raise WeightError(
            f"tensor {tensor} has shape {list(shapes[tensor])}{part};"
            f" config.json asks for {list(parameter.shape)}"
        )
    return source


def _fitting(forms: Sequence[Source], shape: tuple[int, ...], shapes: Shapes) -> Iterator[Source]:
    """Yield the forms that are stored: where several read one tensor, those of this shape first."""
    stored = [form for form in forms if tensors_of(form)[0] in shapes]
    if len(stored) > 1:
        yield from (f for f in stored if {*tensors_of(f)} <= {*shapes} and _is(f, shape, shapes))
    yield from stored


def _is(source: Source, shape: tuple[int, ...], shapes: Shapes) -> bool:
    try:
        return shape_of(source, shapes) == shape
    except WeightError:
        return False


def packed(name: str, source: Source, layouts: Mapping[str, Layout]) -> Source:
    """Return a source that reads quantized weights by their layouts; raises WeightError where the
    parts of one parameter are stored in several ways."""
    if isinstance(source, View):
        layout = layouts.get(source.tensor)
        return source if layout is None else Packed(source, layout)
    if not layouts or not isinstance(source, Stack | Joined):
        return source
    out = replace(source, parts=tuple(packed(name, part, layouts) for part in source.parts))
    first, *others = leaves(out)
    for leaf in others:
        if _stored_as(leaf) != _stored_as(first):
            raise WeightError(
                f"tensors {tensors_of(first)[0]} and {tensors_of(leaf)[0]} are parts of one weight"
                f" ({name}), but they are not quantized alike; accepted: all in one format, or none"
            )
    return out


def _stored_as(leaf: Leaf) -> tuple[type, Scheme | None]:
    return (type(leaf.layout), leaf.layout.scheme) if isinstance(leaf, Packed) else (View, None)


def _lookup(name: str, table: Table) -> tuple[Entry, str]:
    """Return the table's entry for a parameter, and the number of its layer ('' outside layers)."""
    index = re.search(r"\.(\d+)(?=\.|$)", name)
    plain = name if index is None else name[: index.start()] + ".{i}" + name[index.end() :]
    layer = "" if index is None else index[1]
    for known in (name, plain):  # an entry may be of one layer
        if known in table:
            return table[known], layer
        module, _, leaf = known.rpartition(".")
        if isinstance(path := table.get(module), str):
            return f"{path.replace('{i}', layer)}.{leaf}", layer
    raise AssertionError(f"the weight table has no entry for {plain}")


def _numbered(entry: Source | EachExpert, layer: str, experts: int) -> Source:
    """Fill the numbers of the layer and of the experts into the names of an entry."""
    if isinstance(entry, EachExpert):
        one = _numbered(entry.part, layer, experts)
        return Stack(tuple(_numbered_by(one, "{e}", e) for e in range(experts)))
    return _numbered_by(entry, "{i}", layer)


def _numbered_by(source: Source, letter: str, number: int | str) -> Source:
    return renamed(source, lambda tensor: tensor.replace(letter, str(number)))


def renamed(source: Source, change: Callable[[str], str]) -> Source:
    """Return a source with the names of its tensors changed."""
    if isinstance(source, View):
        return replace(source, tensor=change(source.tensor))
    assert isinstance(source, Stack | Joined)
    return replace(source, parts=tuple(renamed(part, change) for part in source.parts))


def moved(table: Table, change: Callable[[str], str]) -> Table:
    """Return a weight table with the names of the checkpoint's modules and tensors changed."""

    def part(source: Source | EachExpert) -> Source | EachExpert:
        if isinstance(source, EachExpert):
            return EachExpert(renamed(source.part, change))
        return renamed(source, change)

    def entry(found: Entry) -> Entry:
        if isinstance(found, str):
            return change(found)
        return tuple(map(part, found)) if isinstance(found, tuple) else part(found)

    return {ours: entry(theirs) for ours, theirs in table.items()}


def wide(model: nn.Module) -> Iterable[str]:
    """Return the parameters that their modules ask to keep in fp32."""
    for path, module in model.named_modules():
        if isinstance(module, Wide):
            yield from (f"{path}.{leaf}" for leaf in module.wide if leaf in module._parameters)


class Wide(nn.Module):
    """A module with parameters that stay in fp32 where the checkpoint stores them so."""

    wide: ClassVar[tuple[str, ...]]


def _copies(
    model: nn.Module, table: Table, sources: Mapping[str, Source], shapes: Shapes
) -> list[tuple[str, str]]:
    """Return (copy, original) of parameters that modules share, by the names of plain weights."""
    first = {id(p): name for name, p in model.named_parameters()}
    found = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        original = first[id(parameter)]
        # A tied head holds the module it shares: final.head.embed.weight stands for final.head.
        module = name.rpartition(".")[0].rpartition(".")[0]
        if name == original or module not in table:
            continue
        copy, source = _lookup(f"{module}.{name.rpartition('.')[2]}", table)[0], sources[original]
        if not isinstance(copy, str) or copy not in shapes:
            continue
        if isinstance(source, View):
            found.append((copy, source.tensor))
        elif isinstance(source, Packed):
            found.append((copy, source.values.tensor))
    return found


def _as_stored(
    copy: str, original: str, layouts: Mapping[str, Layout]
) -> Iterable[tuple[str, str]]:
    """Return the stored tensors that must be equal where a weight is a copy of another."""
    one, other = layouts.get(copy), layouts.get(original)
    if one is None and other is None:
        return [(copy, original)]
    if one is None or other is None or one.scheme != other.scheme:
        raise WeightError(
            f"tensors {copy} and {original} are one weight, but they are not quantized alike;"
            " accepted: both in one format, neither, or two weights (--untie)"
        )
    return zip(one.tensors, other.tensors, strict=True)


def not_a_copy(copy: str, original: str) -> str:
    """Return what to say of a tensor that is stored again under a tie, with other values."""
    return (
        f"tensor {copy} differs from {original}, but config.json says that they are one"
        " (tie_word_embeddings), and transformers 4 uses the embedding then, transformers 5 the"
        f" stored head; for the head give --untie, for the embedding remove {copy}"
    )


def root_of(table: Table) -> str:
    """Return the module of the checkpoint that holds the layers: 'model'."""
    paths = (entry for name, entry in table.items() if ".{i}" in name)
    known = (p for p in paths if isinstance(p, str))
    return next((p.partition(".{i}")[0].rpartition(".")[0] for p in known), "")


def _ancestors(name: str, root: str) -> list[str]:
    """Return the module paths above a tensor, without those that lead to `root`."""
    parts = name.split(".")[:-1]
    paths = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return [path for path in paths if not f"{root}.".startswith(f"{path}.")]
