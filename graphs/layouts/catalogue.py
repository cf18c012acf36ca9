"""The catalogue of quantized storage formats, and what a config.json says about them."""

from collections.abc import Callable, Mapping
from typing import Any

from lmcast.graphs.config.inert import NONE, Inert
from lmcast.graphs.config.reading import ConfigError, parse
from lmcast.graphs.layouts import awq, compressed_tensors, gptq, modelopt, quark
from lmcast.graphs.layouts.block_fp8 import Fp8Settings
from lmcast.graphs.layouts.gpt_oss import Mxfp4Settings
from lmcast.graphs.layouts.tensors import Found, Settings, Tensors

KEY = "quantization_config"
Read = Callable[[Mapping[str, Any], str, Inert], Settings]
METHODS: Mapping[str, Read] = {
    "fp8": lambda raw, at, inert: parse(Fp8Settings, raw, at, inert),
    "mxfp4": lambda raw, at, inert: parse(Mxfp4Settings, raw, at, inert),
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
    inert: Inert = NONE,
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
    known = ", ".join(METHODS)
    try:
        for within, raw in places.items():
            path, given = f"{within}{KEY}", raw.get(KEY)
            if path in inert or not isinstance(given, Mapping):
                continue
            if "quant_method" not in given:
                raise ConfigError(f"config.json: {path}.quant_method is missing; accepted: {known}")
            method = given["quant_method"]
            if not isinstance(method, str) or method not in METHODS:
                raise ConfigError(
                    f"config.json: {path}.quant_method is {method!r:.80}; accepted: {known}"
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
