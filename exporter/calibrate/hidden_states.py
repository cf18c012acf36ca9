"""Hidden states of text between two parts of a model, chunk by chunk.

Letters: C chunks, T tokens of a chunk, W width of hidden states, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.blocks.step import Step, empty

# Of one call: enough for a matrix product, little beside a layer's weights. Of 2,048 in chunks of
# 512 a layer of SmolLM2 took 1.3 times as long: scores of attention left the caches.
BATCH_TOKENS = 512
IN_MEMORY = 1 << 30  # 1 GiB: larger states lie in a file
MIXER = "mixer"  # of a layer: its token mixer
Call = tuple[str, tuple[Tensor, ...]]  # the module that was called, and with what


class Reached(Exception):
    """Raised when the last wanted call has come: the rest of the layer need not run."""


class Stream:
    """Hidden states of chunks that go through the layers of a model one after the other, in fp32.

    Handoffs between layers stay in memory.
    """

    def __init__(self, model: Decoder, ids: Tensor, file: Path):
        """ids C,T int64; file: where hidden states of more than IN_MEMORY bytes lie."""
        self.model, self.ids, self.file = model, ids, file
        self.layers = list(model.layers)
        chunks, tokens = ids.shape
        rows = max(1, BATCH_TOKENS // tokens)
        self.parts = [slice(i, min(i + rows, chunks)) for i in range(0, chunks, rows)]
        self.steps = [_fresh(part.stop - part.start, tokens) for part in self.parts]
        self.hidden = torch.empty(0)
        self._settled, self._mixed, self._known = False, torch.empty(0), set[int]()

    def embed(self) -> None:
        """Run the embedding, which has its weights."""
        for part in self.parts:
            x = self.model.embed(self.ids[part])
            if not self.hidden.numel():
                self.hidden = room((len(self.ids), *x.shape[1:]), self.file)
            self.hidden[part] = x

    def beside(self, side: nn.Module) -> None:
        """Run the module beside the layers that hands over their further inputs; it has its
        weights."""
        for part, step in zip(self.parts, self.steps, strict=True):
            side(self.ids[part], self.hidden[part], step)

    def advance(self, index: int) -> None:
        """Run a layer, which has its weights, and move to its output."""
        for batch, part in enumerate(self.parts):
            self.hidden[part] = self.output(index, batch)
        self._settled, self._mixed = False, torch.empty(0)
        self._known.clear()

    def settle(self) -> None:
        """Take the token mixer of this layer as final, until the stream moves on: its outputs are
        computed once more, and kept. They do not depend on the weights behind it, for which the
        layer runs again and again."""
        self._settled = True

    def calls(
        self,
        index: int,
        names: Iterable[str],
        wanted: int = 0,
        *,
        batches: int | None = None,
        advance: bool = False,
    ) -> Iterator[list[Call]]:
        """Yield the inputs of modules of a layer, which has its weights, batch by batch.

        wanted: the number of calls, after which the layer need not run on; 0: unknown.
        batches: how many, None for all.
        advance: move to the output of the layer; otherwise the stream stays at its input.
        """
        layer, seen = self.layers[index], list[Call]()

        def hook(name: str) -> Any:
            def see(module: nn.Module, given: tuple[Tensor, ...]) -> None:
                seen.append((name, given))
                if len(seen) == wanted:
                    raise Reached

            return see

        with ExitStack() as hooks:
            for name in names:
                module = layer.get_submodule(name)
                hooks.enter_context(module.register_forward_pre_hook(hook(name)))
            for batch in range(len(self.parts))[:batches]:
                with suppress(Reached):
                    out = self.output(index, batch)
                    if advance:
                        self.hidden[self.parts[batch]] = out
                yield list(seen)
                seen.clear()

    def logits(self, final: nn.Module) -> Iterator[Tensor]:
        """Yield the logits T,V of one chunk after the other; final: the model's last part, with
        weights."""
        for chunk in self.hidden:
            yield final(chunk[None])[0]

    def output(self, index: int, batch: int) -> Tensor:
        """Return the output of a layer, which has its weights, for a batch; the stream stays."""
        x = self.hidden[self.parts[batch]]
        past = empty(self.model.states()[index], x.shape[0], x.shape[1], x.dtype)
        layer = self.layers[index]
        with self._replaying(layer.get_submodule(MIXER), batch) if self._settled else nullcontext():
            out: Tensor = layer(x, self.steps[batch], past)[0]
        return out

    @contextmanager
    def _replaying(self, mixer: nn.Module, batch: int) -> Iterator[None]:
        """Let a mixer return what it returned for this batch, but for its states, which a stream
        has no use for."""
        part, compute = self.parts[batch], mixer.forward

        def forward(x: Tensor, step: Step, past: tuple[Tensor, ...]) -> Any:
            if batch not in self._known:
                y = compute(x, step, past)[0]
                if not self._mixed.numel():
                    file = self.file.with_name(f"{self.file.name} {MIXER}")
                    self._mixed = room((len(self.ids), *y.shape[1:]), file)
                self._mixed[part] = y
                self._known.add(batch)
            return self._mixed[part], past

        mixer.forward = forward
        try:
            yield
        finally:
            del mixer.forward


def room(shape: Sequence[int], file: Path) -> Tensor:
    """Return fp32 numbers to write to, in memory or, where they are many, in a file."""
    size = torch.Size(shape).numel()
    if size * 4 <= IN_MEMORY:
        return torch.empty(tuple(shape))
    mapped = torch.from_file(str(file), shared=True, size=size, dtype=torch.float32)
    return mapped.view(tuple(shape))


def _fresh(rows: int, tokens: int) -> Step:
    return Step(torch.zeros(rows, dtype=torch.int64), torch.full((rows,), tokens), tokens)
