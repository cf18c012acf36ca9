"""Who writes to a destination: one process at a time, which stays known after it was killed.

Everything left beside a destination NAME is called .NAME.lmcast-*:
  -lock                who is writing; one at a time
  -TOKEN               the directory being written; after an exchange, the engine it replaced
  -old                 the replaced engine, where the file system cannot exchange two directories
  -TOKEN.lock, .heir   a lock about to be taken, or taken over from a dead owner
"""

import errno
import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from lmcast.exporter.engine.manifest import EngineError
from lmcast.exporter.engine.sealed import open_without_waiting
from lmcast.exporter.interrupts import Signals

TOKEN_BYTES = 8
TOKEN = f"[0-9a-f]{{{2 * TOKEN_BYTES}}}"
LOCK_BYTES = 4096  # far above what a lock holds; a larger file is none
# Only where there are no hard links can a lock be seen half-written, and only for milliseconds.
UNREADABLE_SECONDS = 60.0
ATTEMPTS = 100  # each lost to another process that moved on meanwhile
NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock, told apart from any later one with the same number."""

    host: str
    boot: str | None
    namespace: str | None  # of process numbers: containers count their own
    pid: int
    started: int | None  # clock ticks after boot
    token: str


@dataclass(frozen=True)
class Place:
    """A destination and the names that belong to it; the parent is resolved."""

    destination: Path

    def beside(self, suffix: str) -> Path:
        return self.destination.parent / f"{self._prefix}{suffix}"

    @property
    def _prefix(self) -> str:
        name = self.destination.name
        if len(os.fsencode(name)) > 220:  # 255: longest file name; 35: ours around it
            name = hashlib.sha256(os.fsencode(name)).hexdigest()
        return f".{name}.lmcast-"

    def leftovers(self) -> Iterator[Path]:
        ours = re.compile(rf"{re.escape(self._prefix)}{TOKEN}(\.lock|\.heir)?")
        for name in os.listdir(self.destination.parent):
            if ours.fullmatch(name):
                yield self.destination.parent / name


@dataclass(frozen=True)
class _Lock:
    """A lock file as read: owner is None where its contents are no lock."""

    path: Path
    owner: Owner | None
    token: str
    modified: float


@contextmanager
def locked(place: Place, signals: Signals) -> Iterator[Owner]:
    """Hold the lock of a destination, by a file: flock does not reach across network mounts.

    Raises EngineError while another process holds it, or where that cannot be known.
    """
    owner = _ourselves()
    try:
        with signals.held():
            _acquire(place, owner)
        yield owner
    finally:
        with signals.held():
            if holds(place, owner):
                os.unlink(place.beside("lock"))


def holds(place: Place, owner: Owner) -> bool:
    """Whether the lock of a destination is still this owner's."""
    held = _read_lock(place.beside("lock"))
    return held is not None and held.token == owner.token


def _acquire(place: Place, owner: Owner) -> None:
    temporary = place.beside(f"{owner.token}.lock")
    text = json.dumps(asdict(owner), sort_keys=True) + "\n"
    for _ in range(ATTEMPTS):
        try:
            # Complete before it gets its name: nobody ever reads half a lock.
            temporary.write_text(text)
            if _take(place, owner, temporary):
                return
        except FileNotFoundError:
            continue  # the temporary file, swept by one who had the lock
        finally:
            temporary.unlink(missing_ok=True)
    raise EngineError(f"{place.beside('lock')} changes all the time: too many exports at once.")


def _take(place: Place, owner: Owner, temporary: Path) -> bool:
    """Take the lock, or succeed a dead owner; False: somebody else moved on, so look again.

    Only one process can make the file TOKEN.heir, and so only one may replace the lock of the
    dead owner TOKEN, in one step. An heir that dies too has an heir of its own.
    """
    at, dead = place.beside("lock"), list[_Lock]()
    while not _claim(temporary, at, owner):
        held = _read_lock(at)
        if held is None:
            return False
        if held.token == owner.token:  # a network file system lost the answer to our claim
            break
        # An heir that read the lock before another replaced it is about to give up: not a writer.
        if not _unchanged(dead):
            return False
        _refuse_unless_dead(place, held, temporary.stat().st_mtime)
        dead.append(held)
        at = place.beside(f"{held.token}.heir")
    if not dead:
        return True
    try:
        if _unchanged(dead):
            os.rename(temporary, dead[0].path)
            for past in dead[1:]:
                past.path.unlink(missing_ok=True)
            return True
        return False
    finally:
        at.unlink(missing_ok=True)


def _unchanged(locks: list[_Lock]) -> bool:
    """Whether files still are the locks that were read from them."""
    return all((now := _read_lock(was.path)) and now.token == was.token for was in locks)


def _claim(temporary: Path, at: Path, owner: Owner) -> bool:
    try:
        os.link(temporary, at)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
    text = temporary.read_text()
    try:
        with open(at, "x") as file:
            file.write(text)
        return True
    except FileExistsError:
        return False


def _read_lock(path: Path) -> _Lock | None:
    try:
        with open(path, "rb", opener=open_without_waiting) as file:
            status, data = os.fstat(file.fileno()), file.read(LOCK_BYTES)
    except FileNotFoundError:
        return None
    try:
        match json.loads(data):
            case {"pid": int(pid), "token": str(token), "host": str()} as fields if (
                re.fullmatch(TOKEN, token) and 0 < pid < 1 << 31
            ):
                return _Lock(path, Owner(**fields), token, status.st_mtime)
    except (ValueError, TypeError, RecursionError):
        pass  # not ours; judged by its age
    identity = hashlib.sha256(f"{status.st_ino}:{status.st_mtime_ns}".encode()).hexdigest()
    return _Lock(path, None, identity[: 2 * TOKEN_BYTES], status.st_mtime)


def _refuse_unless_dead(place: Place, held: _Lock, now: float) -> None:
    """Raise EngineError unless the owner of a lock cannot be running any more.

    now: of the clock that also dated the lock, which may be a file server's.
    """
    age = max(0, round(now - held.modified))
    if held.owner is None:
        if age > UNREADABLE_SECONDS:
            return
        raise EngineError(
            f"{held.path} is unreadable and {age} s old: run again after"
            f" {UNREADABLE_SECONDS:.0f} s, or delete it if no export is writing."
        )
    alive = _alive(held.owner, _ourselves())
    if alive is False:
        return
    text = f"another export (pid {held.owner.pid} on {held.owner.host}) is writing"
    text += f" {place.destination} since {age} s"
    if alive is None:
        text += f"; if it does not run there any more, delete {held.path}"
    raise EngineError(text + ".")


def _alive(owner: Owner, ours: Owner) -> bool | None:
    """Whether a process still runs; None where that cannot be known from here."""
    if owner.boot is not None and owner.boot == ours.boot:
        if owner.namespace != ours.namespace:
            return None
    elif owner.host != ours.host:
        return None
    elif None not in (owner.boot, ours.boot):
        return False  # this machine was started again since
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user, and running
    started = _started(owner.pid)
    return None in (owner.started, started) or owner.started == started


def _ourselves() -> Owner:
    boot = namespace = None
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    pid, token = os.getpid(), secrets.token_hex(TOKEN_BYTES)
    return Owner(socket.gethostname(), boot, namespace, pid, _started(pid), token)


def _started(pid: int) -> int | None:
    """When a process started; -1 for one that is dead but not yet collected by its parent."""
    for _ in range(ATTEMPTS):
        try:
            text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return None
        fields = text.rpartition(")")[2].split()  # the name before it may hold anything
        state, threads, started = fields[0], int(fields[17]), int(fields[19])
        if state not in "ZX":
            return started
        if threads <= 1:
            return -1
        time.sleep(0.01)  # killed, but one of its threads may still be inside a write
    return started
