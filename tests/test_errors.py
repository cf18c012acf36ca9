"""Errors of every kind: one line that no terminal acts on, however long the names in it are."""

from collections.abc import Iterator
from importlib import import_module

import pytest

from lmcast.graphs.config.reading import UnreadKeys
from lmcast.plugins.errors import HEAD, TAIL, CheckFailed, InputError

for name in (
    "backends.cuda", "bench", "calibrate.calibrate", "engine.inspect", "engine.signing", "pipeline",
    "prove.parity", "prove.quality",
):  # fmt: skip
    import_module(f"lmcast.exporter.{name}")


def kinds(base: type[Exception]) -> Iterator[type[Exception]]:
    yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


# UnreadKeys makes its message itself, and goes on to that of ConfigError.
@pytest.mark.parametrize(
    "kind", [k for k in (*kinds(InputError), CheckFailed) if k is not UnreadKeys]
)
def test_a_message_is_one_short_line(kind: type[Exception]):
    assert str(kind("a\nb\x1b[1m é")) == "a\\nb\\x1b[1m é"
    message = str(kind("x.json: has " + "\0" * 10_000_000 + "; accepted: y"))
    assert message.startswith("x.json: has \\x00")
    assert message.endswith("\\x00; accepted: y")
    assert len(message) < HEAD + TAIL + 10
