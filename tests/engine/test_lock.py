"""One process writes to a destination, and a dead one does not stand in the way."""

import errno
import os
import subprocess
import time
from pathlib import Path

import pytest
from staged_engines import dead_process, generation, names, put_lock, start, write, write_while

from lmcast.exporter.engine import lock
from lmcast.exporter.engine.manifest import EngineError, write_manifest
from lmcast.exporter.engine.staging import staged


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "engine é 中"


def test_second_writer_is_refused_at_once(destination):
    with (
        staged(destination) as directory,
        pytest.raises(EngineError, match=f"another export \\(pid {os.getpid()} on .*is writing"),
        staged(destination),
    ):
        raise AssertionError("the block must not run")
    assert not directory.exists()
    assert names(destination.parent) == [destination.name]


@pytest.mark.parametrize("old", [None, 1])
@pytest.mark.parametrize("stale", [False, True])
def test_of_simultaneous_writers_exactly_one_wins(destination, old, stale, tmp_path):
    """Also when all of them find the lock of a dead run at once."""
    code = """
print("ready", flush=True)
while not Path(sys.argv[2]).exists():
    time.sleep(0.0005)
try:
    with staging.staged(Path(sys.argv[1])) as directory:
        (directory / "engine.onnx").write_text(f"{os.getpid()}\\n" * 1000)
        write_manifest(directory, {"generation": os.getpid()})
        while not Path(sys.argv[3]).exists():
            time.sleep(0.01)
    print("won")
except EngineError as error:
    print(error)
"""
    if old:
        write(destination, old)
    for number in range(3):
        if stale:
            put_lock(destination, pid=dead_process(), started=1)
        go, stop = tmp_path / f"go{number}", tmp_path / f"stop{number}"
        running = [start(code, destination, go, stop) for _ in range(4)]
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        go.touch()
        deadline = time.monotonic() + 30
        while sum(p.poll() is None for p in running) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        stop.touch()
        results = {process.pid: process.communicate(timeout=60) for process in running}
        (winner,) = [pid for pid, (out, _) in results.items() if out == "won\n"]
        for pid, (out, err) in results.items():
            assert err == ""
            assert pid == winner or f"another export (pid {winner} on" in out
        assert generation(destination) == winner
        assert names(destination.parent) == [destination.name]


STALE = [
    {"boot": "another", "pid": 1},
    {"started": 1},
    {"pid": (1 << 31) - 1},
    {"boot": None, "namespace": None, "pid": (1 << 31) - 1},
]


@pytest.mark.parametrize("changes", STALE)
def test_lock_of_a_dead_owner_is_taken_over(destination, changes):
    put_lock(destination, **changes)
    write(destination, 1)
    assert generation(destination) == 1
    assert names(destination.parent) == [destination.name]


def test_heirs_that_died_are_succeeded(destination):
    """Killed while taking over a lock, and once more."""
    put_lock(destination, token="0" * 16, started=1)
    for token, heir in (("0" * 16, "1" * 16), ("1" * 16, "2" * 16)):
        file = put_lock(destination, token=heir, started=1)
        file.rename(file.with_name(f".{destination.name}.lmcast-{token}.heir"))
    put_lock(destination, token="0" * 16, started=1)
    write(destination, 1)
    assert names(destination.parent) == [destination.name]


def test_live_heir_is_respected(destination):
    file = put_lock(destination)
    file.rename(file.with_name(f".{destination.name}.lmcast-{'0' * 16}.heir"))
    put_lock(destination, token="0" * 16, started=1)
    with pytest.raises(EngineError, match="another export"):
        write(destination, 1)
    assert len(names(destination.parent)) == 2


def test_lock_that_was_taken_over_meanwhile_is_left_alone(destination, monkeypatch):
    """The lock is read as dead, then another process takes it: it must keep it."""
    put_lock(destination, started=1)
    judge = lock._refuse_unless_dead

    def slow(place, held, now):
        judge(place, held, now)
        if held.owner.started == 1:
            put_lock(destination)

    monkeypatch.setattr(lock, "_refuse_unless_dead", slow)
    with pytest.raises(EngineError, match="another export"):
        write(destination, 1)
    assert names(destination.parent) == [f".{destination.name}.lmcast-lock"]


def test_an_heir_that_came_too_late_is_no_writer(destination, monkeypatch):
    """The lock is read as dead; one heir replaces it, and then another claims what is left."""
    put_lock(destination, token="0" * 16, started=1)
    judge = lock._refuse_unless_dead

    def slow(place, held, now):
        judge(place, held, now)
        if held.owner.started == 1:
            late = put_lock(destination, pid=os.getppid(), started=lock._started(os.getppid()))
            late.rename(place.beside(f"{held.token}.heir"))
            put_lock(destination)

    monkeypatch.setattr(lock, "_refuse_unless_dead", slow)
    with pytest.raises(EngineError, match=f"another export \\(pid {os.getpid()} on"):
        write(destination, 1)


def test_uncollected_process_is_dead(destination):
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    put_lock(destination, pid=process.pid)
    write(destination, 1)
    process.wait()


@pytest.mark.parametrize(
    "changes",
    [{"host": "elsewhere", "boot": "another"}, {"host": "container", "namespace": "pid:[1]"}],
)
def test_lock_from_elsewhere_is_refused_with_the_way_out(destination, changes):
    file = put_lock(destination, **changes, pid=77)
    os.utime(file, (time.time() - 500, time.time() - 500))
    with pytest.raises(EngineError, match=f"pid 77 on {changes['host']}.* since 50. s") as refusal:
        write(destination, 1)
    assert f"delete {file}" in str(refusal.value)
    assert names(destination.parent) == [file.name]
    file.unlink()
    write(destination, 1)


def test_live_owner_without_proc(destination, monkeypatch):
    """As where the system says neither boot nor start: a living number counts as living."""
    monkeypatch.setattr(lock, "_started", lambda pid: None)
    put_lock(destination, boot=None, namespace=None, started=None)
    with pytest.raises(EngineError, match="another export"):
        write(destination, 1)


CORRUPT = [
    b"",
    b"{",
    b"[]",
    b"{}",
    b"\xff",
    b'{"pid": 1, "token": "../x", "host": "", "boot": "", "namespace": "", "started": 1}',
    b"9" * 9999,
]


@pytest.mark.parametrize("data", CORRUPT, ids=range(len(CORRUPT)))
def test_unreadable_lock_is_stale_only_after_a_while(destination, data):
    file = put_lock(destination)
    file.write_bytes(data)
    with pytest.raises(EngineError, match="is unreadable") as refusal:
        write(destination, 1)
    assert str(file) in str(refusal.value)
    os.utime(file, (time.time() - 100, time.time() - 100))
    write(destination, 1)
    assert names(destination.parent) == [destination.name]


@pytest.mark.parametrize("stale", [False, True])
def test_without_hard_links(destination, monkeypatch, stale):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    if stale:
        put_lock(destination, started=1)
    with staged(destination) as directory:
        write_manifest(directory, {"generation": 1})
        with pytest.raises(EngineError, match="another export"), staged(destination):
            raise AssertionError("the block must not run")
    assert generation(destination) == 1
    assert names(destination.parent) == [destination.name]


def test_lost_lock_publishes_nothing(destination):
    write(destination, 1)
    with pytest.raises(EngineError, match="was removed while"):
        write_while(destination, put_lock)  # with another token: somebody else's
    assert generation(destination) == 1
    assert names(destination.parent) == [f".{destination.name}.lmcast-lock", destination.name]


def test_leftovers_of_other_destinations_are_kept(destination):
    parent, token = destination.parent, "0123456789abcdef"
    mine = [f".{destination.name}.lmcast-{token}", f".{destination.name}.lmcast-{token}.lock"]
    theirs = [f".other.lmcast-{token}", f".{destination.name}.lmcast-{token}.lmcast-{token}"]
    for name in mine[:1] + theirs:
        (parent / name).mkdir()
        (parent / name / "half").write_text("half")
    (parent / mine[1]).write_text("")
    write(destination, 1)
    assert names(parent) == sorted([*theirs, destination.name])
