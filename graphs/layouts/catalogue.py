"""The catalogue of quantized storage formats, and what a config.json says about them."""

from collections.abc import Callable, Mapping
from typing import Any

from lmcast.graphs.config.inert import NONE, Inert
from lmcast.graphs.config.reading import ConfigError, UnreadKeys, parse
from lmcast.graphs.layouts import (
    auto_round,
    awq,
    bitsandbytes,
    compressed_tensors,
    gptq,
    mlx,
    modelopt,
    quark,
)
from lmcast.graphs.layouts.block_fp8 import Fp8Settings
from lmcast.graphs.layouts.fbgemm_fp8 import FbgemmFp8
from lmcast.graphs.layouts.gpt_oss import Mxfp4Settings
from lmcast.graphs.layouts.tensors import PLAIN, UNDONE, Found, Settings, Tensors

KEY = "quantization_config"
Read = Callable[[Mapping[str, Any], str, Inert], Settings]
METHODS: Mapping[str, Read] = {
    "fp8": lambda raw, at, inert: parse(Fp8Settings, raw, at, inert),
    "fbgemm_fp8": lambda raw, at, inert: parse(FbgemmFp8, raw, at, inert),
    "mxfp4": lambda raw, at, inert: parse(Mxfp4Settings, raw, at, inert),
    "compressed-tensors": compressed_tensors.read,
    "modelopt": modelopt.read,
    "gptq": gptq.read,
    "awq": awq.read,
    "auto-round": auto_round.read,
    "quark": quark.read,
    "bitsandbytes": bitsandbytes.read,
    "mlx": mlx.read,
}
# Of sections without a quant_method, whose they are.
UNNAMED: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "modelopt": modelopt.is_own,
    "mlx": mlx.is_own,
    "bitsandbytes": bitsandbytes.is_own,
}
# Method -> the architectures whose tensors it leaves as they are; without an entry: all.
ONLY: Mapping[str, frozenset[str]] = {"mlx": mlx.ARCHITECTURES}
# What to do about methods that are not read, where it is more than PLAIN.
BY_PARTS = "dequantize() every weight with its library and save_pretrained() that, or " + PLAIN
REMEDIES: Mapping[str, str] = {
    "higgs": UNDONE,
    **dict.fromkeys(("hqq", "quanto", "torchao"), BY_PARTS),
    "intel/auto-round": "export it again with an AutoRound that writes 'auto-round', or " + PLAIN,
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
    try:
        for within, raw in places.items():
            for key in (KEY, mlx.KEY):
                path, given = f"{within}{key}", raw.get(key)
                if path in inert or not isinstance(given, Mapping):
                    continue
                method = _method(given, path)
                if name not in ONLY.get(method, {name}):
                    raise ConfigError(
                        f"config.json: {path} is of {method}, which changes tensors of this"
                        f" architecture; {PLAIN}, or one quantized otherwise"
                    )
                found[path] = METHODS[method](raw.pop(key), f"config.json: {path}.", inert)
    except UnreadKeys:
        raise
    except ConfigError as error:
        remedy = "" if PLAIN in str(error) else f"; or {PLAIN}"
        raise ConfigError(f"{name}: {error}{remedy}") from None
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


def _method(section: Mapping[str, Any], path: str) -> str:
    """Return what reads a section; raises ConfigError where nothing does."""
    unnamed = (name for name, is_own in UNNAMED.items() if is_own(section))
    method = section["quant_method"] if "quant_method" in section else next(unnamed, None)
    if isinstance(method, str) and method in METHODS:
        return method
    known = ", ".join(METHODS)
    if method is None:
        raise ConfigError(f"config.json: {path}.quant_method is missing; accepted: {known}")
    raise ConfigError(
        f"config.json: {path}.quant_method is {method!r:.80}; accepted: {known};"
        f" {REMEDIES.get(str(method), PLAIN)}"
    )
