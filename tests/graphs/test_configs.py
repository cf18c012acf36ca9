"""What the Configs of architectures hold: keys that something reads; and what they say is inert."""

import dataclasses
from typing import Any

import pytest
import torch
from tiny import CASES, defined, read

from lmcast.graphs import ConfigError, Definition, archs
from lmcast.graphs.config.inert import INERT

BY_NAME = pytest.mark.parametrize("name", sorted(archs.NAMES))


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
