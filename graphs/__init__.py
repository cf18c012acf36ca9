"""Reference architectures in pure PyTorch."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from os import PathLike
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lmcast.graphs import archs
from lmcast.graphs.archs.multimodal import TIE, Multimodal, as_stored
from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks.decoder import Decoder, TiedHead
from lmcast.graphs.blocks.moe import MoE
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.config.inert import at_any_value
from lmcast.graphs.config.reading import ConfigError, UnreadKeys
from lmcast.graphs.layouts.catalogue import take
from lmcast.graphs.layouts.tensors import Found, Tensors, is_activation
from lmcast.graphs.weights.bind import Binding, WeightError, bind, not_a_copy, require_zeros, spared
from lmcast.graphs.weights.sources import View, alike, load_into, plain, tensors_of
from lmcast.plugins.annotations import OneOf
from lmcast.plugins.arguments import checked
from lmcast.plugins.errors import InputError

__all__ = ["ConfigError", "Definition", "WeightError", "define", "defined", "fill", "load"]

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Definition:
    """What a checkpoint means: its architecture, config, model on meta, and where each weight comes
    from."""

    arch: Arch
    config: Any
    model: Decoder
    binding: Binding

    def shape_for(self, dtype: torch.dtype, stored: Mapping[str, torch.dtype]) -> Decoder:
        """Return the model on meta, computing in `dtype`; `stored`: the dtypes of the tensors."""
        model = self.model.to("meta", dtype)
        for name in self.binding.wide:
            source = self.binding.sources[name]
            module, _, leaf = name.rpartition(".")
            kept = self.binding.dtype(name, stored[tensors_of(source)[0]], dtype)
            like = model.get_parameter(name)
            value = nn.Parameter(torch.empty_like(like, dtype=kept), requires_grad=False)
            setattr(model.get_submodule(module), leaf, value)
        return model

    @property
    def left_out(self) -> str:
        """Tensors that this model does not use, by module: '' or '3 tensors: 3 of visual'."""
        counted: dict[str, int] = {}
        beside = self.arch.modules_beside(self.config, self.binding.ignored)
        for name in self.binding.ignored:
            known = (module for module in beside if name.startswith(f"{module}."))
            other = name.split(".")
            alone = is_activation(name) or name in self.binding.zeros
            module = next(known, other[-1] if alone else ".".join(other[:2]))
            counted[module] = counted.get(module, 0) + 1
        shown = [f"{count} of {module}" for module, count in sorted(counted.items())]
        more = ", ..." if len(shown) > 6 else ""
        total = len(self.binding.ignored)
        return f"{total} tensors: {', '.join(shown[:6])}{more}" if counted else ""

    @property
    def parameters(self) -> int:
        """The number of parameters; tied ones count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def active(self) -> int:
        """The number of parameters that one token is multiplied with.

        Of the experts, those it is routed to; the embedding, of which a token reads one row, counts
        only where it is also the head.
        """
        heads = {id(m.embed) for m in self.model.modules() if isinstance(m, TiedHead)}
        count = self.parameters
        for module in self.model.modules():
            if isinstance(module, MoE):
                total = sum(p.numel() for p in module.experts.parameters())
                experts = module.router.weight.shape[0]
                count -= total // experts * (experts - module.router.top_k)
            elif isinstance(module, nn.Embedding) and id(module) not in heads:
                count -= module.weight.numel()
        return count

    @property
    def context(self) -> int:
        """The largest context that the model was made for, in tokens."""
        longest: int = self.config.max_position_embeddings
        # Dynamic scaling acts on what lies beyond the maximum; the others include it.
        stretched = [int(longest * rope.dynamic[1]) for rope in self._ropes() if rope.dynamic]
        return max([longest, *stretched])

    @property
    def same_up_to(self) -> int | None:
        """The longest row whose logits do not depend on the calls it was cut into; None: any.

        Beyond, dynamic scaling gives each call its frequencies, as Hugging Face's does.
        """
        return min((rope.dynamic[2] for rope in self._ropes() if rope.dynamic), default=None)

    def _ropes(self) -> list[Rope]:
        return [table for table in self.model.tables() if isinstance(table, Rope)]

    def anew_beyond(self, context: int) -> tuple[int, ...]:
        """Lengths below `context` beyond which every cached key of a row is another (LongRoPE): a
        row that grows beyond one is computed anew in one call.

        Raises ConfigError where layers carry what no call begins anew.
        """
        lengths = {rope.switch for rope in self._ropes() if rope.switch is not None}
        reached = tuple(sorted(length for length in lengths if length < context))
        carried = {s.name for states in self.model.states() for s in states if not s.begins_anew}
        if reached and carried:
            raise ConfigError(
                f"{self.arch.name}: config.json: rope_type 'longrope' rotates by other factors"
                f" beyond {reached[0]} tokens, and layers that carry {', '.join(sorted(carried))}"
                f" begin no row anew; accepted: --context {reached[0]} or less"
            )
        return reached


@checked
def define(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    inert: Collection[str] = (),
    dtypes: Mapping[str, torch.dtype] | None = None,
    untie: bool = False,
) -> Definition:
    """Read a config.json and bind tensors of these names and shapes to its model on meta.

    inert: config keys to ignore. dtypes: of the tensors, without which no quantized checkpoint is
    understood. untie: take the head that is stored, although config.json ties it to the embedding.
    Raises ConfigError or WeightError naming what does not fit.
    """
    name = archs.known(config)
    tensors = Tensors(shapes, dtypes or {})
    arch, typed, quantized, within = _read(name, config, tensors, inert)
    shapes = quantized.shapes(shapes)
    if untie:
        typed = untied(typed, within)
    layers = typed.num_hidden_layers
    if layers > len(shapes):
        raise ConfigError(
            f"config.json: {within}num_hidden_layers is {layers},"
            f" but the checkpoint has {len(shapes)} tensors"
        )
    model = _on_meta(arch, typed, within)
    if not within:
        arch = as_stored(arch, typed, shapes)
    table = arch.table(typed)
    beside = arch.modules_beside(typed, shapes) + spared(model, table, arch.spare, layers)
    beside += tuple(quantized.beside)
    binding = bind(model, table, shapes, beside, quantized.layouts)
    return Definition(arch, typed, model, binding)


_DRAWS = (nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_)


class _Undrawn(TorchFunctionMode):
    """Initializes no parameters: on meta they have no values, and to draw none takes a quarter of
    what makes a model, and of the first one three seconds of imports."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        return given["tensor"] if func in _DRAWS else func(*args, **given)


def _on_meta(arch: Arch, config: Any, within: str) -> Decoder:
    """Return the model of a Config on meta; raises ConfigError where that describes none."""
    at = f"{arch.name}: config.json: {within}"
    try:
        with torch.device("meta"), _Undrawn():
            return arch.build(config).eval()
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{at}{error}") from None
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise ConfigError(
            f"{at}{'' if within else 'it'} asks for a weight beyond any memory: {error}"
        ) from None


def _read(
    name: str, config: Mapping[str, Any], tensors: Tensors, inert: Collection[str]
) -> tuple[Arch, Any, Found, str]:
    """Return how the text of a checkpoint is built, its Config, what is quantized, and the path of
    the text's keys in config.json.

    Raises ConfigError; where it is for keys that nothing reads, all of the file are named at once.
    """
    unread: dict[str, Any] = {}
    while True:
        ignored = {*inert, *unread}
        try:
            arch, within = archs.get(name), ""
            multimodal = isinstance(arch, Multimodal)
            quantized, raw = take(name, config, tensors, multimodal, at_any_value(ignored))
            if isinstance(arch, Multimodal):
                shapes = quantized.shapes(tensors.shapes)
                arch, raw, within = *arch.text(raw, shapes, ignored), "text_config."
            text, typed = arch, arch.read(raw, ignored, within)
        except UnreadKeys as error:
            if error.keys.keys() <= ignored:
                raise
            unread |= error.keys
        except InputError:
            if not unread:
                raise
            break
        else:
            break
    if unread:
        raise ConfigError(f"{name}: {UnreadKeys('config.json: ', unread)}")
    return text, typed, quantized, within


def untied(config: Any, within: str = "") -> Any:
    """Return a Config whose head is a weight of its own; raises ConfigError where it is so."""
    if not vars(config).get(TIE):
        raise ConfigError(
            f"config.json: {within}{TIE} is not true here, so that the head is a weight of its own;"
            " leave out --untie"
        )
    return replace(config, **{TIE: False})


class HasShape(Protocol):
    """What is known of a tensor before it is read."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...


@checked
def defined(
    config: Mapping[str, Any],
    tensors: Mapping[str, HasShape],
    inert: Collection[str] = (),
    untie: bool = False,
) -> Definition:
    """Read a config.json and bind the tensors of a checkpoint to its model on meta, as `define`."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    return define(config, shapes, inert, dtypes, untie)


def fill(
    found: Definition, part: nn.Module, read: Callable[[str], Tensor], dtype: torch.dtype
) -> None:
    """Load weights into the meta parameters of `part`, in place, as `dtype`.

    part: a module of found.model, or the model itself. read: tensor name -> stored values.
    `.to("meta")` empties a part again.
    """
    names = {id(parameter): name for name, parameter in found.model.named_parameters()}
    places = _places(part)
    for parameter in list(part.parameters()):
        name = names[id(parameter)]
        source = found.binding.sources[name]
        if isinstance(source, View) and source.whole:
            stored = plain(source.tensor, read)
            value = stored.to(found.binding.dtype(name, stored.dtype, dtype))
        else:
            value = torch.empty(parameter.shape, dtype=dtype)
            load_into(value, source, read)
        filled = nn.Parameter(value, requires_grad=False)
        for owner, leaf in places[id(parameter)]:
            setattr(owner, leaf, filled)


def _places(module: nn.Module) -> Mapping[int, Sequence[tuple[nn.Module, str]]]:
    """Return, by identity of a parameter, the modules that hold it and its name there; several if
    tied."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for leaf, held in owner.named_parameters(recurse=False):
            found.setdefault(id(held), []).append((owner, leaf))
    return found


@checked
def load(
    checkpoint: str | PathLike[str],
    dtype: Annotated[torch.dtype, OneOf(FLOATS)] = torch.float32,
    *,
    untie: bool = False,
) -> Decoder:
    """Return the eager model of a checkpoint: `model(input_ids B,T int64) -> logits B,T,V`.

    Weights are converted to `dtype`. untie: as for `define`. Raises InputError where the checkpoint
    is not understood.
    """
    (reader,) = entry_points(group="lmcast.checkpoints", name="open")
    source = reader.load()(checkpoint)
    found = defined(source.config, source.tensors, untie=untie)
    for copy, original in found.binding.copies:
        if not alike(source.read(copy), source.read(original)):
            raise WeightError(not_a_copy(copy, original))
    for name in found.binding.zeros:
        require_zeros(name, source.read(name))
    fill(found, found.model, source.read, dtype)
    return found.model
