"""Quantization of the output head or tied embedding, without calibration.

Scales minimize the error of the weight itself: that needs no text, and a tied embedding is
quantized before any text has gone through the model.
"""

from torch import nn

from lmcast.calib.formats import WEIGHTS
from lmcast.calib.presets import PLAIN, Preset
from lmcast.exporter.calibrate.layer import Outcome
from lmcast.exporter.calibrate.units import refused
from lmcast.graphs.blocks.decoder import Decoder
from lmcast.plugins.errors import InputError


class HeadError(InputError):
    """A head that cannot be quantized so."""


def head_of(model: Decoder) -> str:
    """Return the name of the head's matrix; a tied one has that of the embedding."""
    matrices = [id(p) for p in model.final.head.parameters() if p.dim() == 2]
    names = [name for name, p in model.named_parameters() if id(p) in matrices]
    if len(names) != 1:
        raise HeadError(f"the head is {len(names)} matrices; accepted: one: leave out --head")
    return names[0]


def check_head(model: Decoder, preset: Preset) -> None:
    """Raise HeadError where the head does not fit the format of a recipe."""
    name = head_of(model)
    shape = tuple(model.get_parameter(name).shape)
    if why := refused(shape, WEIGHTS[preset.weights], PLAIN):
        raise HeadError(
            f"--head: {name} cannot be {preset.weights}: {why}; accepted: a recipe of another"
            " format, or no --head"
        )


def is_tied(model: Decoder, head: str) -> bool:
    """Whether a head is also the matrix of a module before the layers."""
    parts: list[nn.Module] = [model.embed, *([model.side] if model.side is not None else [])]
    weight = model.get_parameter(head)
    return any(weight is p for part in parts for p in part.parameters())


def quantized_head(model: Decoder, head: str, preset: Preset) -> tuple[Outcome, dict[str, object]]:
    """Return the tensors to write for the head, which has its weights, and its record for the
    report.

    The errors in the record are of the weight, not of outputs.
    """
    format, weight = WEIGHTS[preset.weights], model.get_parameter(head)
    scales, shared = format.scales(weight)
    nearest = format.pack(weight, scales, shared)
    packed = format.pack(weight, format.search(weight, shared=shared), shared)
    size = float(weight.square().mean()) or 1.0
    outcome = Outcome()
    outcome.add(head, packed)
    return outcome, {
        "name": head,
        "algorithm": "search",
        "error": format.error(weight, packed) / size,
        "base_error": format.error(weight, nearest) / size,
    }
