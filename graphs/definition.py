"""What a checkpoint means: its models on meta, and where each of their weights comes from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from lmcast.graphs.archs.record import Arch
from lmcast.graphs.blocks.decoder import Decoder, TiedHead
from lmcast.graphs.blocks.moe import MoE
from lmcast.graphs.blocks.multimodal_embedder import HardTokens
from lmcast.graphs.blocks.rope import Rope
from lmcast.graphs.blocks.tower import Tower
from lmcast.graphs.config.reading import ConfigError
from lmcast.graphs.layouts.tensors import is_activation
from lmcast.graphs.towers.record import TowerArch
from lmcast.graphs.weights.bind import Binding
from lmcast.graphs.weights.sources import tensors_of

PICTURES, SOUNDS = "vision", "audio"  # what towers are called
Model = TypeVar("Model", bound=nn.Module)


def of_tower(name: str, parameter: str = "") -> str:
    """Return what a parameter of a tower is called among all of a definition; without one, how they
    begin."""
    return f"{name}.{parameter}"


@dataclass(frozen=True)
class TowerDefinition:
    """What of a checkpoint makes features of pictures, or of sounds: as a Definition, for the text
    beside it."""

    arch: TowerArch
    config: Any
    model: Tower
    binding: Binding

    def shape_for(self, dtype: torch.dtype, stored: Mapping[str, torch.dtype]) -> Tower:
        """Return the model on meta, as Definition.shape_for does."""
        return _shaped(self.model, self.binding, dtype, stored)

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())


@dataclass(frozen=True)
class Definition:
    """What a checkpoint means: its architecture, config, model on meta, and where each weight comes
    from; and its towers by name, PICTURES and SOUNDS, none where it takes text alone."""

    arch: Arch
    config: Any
    model: Decoder
    binding: Binding
    towers: Mapping[str, TowerDefinition] = field(default_factory=dict)

    @property
    def tower(self) -> TowerDefinition | None:
        """The tower that sees pictures."""
        return self.towers.get(PICTURES)

    @property
    def sounds(self) -> TowerDefinition | None:
        """The tower that hears sounds."""
        return self.towers.get(SOUNDS)

    def shape_for(self, dtype: torch.dtype, stored: Mapping[str, torch.dtype]) -> Decoder:
        """Return the model on meta, computing in `dtype`; `stored`: the dtypes of the tensors."""
        return _shaped(self.model, self.binding, dtype, stored)

    @property
    def weights(self) -> Binding:
        """Where all weights come from: those of the text, and behind 'vision.' and 'audio.' those
        of towers."""
        whole = self.binding
        for name, tower in self.towers.items():
            own = tower.binding
            read = {*own.tensors(), *(copy for copy, _ in own.copies)}
            whole = Binding(
                {**whole.sources, **{of_tower(name, p): s for p, s in own.sources.items()}},
                (*whole.copies, *own.copies),
                tuple(tensor for tensor in whole.ignored if tensor not in read),
                whole.wide | {of_tower(name, p) for p in own.wide},
                (*whole.zeros, *own.zeros),
            )
        return whole

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return all parameters, by the names of `weights`."""
        found = dict(self.model.named_parameters())
        for name, tower in self.towers.items():
            found |= {of_tower(name, path): p for path, p in tower.model.named_parameters()}
        return found

    @property
    def left_out(self) -> str:
        """Tensors that this model does not use, by module: '' or '3 tensors: 3 of visual'."""
        counted: dict[str, int] = {}
        ignored, zeros = self.weights.ignored, self.weights.zeros
        beside = self.arch.modules_beside(self.config, ignored)
        for name in ignored:
            known = (module for module in beside if name.startswith(f"{module}."))
            other = name.split(".")
            alone = is_activation(name) or name in zeros
            module = next(known, other[-1] if alone else ".".join(other[:2]))
            counted[module] = counted.get(module, 0) + 1
        shown = [f"{count} of {module}" for module, count in sorted(counted.items())]
        more = ", ..." if len(shown) > 6 else ""
        return f"{len(ignored)} tensors: {', '.join(shown[:6])}{more}" if counted else ""

    @property
    def parameters(self) -> int:
        """The number of parameters of the text; tied ones count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def active(self) -> int:
        """The number of parameters that one token is multiplied with.

        Of the experts, those it is routed to; the embedding, of which a token reads one row, counts
        only where it is also the head; what rows of other models' ids are made with does not.
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
            elif isinstance(module, HardTokens):
                count -= sum(p.numel() for p in module.parameters())
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


def _shaped(
    model: Model, binding: Binding, dtype: torch.dtype, stored: Mapping[str, torch.dtype]
) -> Model:
    """Return a model on meta, computing in `dtype`; `stored`: the dtypes of the tensors."""
    model = model.to("meta", dtype)
    for name in binding.wide:
        source = binding.sources[name]
        module, _, leaf = name.rpartition(".")
        kept = binding.dtype(name, stored[tensors_of(source)[0]], dtype)
        like = model.get_parameter(name)
        value = nn.Parameter(torch.empty_like(like, dtype=kept), requires_grad=False)
        setattr(model.get_submodule(module), leaf, value)
    return model
