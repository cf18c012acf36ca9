"""The interface of a backend to a session: one loaded graph or plan, and memory for its states."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lmcast.plugins.errors import InputError

if TYPE_CHECKING:
    from lmcast.exporter.backends.cuda import Cuda

# What every graph takes beside its states, int64, by name; letters as of a Runner.
INPUTS: Mapping[str, tuple[str, ...]] = {
    "input_ids": ("B", "T"),
    "cache_lengths": ("B",),
    "token_counts": ("B",),
    "logit_rows": ("B", "R"),
}
Shaped = tuple[str, tuple[int, ...], str]  # a state's name, sizes and dtype
# A loaded tower: its inputs by name, float32 and int64 -> its outputs, float32: features F,W.
RunTower = Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]


class SessionError(InputError, IndexError):
    """Token ids or lengths that the engine cannot take, or states that do not fit into memory."""


@dataclass(frozen=True)
class Loading:
    """How a graph is loaded; plans, which are compiled, use none of it.

    threads: None for all cores.
    prepack: copy weights into the kernels' preferred layout, also where the graph does not require
        it.
    exact: not even where the graph does: kernels then round no inputs of products with 4- and 8-bit
        weights, which they dequantize in every call.
    model: bytes of a graph to load instead of the engine's.
    """

    threads: int | None = None
    prepack: bool = False
    exact: bool = False
    model: bytes | None = None


@dataclass(frozen=True)
class Limits:
    """The largest sizes of a call, which are fixed when a plan is built."""

    rows: int
    context: int  # tokens that a row holds: the capacity of its states
    tokens: int  # of a row in one call
    logits: int  # rows of logits of a row in one call
    rebuild: Callable[..., str]  # of new sizes by name: the command that builds such a plan


class Runner(Protocol):
    """A loaded graph or plan. Its states are opaque: a session keeps them and passes them back.

    Letters: B rows of a call, T tokens, R rows of logits, V vocabulary.
    """

    @property
    def limits(self) -> Limits | None:
        """The sizes that it was compiled for; None where it takes any."""
        ...

    @property
    def place(self) -> str:
        """The device whose memory states take, in words."""
        ...

    @property
    def gpu(self) -> "Cuda | None":
        """The GPU it runs on; None for the CPU."""
        ...

    def memory(self, states: Sequence[Shaped]) -> tuple[int, int]:
        """Return the bytes that states would take, and those available."""
        ...

    def allocate(self, states: Sequence[Shaped], kept: Any = None) -> Any:
        """Return zeroed states; the first axis of each is the rows of the session.

        kept: states of the same session with a smaller capacity, whose contents are copied.
        Raises SessionError where they do not fit into memory.
        """
        ...

    def run(
        self, inputs: Mapping[str, np.ndarray], states: Any, *, rows: slice
    ) -> list[np.ndarray]:
        """Run once over these rows of the states, and return the logits B,R,V as the only item.

        inputs: int64, by the names of the graph's inputs: input_ids B,T, cache_lengths B,
        token_counts B, logit_rows B,R; total_length [1] int32 where the graph asks for it, and what
        it takes of pictures (see backends.images), their features in any dtype. The states are
        updated.
        """
        ...
