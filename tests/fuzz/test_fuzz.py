"""The verdicts of trials, and a sample of those of every part, another for another seed."""

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz.campaign import campaign
from fuzz.edits import Edit, apply
from fuzz.parts import PARTS
from fuzz.trial import Limits, attempt, minimize, others_follow
from lmcast.plugins.errors import InputError

SEED = 0
TRIALS = 5
FEWER = {"config": 4}  # each of a case of its own; graphs/test_fuzz_configs tries all architectures
TAKEN = 1 << 30  # bytes, by a trial that takes too many


@pytest.mark.parametrize("name", PARTS)
def test_spoiled_input_is_refused_or_right(name: str, tmp_path: Path):
    trials = FEWER.get(name, TRIALS)
    report = campaign(PARTS[name], tmp_path, SEED, trials=trials)
    assert report.trials == trials and report.refused > 0
    assert not report.faults, report.text()


class Toy:
    """A part whose edits are what a trial does."""

    name, about = "toy", "for these tests"

    def prepare(self, folder: Path) -> None:
        """Nothing to make."""

    def edits(self, chance: object) -> list[Callable[[Path], str | None]]:
        return []

    def run(self, edits: list[Callable[[Path], str | None]], work: Path) -> str | None:
        found = [edit(work) for edit in edits]
        return next((said for said in found if said is not None), None)


def refuse(message: str) -> Callable[[Path], None]:
    def edit(work: Path) -> None:
        raise InputError(message)

    return edit


def refuse_in_two_lines(work: Path) -> None:
    error = InputError("a")
    error.args = ("a\nb",)  # which its class does not let through
    raise error


def leave(work: Path) -> None:
    (work / "engine").mkdir()
    raise InputError("no such thing")


def die(work: Path) -> None:
    ctypes.string_at(0)


def take_memory(work: Path) -> None:
    bytearray(os.urandom(1 << 20)) * (TAKEN >> 20)


def ask_another(work: Path) -> None:
    others_follow()
    take_memory(work)


VERDICTS = {
    "accepted": ([], None),
    "refused": ([refuse("x is 3; accepted: 4")], None),
    "another exception": ([lambda work: 1 // 0], "ZeroDivisionError in test_fuzz.py"),
    "two lines": ([refuse_in_two_lines], "more than one line"),
    "no words": ([refuse("")], "0 characters"),
    "a file left": ([leave], "left behind: engine"),
    "wrong": ([lambda work: "3 is 4"], "accepted and wrong: 3 is 4"),
    "a crash": ([die], "SIGSEGV"),
    "an exit": ([lambda work: os._exit(3)], "exit status 3"),
    "a hang": ([lambda work: time.sleep(60)], "no end after 1 s"),
    "memory": ([take_memory], "memory: "),
    "memory of others": ([ask_another], None),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_what_a_trial_finds(name: str, tmp_path: Path):
    edits, expected = VERDICTS[name]
    # A trial begins with what this process has, of which other tests have left much.
    own = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    limits = Limits(wall=1 if name == "a hang" else 60, memory=own + TAKEN // 2)
    found = attempt(Toy(), edits, tmp_path, limits).fault
    assert found is None if expected is None else found is not None and expected in found


def test_an_edit_of_what_became_a_pipe_is_left_out(tmp_path: Path):
    """It would wait for the other end."""
    (tmp_path / "a").touch()
    pipe = Edit("a", "is a pipe", lambda path: (path.unlink(), os.mkfifo(path)))
    edits = [lambda work: apply([pipe, Edit("a", "is read", Path.read_bytes)], tmp_path)]
    assert attempt(Toy(), edits, tmp_path / "trial", Limits(wall=5)).fault is None
    assert (tmp_path / "a").is_fifo()


def test_what_a_trial_does_not_need_is_dropped(tmp_path: Path):
    edits = [lambda work: None, lambda work: 1 // 0, lambda work: None]
    fault = attempt(Toy(), edits, tmp_path / "first", Limits()).fault
    assert fault is not None
    assert list(minimize(Toy(), edits, tmp_path, Limits(), fault)) == [edits[1]]
