"""The cases of operators that have kernels, as launch plans are made for them: with open axes."""

import math
from typing import Any

import torch
from operators import REGISTRY
from torch import Tensor

from lmcast.plugins.launch.launch_plan import Bounds, Case, Given, host_code
from lmcast.plugins.plugin import Plugin

EACH = [
    (plugin, i)
    for plugin in REGISTRY.values()
    if "triton" in plugin.kernels
    for i in range(len(plugin.cases()))
]
ONE, DECODE, PREFILL = (
    {"B": Bounds(*batch), "T": Bounds(*tokens)}
    for batch, tokens in (
        ((1, 1, 1), (1, 1, 1)),
        ((1, 4, 1), (1, 1, 1)),
        ((1, 4, 1), (1, 512, 128)),
    )
)
# The first axes of each tensor that has any in common with others.
AXES = {
    **dict.fromkeys(("query", "rotated", "latent", "key", "value", "decay", "beta"), "BT"),
    **dict.fromkeys(("x", "logits", "weights", "chosen"), "BT"),
    **dict.fromkeys(("past", "past_key", "past_state", "cache_lengths", "token_counts"), "B"),
}
for name in dict.fromkeys(plugin.name for plugin, _ in EACH):
    # What compiles a launch plan turns the interpreter off: for kernels that are not yet imported.
    host_code(name)
CACHES = ("mla_attention", "sparse_attention", "sparse_index")  # whose state grows by tokens


def label(of: Any) -> str:
    return of.name if isinstance(of, Plugin) else str(of)


def opened(plugin: Plugin, args: tuple, growing: bool = False) -> list[Any]:
    """Return the arguments of a launch plan for those of a call: its tensors, with axes by name.

    growing: whether the capacity of caches is open, too, as C.
    """
    found: list[Any] = []
    for argument, one in zip(plugin.schema.arguments, args, strict=True):
        if isinstance(one, Tensor):
            axes = AXES.get(argument.name, "")
            if (
                growing
                and argument.name.startswith("past")
                and one.shape[1] >= fewest(plugin, args)
            ):
                axes = "BC"
            one = Given(one.dtype, (*axes, *one.shape[len(axes) :]))
        found.append(one)
    return found


def fewest(plugin: Plugin, args: tuple) -> float:
    """Return the least capacity that a launch plan can leave open; inf where it can leave none."""
    if plugin.name not in CACHES:
        return math.inf
    return args[-1] if plugin.name == "sparse_index" else 1  # as many as it chooses


def growing_cases(plugin: Plugin, args: tuple) -> list[Case]:
    """Return the cases of a session whose caches grow."""
    least = fewest(plugin, args)
    capacity = {"C": Bounds(least, 65536, max(least, 4096))} if least < math.inf else {}
    return [case | capacity for case in (ONE, DECODE, PREFILL)]


def cast(args: tuple, dtype: torch.dtype) -> tuple:
    """Return arguments with all floating-point tensors in a dtype."""
    return tuple(
        a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args
    )
