"""A destination is the whole old engine or the whole new one, whatever happens to the writer."""

import errno
import os
import resource
import signal
import threading
import time
from pathlib import Path

import pytest
from staged_engines import fail, generation, names, start, write, write_while

from lmcast.exporter.engine import staging
from lmcast.exporter.engine.manifest import EngineError, write_manifest
from lmcast.exporter.engine.staging import staged


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "engine é 中"


def test_publishes_and_replaces(destination):
    for number in (1, 2, 3):
        with staged(destination) as directory:
            assert directory.parent == destination.parent
            assert destination.name in directory.name
            assert list(directory.iterdir()) == []
            (directory / "engine.onnx").write_text(f"{number}\n" * 1000)
            write_manifest(directory, {"generation": number})
            if number > 1:
                assert generation(destination) == number - 1
        assert generation(destination) == number
        assert names(destination.parent) == [destination.name]
    assert destination.stat().st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_every_file_and_directory_is_synced_before_it_is_published(destination, monkeypatch):
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def record_rename(source, target):
        events.append("RENAME")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    with staged(destination) as directory:
        (directory / "weights").mkdir()
        (directory / "weights/a").write_text("1")
        write_manifest(directory, {})
    assert set(events[:-2]) == {"a", "weights", "engine.json", directory.name}
    assert events[-2:] == ["RENAME", destination.parent.name]


def test_longest_name(tmp_path):
    for name in ("n" * 255, "中" * 85):
        write(tmp_path / name, 1)
        write(tmp_path / name, 2)
        assert generation(tmp_path / name) == 2
    assert len(names(tmp_path)) == 2


def test_relative_destination_survives_a_change_of_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with staged(Path("engine/")) as directory:
        write_manifest(directory, {"generation": 1})
        monkeypatch.chdir("/")
    assert generation(tmp_path / "engine") == 1


def test_empty_directory_is_replaced(destination):
    destination.mkdir()
    write(destination, 1)
    assert generation(destination) == 1


def test_missing_parents_are_created_and_removed_after_a_failure(tmp_path):
    with pytest.raises(KeyError):
        fail(tmp_path / "a/b/engine", KeyError)
    assert names(tmp_path) == []
    write(tmp_path / "a/b/engine", 1)
    assert generation(tmp_path / "a/b/engine") == 1


def full_directory(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("precious")


def engine_of_others(path: Path) -> None:
    path.mkdir()
    (path / "engine.json").write_text('{"cylinders": 8}')


REFUSED = [
    (full_directory, "a directory of other files"),
    (engine_of_others, "a directory of other files"),
    (lambda path: path.write_text("precious"), "is a file"),
    (os.mkfifo, "is a file"),
    (lambda path: path.symlink_to("elsewhere"), "is a symbolic link"),
    (lambda path: path.symlink_to("/tmp"), "is a symbolic link"),
]


def everything_in(directory: Path) -> list[tuple]:
    """What is there and when it last changed; not when it was last read, for staging may look."""
    return [
        (path, s.st_mode, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
        for path in sorted(directory.rglob("*"))
        for s in (path.lstat(),)
    ]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_anything_else_is_refused_and_kept(destination, make, message):
    make(destination)
    before = everything_in(destination.parent)
    with pytest.raises(EngineError, match=message), staged(destination):
        raise AssertionError("the block must not run")
    assert everything_in(destination.parent) == before


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_anything_that_appears_meanwhile_is_kept(destination, make, message):
    with pytest.raises(EngineError, match=message):
        write_while(destination, make)
    assert names(destination.parent) == [destination.name]


def test_engine_that_vanishes_meanwhile_is_an_error_that_says_so(destination, monkeypatch):
    write(destination, 1)

    def vanish(first, second):
        for path in destination.iterdir():
            path.unlink()
        destination.rmdir()
        raise FileNotFoundError(errno.ENOENT, "gone", str(second))

    monkeypatch.setattr(staging, "_exchange", vanish)
    with pytest.raises(EngineError, match="changed by something else"):
        write(destination, 2)
    assert names(destination.parent) == []


@pytest.mark.parametrize("path", [Path("/"), Path("/proc"), Path(".")])
def test_places_that_cannot_be_renamed(path):
    with pytest.raises(EngineError, match=r"mount point|current directory"), staged(path):
        raise AssertionError("the block must not run")


def test_read_only_engine_is_replaced(destination):
    write(destination, 1)
    (destination / "engine.onnx").chmod(0o400)
    destination.chmod(0o500)
    write(destination, 2)
    assert generation(destination) == 2
    assert names(destination.parent) == [destination.name]


# Failures


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("old", [None, 1])
def test_exceptions_leave_nothing(destination, error, old):
    if old:
        write(destination, old)
    with pytest.raises(error):
        fail(destination, error)
    assert names(destination.parent) == ([destination.name] if old else [])
    assert not old or generation(destination) == old


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("where", ["fsync", "mkdir", "link", "rename"])
def test_refusals_of_the_system_name_the_destination(destination, monkeypatch, number, where):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, where, refuse)
        with pytest.raises(EngineError, match=os.strerror(number)) as refusal:
            write(destination, 1)
    assert str(destination) in str(refusal.value)
    assert names(destination.parent) == []


@pytest.mark.parametrize("copied", [False, True])
def test_full_disk_in_the_block_names_the_file_as_the_user_will_see_it(copied, destination):
    def fill(path: Path) -> None:
        (staging_directory,) = path.parent.glob(f".*{'[0-9a-f]' * 16}")
        name = str(staging_directory / "weights/a")
        names = ("from", None, name) if copied else (name,)
        raise OSError(errno.ENOSPC, "No space left on device", *names)

    with pytest.raises(EngineError) as refusal:
        write_while(destination, fill)
    assert str(refusal.value).startswith(f"{destination}/weights/a: No space left on device")
    assert "MiB are free" in str(refusal.value)


def test_other_errors_keep_their_kind(destination):
    with pytest.raises(FileNotFoundError), staged(destination) as directory:
        (directory / "absent").read_text()


def test_file_size_limit(destination):
    """A real refusal of write(2), in a process of its own."""
    process = start(
        """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    write(Path(sys.argv[1]), "long " * 3000)
except EngineError as error:
    print(error)
""",
        destination,
    )
    out, err = process.communicate(timeout=60)
    assert "File too large" in out, err
    assert str(destination) in out
    assert names(destination.parent) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 3000


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_parent_of_others(destination):
    destination.parent.chmod(0o500)
    with pytest.raises(EngineError, match="Permission denied"):
        write(destination, 1)


def test_read_only_parent(destination, monkeypatch: pytest.MonkeyPatch):
    """Where not even a lock can be written, the destination is named, not the lock."""

    def refuse(path: Path, text: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(EngineError) as refusal:
        write(destination, 1)
    assert str(refusal.value) == f"{destination}: Read-only file system; nothing was left behind."


def test_parent_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="Not a directory"):
        write(tmp_path / "file" / "engine", 1)


# Signals


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, -2), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_termination_cleans_up(destination, number, status):
    write(destination, 1)
    process = start(
        """
with staging.staged(Path(sys.argv[1])) as directory:
    (directory / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
""",
        destination,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert len(names(destination.parent)) == 3
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == status
    assert names(destination.parent) == [destination.name]
    assert generation(destination) == 1


def test_signal_while_publishing_acts_afterwards(destination, monkeypatch):
    write(destination, 1)
    exchange = staging._exchange

    def interrupted(first, second):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        return exchange(first, second)

    monkeypatch.setattr(staging, "_exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(destination, 2)
    assert generation(destination) == 2
    assert names(destination.parent) == [destination.name]


def test_second_interrupt_does_not_stop_the_cleaning(destination, monkeypatch):
    remove = staging._remove

    def interrupted(path):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        remove(path)

    monkeypatch.setattr(staging, "_remove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fail(destination, ValueError)
    assert names(destination.parent) == []


def test_signal_handlers_are_put_back(destination):
    def mine(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with staged(destination):
            assert signal.getsignal(signal.SIGTERM) is mine
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_works_outside_the_main_thread(destination):
    thread = threading.Thread(target=write, args=(destination, 1))
    thread.start()
    thread.join()
    assert generation(destination) == 1
