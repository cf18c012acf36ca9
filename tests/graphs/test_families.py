"""What holds of every family, by its record in tests/tiny: settings, refusals, parameters."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from tiny import CASES, FAMILIES, changed, defined, gap, logits, ours, prompt, read
from tiny.family import Change
from torch import Tensor

from lmcast.graphs import ConfigError, archs


def label(value: Any) -> str | None:
    """Of a change its keys: values may print an address, and workers must agree on names."""
    return (
        ", ".join(value)[:60]
        if isinstance(value, dict)
        else value
        if isinstance(value, str)
        else None
    )


@pytest.mark.parametrize("name", sorted(archs.NAMES))
def test_every_architecture_has_cases_in_both_spellings(name: str):
    assert {case.as_written for case in CASES if case.architecture == name} == {True, False}


SHOWN = [entry for family in FAMILIES for entry in family.shown]


@pytest.fixture(scope="module")
def unchanged(checkpoint) -> Callable[[str], Tensor]:
    """Return a function from a case's name to the logits of its checkpoint, computed once."""
    return cache(lambda name: logits(*read(checkpoint(name))))


@pytest.mark.parametrize(("name", "change"), SHOWN, ids=label)
def test_settings_show_in_the_logits(name: str, change: Change, checkpoint, unchanged):
    config, values = read(checkpoint(name))
    assert {key: config.get(key) for key in change} != change
    assert gap(unchanged(name), logits(changed(config, change), values)) > 1e-3


def silent() -> Iterator[tuple[str, Change, Change]]:
    for family in FAMILIES:
        for name, one, *other in family.silent:
            yield name, one, other[0] if other else {}


@pytest.mark.parametrize(("name", "one", "other"), silent(), ids=label)
def test_settings_that_mean_the_same(name: str, one: Change, other: Change, checkpoint, unchanged):
    config, values = read(checkpoint(name))
    left, right = changed(config, one), changed(config, other)
    assert left != right
    same = logits(right, values) if other else unchanged(name)
    assert torch.equal(logits(left, values), same)


REFUSED = [entry for family in FAMILIES for entry in family.refused]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED, ids=label)
def test_configs_that_no_definition_reads_are_refused(
    name: str, change: Change, message: str, checkpoint
):
    config, values = read(checkpoint(name))
    start = f"({name.partition('/')[0]}: )?config.json: "
    with pytest.raises(ConfigError, match=f"^{start}.*{message}") as error:
        defined(changed(config, change), values)
    assert "\n" not in str(error.value)


PARAMETERS = [entry for family in FAMILIES for entry in family.parameters.items()]


@pytest.mark.parametrize(("name", "apart"), PARAMETERS, ids=label)
@torch.no_grad()
def test_every_parameter_shows_in_the_logits(name: str, apart: tuple[str, ...], checkpoint):
    model, ids = ours(*read(checkpoint(name))), prompt()
    before, unseen = model(ids), set()
    for parameter, value in model.named_parameters():
        kept = value.clone()
        # Rolled as a whole: flipped, rows and columns of odd numbers have a middle that stays.
        value.copy_(kept.flatten().roll(1).view_as(kept))
        if gap(model(ids), before) < 1e-4:  # noise of fp32 moves logits by less
            unseen.add(parameter)
        value.copy_(kept)
    assert unseen == {n for n, _ in model.named_parameters() if apart and n.endswith(apart)}
