"""What a config.json says of the numbers that any architecture's weights may be stored in."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from lmcast.graphs.arch import ConfigError, parse
from lmcast.graphs.fp8 import SCALE, Fp8Settings
from lmcast.graphs.layouts import awq, compressed_tensors, gptq, modelopt, quark
from lmcast.graphs.layouts.tensors import Found, Settings, Tensors
from lmcast.graphs.quantized import Shapes

KEY = "quantization_config"
Read = Callable[[Mapping[str, Any], str, Collection[str]], Settings]
METHODS: Mapping[str, Read] = {
    "compressed-tensors": compressed_tensors.read,
    "modelopt": modelopt.read,
    "gptq": gptq.read,
    "awq": awq.read,
    "quark": quark.read,
}


def take(
    name: str,
    config: Mapping[str, Any],
    tensors: Tensors,
    multimodal: bool,
    inert: Collection[str] = (),
) -> tuple[Found, dict[str, Any]]:
    """Return what a config.json of the architecture `name` says is quantized, and the rest of it.

    A multimodal one may say it at the top, in its text_config or in both. Raises ConfigError for
    what is not read, WeightError for tensors that do not fit.
    """
    rest = dict(config)
    places = {"": rest}
    if multimodal and isinstance(text := rest.get("text_config"), Mapping):
        places["text_config."] = rest["text_config"] = dict(text)
    found: dict[str, Settings] = {}
    try:
        for within, raw in places.items():
            path, given = f"{within}{KEY}", raw.get(KEY)
            if path in inert or not isinstance(given, Mapping) or not given:
                continue
            method = given.get("quant_method")
            if method in ("fp8", "mxfp4"):
                continue
            if not isinstance(method, str) or method not in METHODS:
                raise ConfigError(
                    f"config.json: {path}.quant_method is {method!r:.80}; accepted:"
                    f" {', '.join(METHODS)}"
                )
            found[path] = METHODS[method](raw.pop(KEY), f"config.json: {path}.", inert)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    if not found:
        return Found(), rest
    (first, settings), *others = found.items()
    for other, differing in others:
        if differing != settings:
            raise ConfigError(f"{name}: config.json: {first} and {other} differ; make them equal")
    try:
        return settings.find(tensors), rest
    except ConfigError as error:
        raise ConfigError(f"{name}: config.json: {first}.{error}") from None


def take_fp8(
    name: str,
    config: Mapping[str, Any],
    shapes: Shapes,
    multimodal: bool,
    inert: Collection[str] = (),
) -> tuple[Fp8Settings | None, dict[str, Any]]:
    """Return what a config.json of the architecture `name` says of FP8, and the rest of it.

    A multimodal one may say it at the top, in its text_config or in both. Other quantizations stay
    where they are. Raises ConfigError for what is not read, and where no tensor is in FP8.
    """
    rest = dict(config)
    places = {"": rest}
    if multimodal and isinstance(text := rest.get("text_config"), Mapping):
        places["text_config."] = rest["text_config"] = dict(text)
    found: dict[str, Fp8Settings] = {}
    for within, raw in places.items():
        path, given = f"{within}{KEY}", raw.get(KEY)
        if path in inert or not isinstance(given, Mapping) or given.get("quant_method") != "fp8":
            continue
        try:
            found[path] = parse(Fp8Settings, raw.pop(KEY), f"config.json: {path}.", inert)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
    if not found:
        return None, rest
    (first, settings), *others = found.items()
    for other, differing in others:
        if differing != settings:
            raise ConfigError(f"{name}: config.json: {first} and {other} differ; make them equal")
    if not any(tensor.endswith(SCALE) for tensor in shapes):
        raise ConfigError(
            f"{name}: config.json: {first}.quant_method is 'fp8', but no tensor has scales"
            f" (NAME{SCALE}); take {KEY} out if the weights are plain numbers"
        )
    return settings, rest
