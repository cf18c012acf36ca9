"""What the Configs of architectures hold: keys that something reads; and what they say is inert."""

import dataclasses
import typing
from typing import Any

import pytest
import torch
from tiny import CASES, Case, defined, logits, read

from lmcast.graphs import ConfigError, Definition, WeightError, archs
from lmcast.graphs.config.inert import INERT
from lmcast.graphs.config.older_spellings import LAYER_TYPE_KEYS, OLDER_LAYER_TYPES
from lmcast.plugins.records import NotNull

BY_NAME = pytest.mark.parametrize("name", sorted(archs.NAMES))


TIE = "tie_word_embeddings"
WITHOUT_POSITIONS = ("kimi_linear", "nemotron_h")
# Lists that go before what other keys say of each layer.
LISTS = ("layer_types", "no_rope_layers")


def keys_read(found: Definition, tensors: Any) -> set[str]:
    """Return the keys of a Config that its model, its weights and its context are made of."""
    seen = set()

    def recorded(self: Any, key: str) -> Any:
        seen.add(key)
        return object.__getattribute__(self, key)

    typed = found.config
    recording = type("Recording", (type(typed),), {"__getattribute__": recorded})
    object.__setattr__(typed, "__class__", recording)
    if hasattr(typed, "__post_init__"):
        typed.__post_init__()
    with torch.device("meta"):
        found.arch.build(typed)
    found.arch.table(typed)
    found.arch.modules_beside(typed, tensors)
    assert found.context
    return seen


def without_lists(found: Definition) -> Definition:
    fields = {field.name: field.default for field in dataclasses.fields(found.config)}
    left_out = {key: None for key in LISTS if fields.get(key, ...) is None}
    return dataclasses.replace(found, config=dataclasses.replace(found.config, **left_out))


@BY_NAME
def test_null_is_no_silence(name, checkpoint):
    """A null is refused by name wherever the type of its key has no null."""
    config, tensors = read(checkpoint(next(case for case in CASES if case.architecture == name)))
    cls = type(defined(config, tensors).config)
    hints = typing.get_type_hints(cls)  # without Annotated
    marked = typing.get_type_hints(cls, include_extras=True)
    inner = "text_config" in config
    refused = [key for key, hint in hints.items() if type(None) not in typing.get_args(hint)]
    refused += [key for key in hints if NotNull() in typing.get_args(marked[key])]
    assert len(refused) > 6
    refused += [] if name in WITHOUT_POSITIONS else ["rope_theta"]
    # Read before the others: a multimodal config's outer tie, a number that a list may say.
    for key in {*refused} - {"rope_parameters", TIE, "num_hidden_layers"}:
        null = {key: None}
        changed = config | ({"text_config": config["text_config"] | null} if inner else null)
        with pytest.raises(ConfigError, match=rf"{key}.* is (None|missing)"):
            defined(changed, tensors)


@BY_NAME
def test_every_key_of_a_config_is_read(name, checkpoint):
    cases = [read(checkpoint(case)) for case in CASES if case.architecture == name]
    models = [(defined(config, tensors), tensors) for config, tensors in cases]
    fields = {field.name for found, _ in models for field in dataclasses.fields(found.config)}
    unread = fields.difference(*(keys_read(found, tensors) for found, tensors in models))
    if unread:
        config, tensors = cases[0]
        unread -= keys_read(without_lists(defined(config, tensors)), tensors)
    assert not unread, "keys that change nothing belong into Arch.inert"


@BY_NAME
def test_inert_keys_are_no_others(name, checkpoint):
    case = next(case for case in CASES if case.architecture == name)
    arch = defined(*read(checkpoint(case))).arch
    fields = {field.name for field in dataclasses.fields(arch.config)}
    assert not arch.inert.keys() & fields
    assert not arch.inert.keys() & INERT.keys()


@BY_NAME
def test_inert_keys_change_nothing_where_they_are_accepted(name, checkpoint):
    case = next(case for case in CASES if case.architecture == name)
    config, tensors = read(checkpoint(case))
    text = config.get("text_config", config)
    plain = defined(config, tensors)
    for key, accepted in plain.arch.inert.items():
        within, _, leaf = key.rpartition(".")
        holder = text.get(within) if within else text
        if not isinstance(holder, dict):
            continue  # an object that this config spells otherwise
        values = [{"x": 1}]  # of none of their types, but of any
        for value in values if leaf in holder else [None, *values]:
            changed = {**holder, leaf: value}
            changed = {**text, within: changed} if within else changed
            whole = {**config, "text_config": changed} if "text_config" in config else changed
            if value is None or accepted is Any:
                assert defined(whole, tensors).config == plain.config
            else:
                with pytest.raises(ConfigError, match=f"{key} is"):
                    defined(whole, tensors)


def with_layer_types() -> list[Case]:
    """Return the first case of each text architecture whose config lists kinds of layers."""
    first = {}
    for case in CASES:
        listed = case.settings.keys() & set(LAYER_TYPE_KEYS)
        if listed and case.settings[min(listed)]:
            first.setdefault(case.architecture, case)
    return list(first.values())


@pytest.mark.parametrize("case", with_layer_types(), ids=lambda case: case.name)
def test_kinds_of_layers_have_older_names(case, checkpoint):
    config, tensors = read(checkpoint(case))
    older = {new: old for old, new in OLDER_LAYER_TYPES.items()}
    keys = config.keys() & set(LAYER_TYPE_KEYS)
    todays = {key: [OLDER_LAYER_TYPES.get(kind, kind) for kind in config[key]] for key in keys}
    words = {key: [older.get(kind, kind) for kind in config[key]] for key in keys}
    assert words != todays
    found = defined({**config, **words}, tensors).config
    assert found == defined({**config, **todays}, tensors).config


TIE = "tie_word_embeddings"
NEVER_TIED = ("grok2",)  # no code of its makers ties, and none says so


def with_tie(config: dict[str, Any], flag: bool) -> dict[str, Any]:
    """Return a config that says so wherever it can be said."""
    inner = {"text_config": {**config["text_config"], TIE: flag}} if "text_config" in config else {}
    return {**config, TIE: flag, **inner}


@BY_NAME
@torch.no_grad()
def test_a_head_may_be_the_embedding(name, checkpoint):
    config, tensors = read(checkpoint(next(c for c in CASES if c.architecture == name)))
    if name in NEVER_TIED:
        with pytest.raises(ConfigError, match=f"{TIE} = True"):
            defined(with_tie(config, True), tensors)
        return
    prefix = "language_model." if any(n.startswith("language_model.") for n in tensors) else ""
    (embed,) = (n for n in tensors if n.endswith(("embed_tokens.weight", "embeddings.weight")))
    head = f"{prefix}lm_head.weight"
    without = {n: tensor for n, tensor in tensors.items() if n != head}
    untied = with_tie(config, False), {**without, head: tensors[embed].clone()}
    tied = with_tie(config, True), without
    assert torch.equal(logits(*tied), logits(*untied))
    with pytest.raises(WeightError, match=r"lm_head\.weight is missing"):
        defined(untied[0], without)
    again, other = defined(tied[0], untied[1]), defined(*untied)
    assert again.binding.copies == ((head, embed),)
    assert again.parameters == other.parameters - tensors[embed].numel()
