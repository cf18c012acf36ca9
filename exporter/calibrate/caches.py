"""Scales of FP8 caches, from keys and values of the unquantized model.

Letters: B batch, T tokens, G key heads, K head width.
"""

from typing import cast

import torch
from torch import Tensor

from lmcast.calib.observers import static_scale
from lmcast.calib.statistics import InputStatistics
from lmcast.exporter.calibrate.hidden_states import MIXER, Stream
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import Decoder, Layer
from lmcast.graphs.blocks.keeps import Lend
from lmcast.plugins.errors import InputError


class CacheError(InputError):
    """A model whose layers cannot cache keys and values in FP8."""


def check_caches(model: Decoder) -> None:
    """Raise CacheError where no attention, or not all of it, can have an FP8 cache."""
    held = [cast(Layer, layer).mixer for layer in model.layers]
    attention = [mixer for mixer in held if isinstance(mixer, Attention)]
    for index, mixer in enumerate(held):
        if isinstance(mixer, Attention) and isinstance(mixer.keeps, Lend):
            raise CacheError(
                f"--kv fp8: layers.{index}.{MIXER} lends its keys and values to later layers, which"
                " read them as they are computed; accepted: models whose layers have their own"
            )
    if not attention:
        found = sorted({state.name for mixer in held for state in mixer.states})
        raise CacheError(
            "--kv fp8: no layer of this model has keys and values of heads; what they hold is"
            f" {', '.join(found)}, which stays as it is: leave out --kv"
        )


def scales(stream: Stream, index: int, observer: str) -> tuple[Tensor, Tensor] | None:
    """Return the scales () of a layer's keys and values, None where it has none.

    The layer must have its weights, and the stream of the unquantized model must be at its input.
    Keys and values are those that would be cached: after norms and rotation.
    """
    mixer = cast(Layer, stream.layers[index]).mixer
    if not isinstance(mixer, Attention):
        return None
    widths = mixer.projections.head_dim, mixer.projections.value_width
    seen = [InputStatistics(width) for width in widths]
    for calls in stream.calls(index, [f"{MIXER}.cache"], 1):
        ((_, held),) = calls
        for statistics, x in zip(seen, held, strict=True):
            statistics.add(x.flatten(0, -2))  # B*T*G,K
    key, value = (torch.tensor(static_scale(each, "fp8", observer)) for each in seen)
    return key, value
