"""The decoder: embedding, layers of a mixer and a feed-forward, norm, head.

Letters: B batch, T tokens in this call, D width, V vocabulary, R rows of logits asked for.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmcast.graphs.blocks.norm import widen
from lmcast.graphs.blocks.step import (
    ENDS,
    FEATURES,
    IMAGE_INPUTS,
    ROPE_POSITIONS,
    ROWS,
    Deepstack,
    Handoff,
    Images,
    Mixer,
    State,
    Step,
    Table,
    embedded,
    empty,
)

Past = tuple[Tensor, ...]


class Layer(nn.Module):
    """Two residual branches, a token mixer and a feed-forward; norms before, after, or both."""

    def __init__(
        self,
        *,
        mixer: Mixer,
        ffn: nn.Module,
        pre_mixer: nn.Module | None = None,
        post_mixer: nn.Module | None = None,
        pre_ffn: nn.Module | None = None,
        post_ffn: nn.Module | None = None,
    ):
        super().__init__()
        self.pre_mixer, self.post_mixer = pre_mixer or nn.Identity(), post_mixer or nn.Identity()
        self.pre_ffn, self.post_ffn = pre_ffn or nn.Identity(), post_ffn or nn.Identity()
        self.mixer, self.ffn = mixer, ffn
        self.deep: Deepstack | None = None

    def forward(self, x: Tensor, step: Step, past: Past) -> tuple[Tensor, Past]:
        y, present = self.mixer(self.pre_mixer(x), step, past)
        x = x + self.post_mixer(y)
        x = x + self.post_ffn(self.ffn(self.pre_ffn(x)))
        return x if self.deep is None else self.deep(x, step), present


def rounded(factor: float) -> dict[torch.dtype, float]:
    """Return a factor as Hugging Face has it in each dtype: by way of fp32, also for fp64."""
    wide = torch.tensor(factor, dtype=torch.float32, device="cpu")
    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    return {dtype: wide.to(dtype).item() for dtype in floats}


class ScaledEmbedding(nn.Embedding):
    """Embedding times a factor that is rounded to the dtype of the weights (Gemma)."""

    def __init__(self, vocab: int, dim: int, scale: float):
        super().__init__(vocab, dim)
        self.scales = rounded(scale)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.scales[self.weight.dtype]


class Scaled(nn.Module):
    """The output of a module, times a factor that is not rounded to the dtype of the weights."""

    def __init__(self, inner: nn.Module, factor: float):
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.factor


class WideScaledEmbedding(nn.Embedding):
    """Embedding times a factor, multiplied in fp32 and rounded once (Trinity)."""

    def __init__(self, vocab: int, dim: int, scale: float):
        super().__init__(vocab, dim)
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        x = super().forward(input)
        return (widen(x) * self.scale).to(x.dtype)


class TiedHead(nn.Module):
    """The embedding's own matrix as the head."""

    def __init__(self, embed: nn.Embedding):
        super().__init__()
        self.embed = embed

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.embed.weight)


class Softcap(nn.Module):
    """`cap * tanh(x / cap)`."""

    def __init__(self, cap: float):
        super().__init__()
        self.cap = cap

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / self.cap) * self.cap


class Final(nn.Module):
    """The norm, the head and what follows it, on the rows that are asked for."""

    def __init__(self, norm: nn.Module, head: nn.Module, softcap: float | None = None):
        super().__init__()
        self.norm, self.head = norm, head
        self.cap = Softcap(softcap) if softcap else nn.Identity()

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """x B,T,D; rows B,R int64: positions in T, None for all -> logits B,R,V in x's dtype."""
        if rows is not None:
            x = x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[2]))
        return self.cap(self.head(self.norm(x)))


class Decoder(nn.Module):
    """A decoder-only language model. Called on ids, it does one full pass with an empty cache.

    side: `side(input_ids, x, step)`, run once after the embedding, hands over what layers take
    besides x; None where they take nothing.

    image_inputs: what it takes for pictures, by the names of IMAGE_INPUTS and in their order; ()
        for text alone. image_width: numbers of a feature.
    """

    def __init__(
        self,
        *,
        embed: nn.Module,
        layers: Sequence[nn.Module],
        norm: nn.Module,
        head: nn.Module,
        softcap: float | None = None,
        side: nn.Module | None = None,
    ):
        super().__init__()
        self.embed, self.side = embed, side
        self.layers = nn.ModuleList(layers)
        self.final = Final(norm, head, softcap)
        self.image_inputs: tuple[str, ...] = ()
        self.visible: Handoff | None = None
        self.deep: Handoff | None = None
        self.image_width = 0

    def tables(self) -> list[Table]:
        """Return the distinct tables that the layers share, in order of first use."""
        found = {id(m): m for m in self.layers.modules() if isinstance(m, Table)}
        return list(found.values())

    def limit(self, context: int) -> None:
        """Let rows have `context` tokens at most, from now on: layers carry what that needs."""
        for layer in self.layers:
            cast(Layer, layer).mixer.limit(context)

    def see(self, width: int, *inputs: str, deep: int = 0) -> None:
        """Take features of pictures from now on, of `width` numbers each.

        inputs: those of IMAGE_INPUTS that it takes besides the features and their rows. deep: how
        many of the first layers add features of their own, which come behind the others. Raises
        ValueError where a config is not of such a model.
        """
        taken = {FEATURES, ROWS, *inputs}
        assert taken <= IMAGE_INPUTS.keys(), inputs
        self.image_inputs = tuple(name for name in IMAGE_INPUTS if name in taken)
        self.image_width = (1 + deep) * width
        if deep:
            features = State(FEATURES, ("F", self.image_width))
            self.deep = Handoff(features, State(ROWS, ("B", "T"), torch.int64))
            if deep > len(self.layers):
                raise ValueError(f"{len(self.layers)} layers do not take {deep} features each")
            for i in range(deep):
                cast(Layer, self.layers[i]).deep = Deepstack(self.deep, (1 + i) * width)
        for table in self.tables() if ROPE_POSITIONS in taken else ():
            table.see()
        if ENDS in taken:
            self.visible = Handoff(State(ENDS, ("B", "T"), torch.int64))
            for layer in self.layers:
                cast(Layer, layer).mixer.see(self.visible)

    def states(self) -> list[tuple[State, ...]]:
        """Return what every layer carries from call to call."""
        return [cast(Layer, layer).mixer.states for layer in self.layers]

    def empty_states(self, batch: int, capacity: int) -> list[Past]:
        """Return zeroed states of every layer, in the dtype and on the device of the embedding."""
        like = next(self.parameters())
        return [empty(s, batch, capacity, like.dtype, like.device) for s in self.states()]

    def call(
        self, cache_lengths: Tensor, token_counts: Tensor, tokens: int, images: Images
    ) -> Step:
        """Return what all parts share of a call of T tokens; images: empty for text alone."""
        turned = images.get(ROPE_POSITIONS)
        step = Step(cache_lengths, token_counts, tokens, rope_positions=turned)
        if self.visible is not None and images:
            step.hand(self.visible, [images[ENDS]])
        if self.deep is not None and images:
            step.hand(self.deep, [images[FEATURES], images[ROWS]])
        return step

    def step(
        self,
        input_ids: Tensor,
        cache_lengths: Tensor,
        token_counts: Tensor,
        past: list[Past],
        images: Images | None = None,
    ) -> tuple[Tensor, list[Past]]:
        """Process T more tokens per row: logits B,T,V and the new states.

        images: all of `image_inputs`; None for a call without pictures.
        """
        given = images or {}
        step = self.call(cache_lengths, token_counts, input_ids.shape[1], given)
        x, present = embedded(self.embed, input_ids, given), []
        if self.side is not None:
            self.side(input_ids, x, step)
        for layer, state in zip(self.layers, past, strict=True):
            x, new = layer(x, step, state)
            present.append(new)
        return self.final(x), present

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids B,T int64 -> logits B,T,V of every position."""
        batch, tokens = input_ids.shape
        lengths = torch.zeros(batch, dtype=torch.int64, device=input_ids.device)
        counts = torch.full_like(lengths, tokens)
        return self.step(input_ids, lengths, counts, self.empty_states(batch, tokens))[0]
