"""Killed at any moment, a writer leaves the old engine or the new one, and is cleaned up after."""

import ctypes
import errno
import os
import random
import time
from pathlib import Path

import pytest
from staged_engines import (
    generation,
    names,
    put_lock,
    start,
    write,
)

from lmcast.exporter.engine.manifest import EngineError
from lmcast.exporter.engine.staging import recover, staged


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "engine é 中"


def test_fifty_kills_at_random_moments(destination):
    chooser, left, replaced = random.Random(0), 0, set()
    number = 0
    for _ in range(50):
        process = start(
            """
for number in itertools.count(int(sys.argv[2])):
    write(Path(sys.argv[1]), number)
    print(number, flush=True)
""",
            destination,
            number + 1,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == f"{number + 1}\n"
        time.sleep(chooser.uniform(0, 0.03))
        process.kill()
        rest, _ = process.communicate(timeout=60)
        finished = int([number + 1, *rest.split()][-1])
        found = generation(destination)
        assert found in (finished, finished + 1)
        replaced.add(found - finished)
        left += len(names(destination.parent)) > 1
        number = found + 1
        write(destination, number)
        assert generation(destination) == number
        assert names(destination.parent) == [destination.name]
    assert left > 10, "the kills must hit runs in progress"


EVERY_KILL = """
KINDS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.listdir", "os.scandir"}

def die_at(step):
    def hook(event, arguments):
        nonlocal step
        touches = event in KINDS or event == "open" and "lmcast-" in str(arguments[0])
        if touches and not dead:
            if step == 0:
                dead.append(True)
                os.kill(os.getpid(), signal.SIGKILL)
            step -= 1
    dead = []
    sys.addaudithook(hook)

def names(): return sorted(os.listdir(destination.parent))

def number():
    assert verify(destination) == [], verify(destination)
    return int((destination / "weights/b").read_text().split()[0])

destination, old, exchange = Path(sys.argv[1]), sys.argv[2] == "old", sys.argv[3] == "exchange"
if not exchange:
    staging._exchange = lambda first, second: False
found = []
for step in range(1000):
    if old:
        write(destination, 1)
    elif destination.exists():
        staging._remove(destination)
    child = os.fork()
    if child == 0:
        die_at(step)
        write(destination, 2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
    if old and not exchange and not destination.exists():
        assert staging.recover(destination), names()
        found.append("recovered")
    found.append(number() if destination.exists() else None)
    write(destination, 3)
    assert number() == 3
    assert names() == [destination.name], (step, names())
print(step, *sorted(set(map(str, found))))
"""


@pytest.mark.parametrize(
    ("old", "way", "outcomes"),
    [
        ("new", "exchange", {"None", "2"}),
        ("old", "exchange", {"1", "2"}),
        ("old", "aside", {"1", "2", "recovered"}),
    ],
)
def test_a_kill_at_every_step(destination, old, way, outcomes):
    """Killed before each of its calls that touch a file: the old engine or the new one."""
    out, err = start(EVERY_KILL, destination, old, way).communicate(timeout=120)
    assert not err
    steps, *found = out.split()
    assert int(steps) > 20
    assert set(found) == outcomes


# Where two directories cannot be exchanged


@pytest.fixture(params=["renameat2 missing", "renameat2 refuses"])
def no_exchange(request, monkeypatch) -> None:
    class Library:
        pass

    class RefusingLibrary:
        def renameat2(self, *_):
            ctypes.set_errno(errno.EINVAL)
            return -1

    library = Library if "missing" in request.param else RefusingLibrary
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library())


def test_without_exchange(destination, no_exchange):
    write(destination, 1)
    write(destination, 2)
    assert generation(destination) == 2
    assert names(destination.parent) == [destination.name]


def test_without_exchange_a_failed_second_step_is_undone(destination, no_exchange, monkeypatch):
    write(destination, 1)
    rename = os.rename

    def fail(source, target):
        if target == destination and not str(source).endswith("-old"):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(EngineError, match="No space left"):
        write(destination, 2)
    assert generation(destination) == 1
    assert names(destination.parent) == [destination.name]


def test_recover(destination):
    assert not recover(destination)
    write(destination, 1)
    assert not recover(destination)
    destination.rename(destination.parent / f".{destination.name}.lmcast-old")
    assert recover(destination)
    assert generation(destination) == 1
    assert names(destination.parent) == [destination.name]


def test_recover_leaves_a_running_export_alone(destination):
    write(destination, 1)
    destination.rename(destination.parent / f".{destination.name}.lmcast-old")
    put_lock(destination)
    with pytest.raises(EngineError, match="another export"):
        recover(destination)


def test_next_run_uses_what_was_moved_aside(destination):
    write(destination, 1)
    destination.rename(destination.parent / f".{destination.name}.lmcast-old")
    with pytest.raises(KeyError), staged(destination):
        raise KeyError
    assert generation(destination) == 1
    assert names(destination.parent) == [destination.name]
