"""Atomic directories: written beside the destination, then renamed."""

import ctypes
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lmcast.exporter.engine.lock import TOKEN, Owner, Place, holds, locked
from lmcast.exporter.engine.manifest import EngineError, is_engine, is_recipe
from lmcast.exporter.engine.names import SIGNATURE
from lmcast.exporter.interrupts import Signals
from lmcast.exporter.progress import Progress, silent

# Errors that any write can meet; others are defects, and keep their traceback.
REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EBUSY, errno.EMFILE,
    errno.ENFILE, errno.ESTALE,
}  # fmt: skip
CHANGED = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.ENOENT}
NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def staged(destination: Path, progress: Progress = silent) -> Iterator[Path]:
    """Yield an empty directory that becomes the destination when the block ends normally.

    The destination may be absent, an empty directory, a recipe or an lmcast engine. It is untouched
    until then, and exchanged in one step, its signature too, of which progress hears. After any
    exception, Ctrl-C, SIGTERM and SIGHUP (which become SystemExit), nothing of this run is left;
    the remains of a killed run are removed by the next one. Raises EngineError where the
    destination is anything else or is being written by another process, and where the disk is full,
    read-only or not ours.
    """
    place = _place(destination)
    with Signals() as signals, _refusing(place):
        _check_replaceable(place.destination)
        with _parents(place.destination.parent, signals), locked(place, signals) as owner:
            _sweep(place)
            _check_replaceable(place.destination)
            signed = (place.destination / SIGNATURE).exists()
            staging = place.beside(owner.token)
            try:
                os.mkdir(staging)
                yield staging
                with progress.stage("flushing to the disk"):
                    _sync_tree(staging)
                with signals.held():
                    _publish(place, staging, owner)
                if signed:
                    progress.warn(f"{destination} is not signed now: its files are new, sign again")
            finally:
                with signals.held(), suppress(FileNotFoundError):
                    _remove(staging)


def carry(file: Path, to: Path) -> None:
    """Hard-link a file of one engine into another; across file systems, copy it."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, to)  # the engine that is replaced gives up its own name for it
    except OSError:
        shutil.copyfile(file, to)


def recover(destination: Path) -> bool:
    """Put back an engine that a killed run had moved aside; return whether there was one.

    A loader calls this when the destination is missing. Raises EngineError as staged does.
    """
    place = _place(destination)
    if os.path.lexists(place.destination) or not os.path.lexists(place.beside("old")):
        return False
    with Signals() as signals, _refusing(place), locked(place, signals):
        return _put_back(place)


def _place(destination: Path) -> Place:
    """Resolve the destination to an absolute path: the working directory may change later."""
    path = os.path.abspath(destination) if destination.name in ("", "..") else destination
    place = Path(os.path.realpath(Path(path).parent), Path(path).name)
    if not place.name or os.path.ismount(place):
        raise EngineError(f"{destination} is a mount point: give a directory inside it.")
    if place == Path(os.path.realpath(".")):
        raise EngineError(f"{destination} is the current directory: give another, or one inside.")
    return Place(place)


def _check_replaceable(destination: Path) -> None:
    """Refuse a destination that must not be replaced."""
    try:
        mode = os.lstat(destination).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        found = "is a symbolic link"
    elif not stat.S_ISDIR(mode):
        found = "is a file"
    elif os.listdir(destination) and not _is_ours(destination):
        found = "is a directory of other files"
    else:
        return
    raise EngineError(
        f"{destination} {found}; only an lmcast engine, a recipe or an empty directory is replaced:"
        " give another path, or remove it first."
    )


def _is_ours(directory: Path) -> bool:
    return is_engine(directory) or is_recipe(directory)


@contextmanager
def _refusing(place: Place) -> Iterator[None]:
    """Turn errors of the file system into one line that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        # Of what is copied or renamed the second is written.
        path = str(error.filename2 or error.filename or place.destination)
        ours = re.escape(str(place.beside(""))) + rf"{TOKEN}(\.lock|\.heir)?(?=/|$)"
        path = re.sub(f"^{ours}", lambda _: str(place.destination), path)
        advice = "nothing was left behind"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            with suppress(OSError):
                free = shutil.disk_usage(place.destination.parent).free >> 20
                advice += f"; {free} MiB are free there now"
        raise EngineError(f"{path}: {os.strerror(error.errno or 0)}; {advice}.") from error


@contextmanager
def _parents(parent: Path, signals: Signals) -> Iterator[None]:
    """Create the missing directories above a destination; remove them again after a failure."""
    missing = [path for path in (parent, *parent.parents) if not os.path.lexists(path)]
    created: list[Path] = []
    try:
        for path in reversed(missing):
            with signals.held(), suppress(FileExistsError):
                os.mkdir(path)
                created.append(path)
        yield
        for path in created:
            _sync(path.parent)
    except BaseException:
        with signals.held():
            for path in reversed(created):
                with suppress(OSError):  # not empty: another run uses it by now
                    path.rmdir()
        raise


# Publishing


def _publish(place: Place, staging: Path, owner: Owner) -> None:
    if not holds(place, owner):
        raise EngineError(
            f"{place.beside('lock')} was removed while {place.destination} was being written;"
            " nothing was published: run again."
        )
    _check_replaceable(place.destination)
    replaced: Path | None = None
    try:
        if not os.path.lexists(place.destination) or not os.listdir(place.destination):
            # A directory replaces nothing but an empty directory, so no newcomer is overwritten.
            os.rename(staging, place.destination)
        elif _exchange(staging, place.destination):
            replaced = staging
        else:
            replaced = place.beside("old")
            _rename_aside(staging, place.destination, replaced)
    except OSError as error:
        if error.errno not in CHANGED:
            raise
        raise EngineError(
            f"{place.destination} was changed by something else while it was being written;"
            " nothing was published: run again."
        ) from error
    _sync(place.destination.parent)
    if replaced is not None:
        try:
            _remove(replaced)
        except OSError as error:
            raise EngineError(
                f"{place.destination} is written, but what it replaced could not be removed"
                f" ({error.strerror}): delete {replaced}."
            ) from error


def _exchange(first: Path, second: Path) -> bool:
    """Swap two directories in one step; False where the system cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    names = os.fsencode(first), os.fsencode(second)
    if library.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(second))


def _rename_aside(staging: Path, destination: Path, old: Path) -> None:
    """Replace in two steps; killed between them, _put_back makes the first one undone."""
    os.rename(destination, old)
    try:
        os.rename(staging, destination)
    except OSError:
        os.rename(old, destination)
        raise


def _put_back(place: Place) -> bool:
    old = place.beside("old")
    if not os.path.lexists(old):
        return False
    if _is_ours(place.destination):  # killed after the second step
        _remove(old)
        return False
    if os.path.lexists(place.destination) and os.listdir(place.destination):
        return False
    os.rename(old, place.destination)
    _sync(place.destination.parent)
    return True


def _sweep(place: Place) -> None:
    """Remove the remains of dead runs; the lock is held, so they are no living run's."""
    _put_back(place)
    for path in place.leftovers():
        with suppress(FileNotFoundError):
            _remove(path)


def _remove(path: Path) -> None:
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
        return
    try:
        shutil.rmtree(path)
    except PermissionError:
        for folder, _, _ in os.walk(path):  # somebody made his engine read-only
            os.chmod(folder, stat.S_IRWXU)
        shutil.rmtree(path)


def _sync_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            path = Path(folder, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                _sync(path)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not know fsync of a directory.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
