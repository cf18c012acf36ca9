"""What the library of plugins makes of the recipes of every operator: the same as Python does."""

from collections.abc import Iterator
from typing import Any

import launch_plan_reader as recipes
import plugin_launch_plans as own
import pytest
from launch_cases import DECODE, EACH, ONE, PREFILL, label, opened
from plugin_library import schedule
from torch import Tensor

from lmcast.plugins.launch.cubins import Cubin
from lmcast.plugins.launch.launch_plan import MachineCode, draft, written
from lmcast.plugins.plugin import Plugin

IMAGE = b"kernel"


def nested(tokens: Iterator[str]) -> Any:
    """Return an expression as plugin_recipes.py has it: a number, an axis or a tuple."""
    token = next(tokens)
    if token in recipes.OPERATORS:
        return token, nested(tokens), nested(tokens)
    return token if "." in token else int(token)


def argument(kind: str, what: Any) -> tuple:
    if kind == "null":
        return (kind,)
    return kind, nested(iter(what)) if kind == "i32" else what


def translated(text: str) -> own.Recipe:
    """Return a recipe as the reference evaluation of the plugins' tests takes it."""

    def each(expressions: list[recipes.Expression]) -> list[Any]:
        return [nested(iter(one)) for one in expressions]

    found = recipes.Reader(text).recipe()
    cases = [
        own.Case(
            [(nested(iter(axis)), low, high) for axis, low, high in case.ranges],
            each(case.buffers),
            [
                own.Launch(k, nested(iter(programs)), [argument(*one) for one in arguments])
                for k, programs, arguments in case.launches
            ],
        )
        for case in found.cases
    ]
    kernels = [own.Kernel(k.name, k.threads, k.shared, k.codes) for k in found.kernels]
    outputs = [own.Output(o.type, o.alias, each(o.shape)) for o in found.outputs]
    return own.Recipe(kernels, outputs, cases)


@pytest.mark.parametrize(("plugin", "i"), EACH, ids=label)
def test_schedule_is_that_of_python(plugin: Plugin, i: int):
    args = plugin.cases()[i]
    drawn = draft(plugin.name, opened(plugin, args), [ONE, DECODE, PREFILL])
    cubins = [{89: Cubin(k.name, 32 * k.warps, 1024, IMAGE)} for k in drawn.kernels]
    code = MachineCode()
    text = written(drawn, cubins, code)
    shapes = [list(a.shape) for a in args if isinstance(a, Tensor)]
    assert schedule(text, len(code.blob), shapes) == own.expected(translated(text), shapes)
