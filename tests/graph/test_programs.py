"""Traced programs that a process keeps: used again for what traces alike, and for nothing else."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tiny import defined, read
from torch import Tensor, nn

from lmcast.exporter.graph import capture

X: capture.Input = ("x", ("B", "T", 4), torch.float32)
OUT = ["y"]


class Scaled(nn.Module):
    """A part with a setting of each kind: number, function, constant, parameter, list of parts."""

    def __init__(self, width: int = 4, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.factor: Any = 2
        self.act: Callable[[Tensor], Tensor] = torch.relu
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype, device="meta"))
        self.table = torch.arange(4.0)
        self.sizes: Any = (1, 23)
        self.steps = [nn.Linear(4, 4, device="meta"), nn.Linear(4, 4, device="meta")]


class Other:
    """Holds a class of the same name."""

    class Scaled(Scaled):
        pass


Other.Scaled.__qualname__ = "Scaled"
Other.Scaled.__module__ = "elsewhere"


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Return the modules that were traced, each to an object that stands for its program."""
    made: list[nn.Module] = []

    def export(module: nn.Module, *given: Any) -> Any:
        made.append(module)
        return object()

    monkeypatch.setattr(capture, "_export", export)
    monkeypatch.setattr(capture, "_programs", capture._Programs())
    return made


def changed(**settings: Any) -> Scaled:
    part = Scaled()
    for name, value in settings.items():
        setattr(part, name, value)
    return part


def same_steps_twice() -> Scaled:
    part = Scaled()
    part.steps = part.steps[:1] * 2
    return part


def frozen() -> Scaled:
    return Scaled().requires_grad_(False)


# What differs from the first module, and must not be answered by its program.
DIFFERENT: dict[str, Callable[[], nn.Module]] = {
    "a number": lambda: changed(factor=3),
    "the type of a number": lambda: changed(factor=2.0),
    "other numbers of the same digits": lambda: changed(sizes=(12, 3)),
    "the same numbers, nested": lambda: changed(sizes=((1,), 23)),
    "a dict": lambda: changed(sizes={1: 23}),
    "a function": lambda: changed(act=torch.sigmoid),
    "one more setting": lambda: changed(more=None),
    "a shape": lambda: Scaled(width=1),
    "a dtype": lambda: Scaled(dtype=torch.float64),
    "a constant": lambda: changed(table=torch.arange(4.0) + 1),
    "the strides of a constant": lambda: changed(table=torch.arange(4.0).repeat_interleave(2)[::2]),
    "fewer parts in a list": lambda: changed(steps=[nn.Linear(4, 4, device="meta")]),
    "the same part twice": same_steps_twice,
    "no gradients": frozen,
    "a class of that name in another module": Other.Scaled,
}


@pytest.mark.parametrize("different", DIFFERENT)
def test_another_module_is_traced(different: str, traces):
    first = capture.trace("A", Scaled(), [X], OUT)
    again = capture.trace("A", Scaled(), [X], OUT)
    assert len(traces) == 1
    assert again.program is first.program
    other = DIFFERENT[different]()
    assert capture.trace("A", other, [X], OUT).program is not first.program
    assert traces[1:] == [other]


# The inputs, and how they are grouped.
Y: capture.Input = ("y", ("B", "T"), torch.int64)
GIVEN: list[tuple[list[capture.Input], capture.Nesting | None]] = [
    ([("x", ("B", "T", 1), torch.float32)], None),
    ([("x", ("B", 1, 4), torch.float32)], None),
    ([("x", ("B", "R", 4), torch.float32)], None),
    ([("x", ("B", "T", 4), torch.float64)], None),
    ([X, Y], None),
    ([X, Y, Y, Y, Y], (None, None, None, ((None,),), (None,))),
    ([X, Y, Y, Y, Y], (None, None, None, ((None,), (None,)), ())),
]


def test_other_inputs_are_another_program(traces):
    programs = [capture.trace("A", Scaled(), [X], OUT).program]
    programs += [
        capture.trace("A", Scaled(), inputs, OUT, None, nesting).program
        for inputs, nesting in GIVEN
    ]
    assert len(traces) == len(programs) == len({id(program) for program in programs})


def test_what_holds_for_the_whole_process_counts(traces, monkeypatch):
    first = capture.trace("A", Scaled(), [X], OUT).program
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_default_dtype", lambda: torch.float64)
        assert capture.trace("A", Scaled(), [X], OUT).program is not first
    with torch.no_grad():
        assert capture.trace("A", Scaled(), [X], OUT).program is not first


def test_names_are_of_the_part_alone(traces):
    first = capture.trace("A", Scaled(), [X], OUT)
    second = capture.trace("B", Scaled(), [("z", *X[1:])], ["w"])
    assert len(traces) == 1
    assert second.program is first.program
    assert (second.name, second.inputs, second.outputs) == ("B", ("z",), ("w",))


def test_a_model_is_traced_once_in_a_process(checkpoint):
    given = read(checkpoint("gemma3n_text/one of each shared"))
    first, again = (capture.capture(defined(*given).model) for _ in range(2))
    assert [part.program for part in again.parts] == [part.program for part in first.parts]
    half = capture.capture(defined(*given).model.half())
    programs = {id(part.program) for part in first.parts}
    assert not programs & {id(call.part.program) for call in half.layers}


def test_the_last_used_are_kept(monkeypatch):
    monkeypatch.setattr(capture, "KEPT", 2)
    kept, made = capture._Programs(), list[str]()

    def trace(name: str) -> Any:
        made.append(name)
        return name

    for name in ("a", "b", "a", "c", "a", "b"):
        assert kept.get((name,), partial(trace, name)) == name
    assert made == ["a", "b", "c", "b"]
    assert len(kept._kept) == 2


def test_a_program_that_another_thread_takes_meanwhile_is_given_all_the_same(monkeypatch):
    class TakenAtOnce(dict[Any, Any]):
        """What another thread pops as soon as it is there."""

        def __setitem__(self, key: Any, value: Any) -> None:
            pass

    kept = capture._Programs()
    monkeypatch.setattr(kept, "_kept", TakenAtOnce())
    assert kept.get(("a",), lambda: "program") == "program"


@pytest.mark.parametrize(
    "setting",
    [lambda x: x, object(), partial(torch.relu), nn.ReLU().forward],
    ids=["lambda", "object", "partial", "method of an object"],
)
def test_a_setting_that_does_not_say_what_it_is_is_refused(setting: Any):
    with pytest.raises(AssertionError, match="a setting must"):
        capture.trace("A", changed(factor=setting), [X], OUT)
