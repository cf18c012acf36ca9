"""Older spellings of a config.json, folded into today's."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmcast.graphs.config.reading import ConfigError

# Kinds of layer, in words that transformers renamed: what files say -> today's, in any family.
OLDER_LAYER_TYPES = {
    "attention": "full_attention",
    "deepseek_sparse_attention": "indexed_attention",
    "mamba": "linear_attention",
}
LAYER_TYPE_KEYS = ("layer_types", "layers_block_type")

ROPE_KEYS = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
# Of rope parameters: to Hugging Face null is no silence, but an error, or means false.
NEVER_NULL = {*ROPE_KEYS, "rope_type", "truncate", "mrope_section"}


def renamed(raw: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return `raw` with other spellings of keys (old -> new) under the new one.

    Raises ConfigError where both are there and differ, and for a null in the other spelling: to
    Hugging Face it is no silence, but overwrites what it means.
    """
    out = dict(raw)
    for old, new in names.items():
        if old not in out:
            continue
        value = out.pop(old)
        if value is None:
            raise ConfigError(f"config.json: {old} is None; leave it out, or give a value")
        if out.setdefault(new, value) != value:
            raise ConfigError(
                f"config.json: {new} is {out[new]!r:.80}, but {old}, which means the same, is"
                f" {value!r:.80}; leave one out"
            )
    return out


def says(raw: Mapping[str, Any], *keys: str) -> bool:
    """Return whether one of these keys, of objects, is neither absent nor null; raises ConfigError
    for an empty one."""
    require_keys(raw, *keys)
    return any(raw.get(key) is not None for key in keys)


def require_keys(raw: Mapping[str, Any], *keys: str) -> None:
    """Refuse an empty object: to Hugging Face it is silence in some families, and in others, or
    beside another key, no positions at all."""
    for key in keys:
        if raw.get(key) == {}:
            raise ConfigError(f"config.json: {key} is {{}}; leave it out, or give its keys")


def layer_types_of_today(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return `raw` with the kinds of its layers in the words of today."""
    out = dict(raw)
    for key in LAYER_TYPE_KEYS:
        if isinstance(kinds := out.get(key), list | tuple):
            out[key] = [OLDER_LAYER_TYPES.get(k, k) if isinstance(k, str) else k for k in kinds]
    return out


def worded(raw: Mapping[str, Any], old: str, new: str, words: Sequence[str]) -> dict[str, Any]:
    """Return `raw` with key `new`, a list of words, made from key `old`, a list of numbers.

    Raises ConfigError where `old` is no such list, or disagrees with a `new` beside it.
    """
    numbers = raw.get(old)
    if numbers is None:
        return dict(raw)
    accepted = range(len(words))
    if not isinstance(numbers, list) or not all(type(n) is int and n in accepted for n in numbers):
        raise ConfigError(
            f"config.json: {old} is {numbers!r:.80}; accepted: a list of"
            f" {', '.join(f'{n} ({word})' for n, word in enumerate(words))}"
        )
    return renamed({**raw, old: [words[n] for n in numbers]}, {old: new})


def rope(
    raw: Mapping[str, Any], theta: float | None = None, partial: float = 1.0
) -> dict[str, Any]:
    """Return `raw` with rope_scaling, rope_theta and the like folded into rope_parameters.

    theta: where no key says it, of families with files that leave it out; None where all have it,
    so that one without is damaged. partial: the share of a head that rotates, where no key says it.
    Raises ConfigError where two spellings differ.
    """
    out = dict(raw)
    scaling, parameters = (_object(out, key) for key in ("rope_scaling", "rope_parameters"))
    if scaling and parameters and scaling != parameters:
        raise ConfigError(
            "config.json: rope_scaling and rope_parameters are both set and differ; keep one"
        )
    outer = {key: out.pop(key) for key in ROPE_KEYS if key in out}
    out["rope_parameters"] = _merge(scaling or parameters, outer, theta, "rope_parameters")
    if "partial_rotary_factor" not in raw:  # null is not silence: to Hugging Face it means 1
        out["rope_parameters"].setdefault("partial_rotary_factor", partial)
    return out


def axial_rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return `raw` with the rope_theta of its vision_config in rope_parameters there; raises
    ConfigError where two spellings differ."""
    vision = raw.get("vision_config")
    if not isinstance(vision, Mapping) or "rope_theta" not in vision:
        return dict(raw)
    at = "vision_config.rope_parameters"
    found = _object(parameters := dict(vision), "rope_parameters")
    merged = _merge(found, {"rope_theta": parameters.pop("rope_theta")}, None, at)
    return {**raw, "vision_config": {**parameters, "rope_parameters": merged}}


def rotated_share(rotary_dim: Any, head_dim: Any) -> float:
    """Return the share of a head that rotates, by two values of a raw config; 1 if they fail."""
    counts = type(rotary_dim) is int and type(head_dim) is int and 0 < rotary_dim <= head_dim
    return rotary_dim / head_dim if counts else 1.0


def rope_by_layer_type(
    raw: Mapping[str, Any], theta: Mapping[str, float | None], older: Mapping[str, str]
) -> dict[str, Any]:
    """Return `raw` with its rope settings folded into one rope_parameters per layer type.

    `theta` has the default of each type, None for none, `older` the key that once held it. An older
    rope_scaling is for full attention only, a partial_rotary_factor beside them for all. Raises
    ConfigError where two spellings differ.
    """
    out = dict(raw)
    require_keys(raw, "rope_scaling", "rope_parameters")
    scaling, parameters = (_object(out, key) for key in ("rope_scaling", "rope_parameters"))
    loose = sorted(parameters.keys() - theta.keys())
    if loose:
        raise ConfigError(
            f"config.json: rope_parameters sets {', '.join(loose)};"
            f" accepted: one object each for {', '.join(theta)}"
        )
    if "rope_type" not in scaling and scaling.get("type") not in (None, "default"):
        raise ConfigError(
            f"config.json: rope_scaling has type {scaling['type']!r:.80}, which Hugging Face does"
            " not read where types of layers have ropes of their own; call it rope_type"
        )
    found = {kind: _object(parameters, kind) for kind in theta}
    if scaling and found["full_attention"] not in ({}, scaling):
        raise ConfigError(
            "config.json: rope_scaling and rope_parameters.full_attention are both set and differ"
        )
    found["full_attention"] = scaling or found["full_attention"]
    outer = {key: out.pop(key) for key in set(older.values()) if key in out}
    partial = out.pop("partial_rotary_factor", None)
    for kind, default in theta.items():
        at = f"rope_parameters.{kind}"
        given = {key: outer[key] for key in (older[kind],) if key in outer}
        given |= {"partial_rotary_factor": partial}
        found[kind] = _merge(found[kind], given, default, at)
        if found[kind].get("truncate") is False:
            raise ConfigError(
                f"config.json: {at}.truncate is false; Hugging Face reads it for one rope of all"
                " layers only, so nothing tells what it means here"
            )
    out["rope_parameters"] = found
    return out


def rope_with_local_base(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fold Gemma 3's rope settings, with its defaults, into `raw` as rope_by_layer_type does."""
    theta = {"full_attention": 1e6, "sliding_attention": 1e4}
    older = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}
    return rope_by_layer_type(raw, theta, older)


def _object(raw: dict[str, Any], key: str) -> dict[str, Any]:
    """Take an object out of `raw`; absent and null are empty."""
    value = raw.pop(key, None)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"config.json: {key} is {value!r:.80}; accepted: an object or null")
    return dict(value)


def with_theta(raw: Mapping[str, Any], theta: float | None) -> dict[str, Any]:
    """Return `raw` with this rope_theta where nothing in it says another."""
    holders = [raw, *(raw.get(key) for key in ("rope_scaling", "rope_parameters"))]
    said = any(isinstance(holder, Mapping) and "rope_theta" in holder for holder in holders)
    return dict(raw) if said or theta is None else {**raw, "rope_theta": theta}


def _merge(
    found: dict[str, Any], outer: Mapping[str, Any], theta: float | None, at: str
) -> dict[str, Any]:
    """Return one set of rope parameters, merged with the keys beside it that older files have."""
    for key in NEVER_NULL & found.keys():
        if found[key] is None:
            raise ConfigError(f"config.json: {at}.{key} is None; leave it out, or give a value")
    out = {key: value for key, value in found.items() if value is not None}
    old = out.pop("type", None)
    if old is not None and out.setdefault("rope_type", old) != old:
        raise ConfigError(f"config.json: {at} has type {old!r} and rope_type {out['rope_type']!r}")
    for beside, value in outer.items():
        key = beside if beside in ROPE_KEYS else "rope_theta"
        if value is None and key != "partial_rotary_factor":  # null of which means 1
            raise ConfigError(f"config.json: {beside} is None; leave it out, or give a value")
        if value is not None and out.setdefault(key, value) != value:
            raise ConfigError(
                f"config.json: {at}.{key} is {out[key]!r}, but {beside} is {value!r} beside it"
            )
    if theta is not None:
        out.setdefault("rope_theta", theta)
    elif "rope_theta" not in out:
        raise ConfigError(
            f"config.json: rope_theta is missing, also in {at}; this architecture needs it"
        )
    return out
