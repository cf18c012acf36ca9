"""Weights that a checkpoint shows as plain numbers, but stores in few bits: kept as they are.

What the target has a form for becomes a quantized weight of the definition, by the layout that the
reader knows; all else stays what it is, and is stored as plain numbers.
"""

from dataclasses import replace
from os import PathLike

from torch import nn

from lmcast.exporter.checkpoint.tensors import Checkpoint, Coded, StoredTensor
from lmcast.exporter.dtypes import DType
from lmcast.exporter.engine.manifest import EngineError
from lmcast.exporter.targets import Target, WeightForm
from lmcast.exporter.weights.place import Mode, choose_mode
from lmcast.graphs import Definition
from lmcast.graphs.blocks.moe import Experts
from lmcast.graphs.blocks.quantized import QuantizedLinear
from lmcast.graphs.weights.elements import INT4
from lmcast.graphs.weights.quantized import Scheme
from lmcast.graphs.weights.sources import Joined, Packed, Source, Stack, View, leaves

# Modules whose matrix is multiplied with, or looked up by rows, as it lies.
MULTIPLY = (nn.Linear, QuantizedLinear)


def lay_out(
    found: Definition,
    source: Checkpoint,
    target: Target,
    format: DType,
    asked: Mode | None,
    matformer: str | PathLike[str] | None,
    runs: bool,
    widen: bool,
) -> tuple[Definition, Checkpoint, Mode]:
    """Return what is stored of a definition, with the codes that the checkpoint has, and whether
    its bytes are linked or copied; runs: whether the engine is to run here."""
    kept, raw = keep_codes(found, source, target, widen)
    asked = asked or ("copy" if matformer else None)  # linked, every call would cut it out anew
    return kept, raw, choose_mode(kept.weights, raw, format, asked, *target.links(runs))


def keep_codes(
    found: Definition, source: Checkpoint, target: Target, widen: bool = False
) -> tuple[Definition, Checkpoint]:
    """Return a definition whose weights are quantized where they are stored so and the target has
    kernels for that, and the checkpoint with their bytes.

    widen: leave all as they are; raises EngineError where there is nothing to leave, and no plan,
    of which it may mean another thing.
    """
    kept, raw = _kept(found, source, target.carried.weight_form)
    if not widen:
        return kept, raw
    if "sizes" not in target.options and raw.tensors.keys() == source.tensors.keys():
        raise EngineError(
            f"--widen changes nothing: {source.path} has no weights of a GGUF file that target"
            f" {target.name} would store in few bits; leave it out"
        )
    return found, source


def _kept(found: Definition, source: Checkpoint, form: WeightForm) -> tuple[Definition, Checkpoint]:
    sources, added = dict(found.binding.sources), dict[str, StoredTensor]()
    for name in sources:
        given = {leaf.tensor for leaf in leaves(sources[name]) if isinstance(leaf, View)}
        coded = {tensor: source.tensors[tensor].coded for tensor in given}
        known = {tensor: one for tensor, one in coded.items() if one is not None}
        schemes = {one.layout.scheme for one in known.values()}
        if len(known) < len(coded) or len(schemes) != 1:
            continue
        (scheme,) = schemes
        owner = found.model.get_submodule(name.rpartition(".")[0])
        if scheme is not None and _takes(form, scheme, owner) and not _turned(sources[name]):
            sources[name] = _packed(sources[name], known)
            added |= {one.raw.name: one.raw for one in known.values()}
    binding = replace(found.binding, sources=sources)
    tensors = {**source.tensors, **added}
    return replace(found, binding=binding), replace(source, tensors=tensors)


def _takes(form: WeightForm, scheme: Scheme, owner: nn.Module) -> bool:
    """Whether the kernels of a form multiply a module's input with a weight of this scheme."""
    if form == "kernels":
        return isinstance(owner, (*MULTIPLY, nn.Embedding, Experts))
    if form == "gpu_kernels":
        return isinstance(owner, (*MULTIPLY, nn.Embedding))
    # Of integers in blocks, plans have those of 4 bits without zero points.
    plain = scheme.element == INT4 and not scheme.over and not scheme.least
    return plain and isinstance(owner, MULTIPLY)


def _turned(source: Source) -> bool:
    """Whether a weight is not made of whole rows."""
    if isinstance(source, Joined) and source.axis != 0:
        return True
    if isinstance(source, Stack | Joined):
        return any(_turned(part) for part in source.parts)
    assert isinstance(source, View)
    return source.transposed or source.runs is not None or len(source.index) > 1


def _packed(source: Source, coded: dict[str, Coded]) -> Source:
    if isinstance(source, Stack | Joined):
        return replace(source, parts=tuple(_packed(part, coded) for part in source.parts))
    assert isinstance(source, View)
    return Packed(source, coded[source.tensor].layout)
