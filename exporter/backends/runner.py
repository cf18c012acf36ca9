"""What a backend offers to a session: one graph or plan, loaded, and memory for its states."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lmcast.plugins.errors import InputError

if TYPE_CHECKING:
    from lmcast.exporter.backends.cuda import Cuda

Shaped = tuple[str, tuple[int, ...], str]  # a state's name, sizes and dtype


class SessionError(InputError, IndexError):
    """Token ids or lengths that the engine cannot take, or states that no memory is left for."""


@dataclass(frozen=True)
class Loading:
    """How a graph is loaded; a plan is what it was compiled to, and takes none of it.

    threads: None for all cores. prepack: copy weights into the layout that kernels like best, also
    where the graph does not require it. model: bytes of a graph to load in place of the engine's.
    """

    threads: int | None = None
    prepack: bool = False
    model: bytes | None = None


@dataclass(frozen=True)
class Limits:
    """The most that a plan takes: its sizes are fixed when it is built."""

    rows: int
    context: int  # tokens that a row holds: the capacity of its states
    tokens: int  # of a row in one call
    logits: int  # rows of logits of a row in one call
    rebuild: Callable[..., str]  # of new sizes by name: the command that builds such a plan


class Runner(Protocol):
    """A loaded graph or plan. States are its own: a session keeps them and hands them back.

    Letters: B rows of a call, T tokens, R rows of logits, V vocabulary.
    """

    @property
    def limits(self) -> Limits | None:
        """The sizes that it was compiled for; None where any will do."""
        ...

    @property
    def place(self) -> str:
        """What has the memory that states lie in, in words."""
        ...

    @property
    def gpu(self) -> "Cuda | None":
        """The GPU it runs on; None for the CPU."""
        ...

    def memory(self, states: Sequence[Shaped]) -> tuple[int, int]:
        """Return the bytes that states would take, and those that there are."""
        ...

    def allocate(self, states: Sequence[Shaped]) -> Any:
        """Return states of zeros; the first axis of each is the rows of the session.

        Raises SessionError where there is no memory for them.
        """
        ...

    def run(
        self, inputs: Mapping[str, np.ndarray], states: Any, *, rows: slice
    ) -> list[np.ndarray]:
        """Run once over these rows of the states, and return the logits B,R,V as the only item.

        inputs: int64, by the names of the graph's inputs: input_ids B,T, cache_lengths B,
        token_counts B, logit_rows B,R. The states afterwards hold those tokens too.
        """
        ...
