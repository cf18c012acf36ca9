"""The request for a plan: GPUs, and bounds of its calls."""

import re
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from lmcast.exporter.backends.cuda import local_sm
from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.plugins.annotations import Count, Range
from lmcast.plugins.arguments import checked_fields

Bounds = tuple[int, int, int]  # least, usual, most
Sm = Annotated[int, Range(10, 999)]  # of two or three digits: 89 for SM89

CONTEXT = 4096  # tokens that a row may hold unless asked; states are reserved for all of them
TOKENS = 2048  # most tokens of one call unless asked
USUAL_TOKENS = 128
MOST_BATCH = 4096


@checked_fields
@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bounds of a plan's calls; None: a usual value, or what the context leaves."""

    max_batch: Count = 1
    max_context: Count | None = None  # tokens that a row can hold
    max_tokens: Count | None = None  # of one call; a longer prompt goes in several
    opt_batch: Count = 1
    opt_tokens: Count | None = None  # of a usual prompt
    max_pixels: Count | None = None  # of one picture; where the engine takes pictures
    widen: bool = False  # store weights of 4 bits as ones of 8 where an SM lacks them

    def asked(self) -> list[str]:
        """Return the names of those that are not as usual."""
        return [f.name for f in fields(self) if getattr(self, f.name) != f.default]


@dataclass(frozen=True)
class Request:
    """A target, the SMs of its GPUs (89 for SM89), and bounds of a call."""

    target: str
    sms: tuple[int, ...]
    max_batch: int
    max_context: int  # tokens that a row can hold
    max_tokens: int  # of one call
    opt_batch: int
    opt_tokens: int  # the usual number of tokens of a prompt
    widen: bool = False  # store weights of 4 bits as ones of 8 where an SM lacks them
    max_pixels: int | None = None  # of one picture; None: as many as the engine makes of one

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"sms": list(self.sms)}

    @property
    def file(self) -> str:
        """The path of the plan inside an engine: plans/tensorrt-rtx-sm89-sm120.plan."""
        return f"plans/{self._name}.plan"

    @property
    def tower_file(self) -> str:
        """That of the tower's plan, where the engine takes pictures."""
        return f"plans/{self._name}-vision.plan"

    @property
    def _name(self) -> str:
        return "-".join((self.target, *(f"sm{sm}" for sm in self.sms)))

    @property
    def here(self) -> bool:
        """Whether a GPU of this kind is at hand."""
        return local_sm() in self.sms

    @property
    def profiles(self) -> list[dict[str, Bounds]]:
        """The optimization profiles: ranges of the graph's axes for a decoding step, then for a
        prompt.

        B rows, T tokens of a call, R rows of logits, F features of pictures that it uses; C, the
        capacity, is fixed.
        """
        batch = (1, self.opt_batch, self.max_batch)
        capacity = (self.max_context,) * 3
        step = {"B": batch, "T": (1, 1, 1), "R": (1, 1, 1), "F": (1, 1, 1), "C": capacity}
        # As many rows of logits as a usual prompt has tokens: for parity and perplexity.
        tokens = 1, self.opt_tokens, self.max_tokens
        features = 1, self.opt_tokens, self.max_batch * self.max_tokens
        prompt = {"B": batch, "T": tokens, "F": features, "C": capacity}
        return [step, prompt | {"R": (1, 1, self.opt_tokens)}]


def resolve(target: str, sms: tuple[int, ...], context: int, sizes: Sizes) -> Request:
    """Return a checked request; context: of the engine. Raises BackendError for invalid sizes."""
    capacity = _within("max-context", sizes.max_context, min(CONTEXT, context), context)
    most = _within("max-tokens", sizes.max_tokens, min(TOKENS, capacity), capacity)
    batch = _within("max-batch", sizes.max_batch, 1, MOST_BATCH)
    usual = _within("opt-batch", sizes.opt_batch, 1, batch)
    tokens = _within("opt-tokens", sizes.opt_tokens, min(USUAL_TOKENS, most), most)
    return Request(target, sms, batch, capacity, most, usual, tokens, sizes.widen, sizes.max_pixels)


def _within(name: str, asked: int | None, usual: int, most: int) -> int:
    value = usual if asked is None else asked
    if not 1 <= value <= most:
        raise BackendError(f"--{name} is {value}; accepted: 1 to {most}")
    return value


def parse_sms(text: str) -> tuple[int, ...]:
    """Return the SMs of '89,120', as numbers in order; raises BackendError for anything else."""
    found = [
        re.fullmatch(r"(?:sm)?(\d{2,3}|\d{1,2}\.\d)", w.strip().lower()) for w in text.split(",")
    ]
    if not all(found):
        raise BackendError(f"--sm is {text!r:.80}; accepted: compute capabilities such as 89,120")
    return tuple(sorted({int(word[1].replace(".", "")) for word in found if word}))
