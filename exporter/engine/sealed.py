"""Sealed JSON: a file that lists the files beside it with their hashes, and holds its own.

engine.json and recipe.json are such. What is sealed is found to be damaged, whatever bit of it has
changed; that is no signature, as whoever edits it on purpose can seal it again.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any

from lmcast.plugins import records
from lmcast.plugins.records import Count, FilePath, RecordError, Sha256

# Kilobytes in practice; far above what a list of a million files needs of a reader's memory.
MAX_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20
THREADS = 4  # hashing is bound by the disk beyond this
SELF = "self"  # the digest of all the rest

Advance = Callable[[int], None]


class DamagedError(ValueError):
    """A defect of a file that lmcast wrote, without its path."""


@dataclass(frozen=True)
class FileEntry:
    """One listed file; path is relative, with forward slashes."""

    path: FilePath
    size: Count
    sha256: Sha256


@dataclass(frozen=True)
class Problem:
    """One way in which files differ from their list."""

    path: str  # relative; of a linked source, as recorded
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def seal(body: Mapping[str, Any]) -> bytes:
    """Return the bytes of a sealed object; equal objects give equal bytes."""
    body = json.loads(_render(body))  # as a reader will see it: keys are texts, tuples are lists
    return _render({**body, SELF: _digest_of(body)})


def unseal(data: bytes) -> dict[str, Any]:
    """Return a sealed object without its seal; raises DamagedError for all but what `seal` gave."""
    return check_seal(parse_object(data), data)


def check_seal(body: Mapping[str, Any], data: bytes) -> dict[str, Any]:
    """Return `body`, which is `data` parsed, as `unseal` does."""
    rest = {key: value for key, value in body.items() if key != SELF}
    try:
        intact = body.get(SELF) == _digest_of(rest) and _render(body) == data
    except ValueError:  # NaN and Infinity, which json reads but _render refuses
        intact = False
    if not intact:
        raise DamagedError("does not match its own sha256: edited or damaged")
    return rest


def parse_object(data: bytes) -> dict[str, Any]:
    """Return a JSON object; raises DamagedError for anything else."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise DamagedError("is not valid JSON: damaged") from None
    if not isinstance(body, dict):
        raise DamagedError(f"holds {body!r:.40}; a JSON object is accepted")
    return body


def _render(body: Mapping[str, Any]) -> bytes:
    text = json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False)
    return text.encode("ascii") + b"\n"


def _digest_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_render(body)).hexdigest()


def list_files(
    directory: Path,
    found: Mapping[str, os.stat_result],
    hashes: Mapping[str, str],
    advance: Advance | None = None,
) -> list[dict[str, Any]]:
    """Return the list of files for a sealed object, ascending.

    found: regular files of the directory, of which those in `hashes` are not read again.
    advance: called with numbers of hashed bytes, from several threads.
    """
    assert hashes.keys() <= found.keys(), f"hashes of absent files: {hashes.keys() - found.keys()}"
    unknown = sorted(found.keys() - hashes.keys())
    known = dict(zip(unknown, digests([directory / p for p in unknown], advance), strict=True))
    known |= hashes
    return [asdict(FileEntry(path, found[path].st_size, known[path])) for path in sorted(found)]


def read_files(listed: Any, reserved: frozenset[str] = frozenset()) -> tuple[FileEntry, ...]:
    """Return the list of files of a sealed object; raises DamagedError for one that is wrong.

    reserved: paths that cannot be in it.
    """
    try:
        files: tuple[FileEntry, ...] = records.convert(tuple[FileEntry, ...], listed, "files")
    except RecordError as error:
        raise DamagedError(f"{error}; files lists a relative path, size and sha256 each") from None
    paths = [file.path for file in files]
    if taken := sorted(reserved & set(paths)):
        raise DamagedError(f"files has {taken[0]}, which cannot be listed in it")
    if paths != sorted(set(paths)):
        raise DamagedError("files is not sorted or names a file twice")
    return files


def open_without_waiting(path: str, flags: int) -> int:
    """An opener for untrusted files: a link is an error, and a FIFO does not block."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def read_regular(path: Path, most: int = MAX_BYTES) -> bytes:
    """Return a regular file of at most so many bytes; raises DamagedError for anything else."""
    try:
        with open(path, "rb", opener=open_without_waiting) as file:
            status = os.fstat(file.fileno())
            fits = stat.S_ISREG(status.st_mode) and status.st_size <= most
            data = file.read(most + 1) if fits else b""
    except OSError:
        status, data = os.lstat(path), b""
        if stat.S_ISREG(status.st_mode):
            raise
    if not stat.S_ISREG(status.st_mode):
        raise DamagedError(f"is {kind(status)}; it must be a regular file.")
    if max(len(data), status.st_size) > most:
        raise DamagedError(f"is larger than {most >> 20} MiB, which nothing of ours needs.")
    return data


def walk(directory: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (relative path, status) of all but real directories; links are not followed."""
    folders = [""]
    while folders:
        prefix = folders.pop()
        with os.scandir(directory / prefix) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{prefix}{entry.name}/")
                else:
                    yield f"{prefix}{entry.name}", entry.stat(follow_symlinks=False)


def kind(status: os.stat_result) -> str:
    """Return what a file is that is no regular one, in words."""
    names = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO"}
    return names.get(stat.S_IFMT(status.st_mode), "a device or socket")


def differs(entry: FileEntry, status: os.stat_result | None) -> Iterator[Problem]:
    """Yield how a file differs from its entry as far as can be told without reading it."""
    if status is None:
        yield Problem(entry.path, "missing")
    elif not stat.S_ISREG(status.st_mode):
        yield Problem(entry.path, f"is {kind(status)}; recorded as a regular file")
    elif status.st_size != entry.size:
        yield Problem(
            entry.path, f"size differs: recorded {entry.size} bytes, found {status.st_size}"
        )


def wrong_contents(
    directory: Path, entries: Sequence[FileEntry], advance: Advance | None = None
) -> Iterator[Problem]:
    """Yield the files whose bytes are not those listed; raises OSError with the name of one."""
    found = digests([directory / entry.path for entry in entries], advance)
    for entry, digest in zip(entries, found, strict=True):
        if digest != entry.sha256:
            message = f"sha256 differs: recorded {entry.sha256}, found {digest}"
            yield Problem(entry.path, message)


def digests(paths: Sequence[Path], advance: Advance | None = None) -> list[str]:
    """Return the sha256 of files, read in several threads; raises OSError with the name of one."""
    stop = Event()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            return list(pool.map(lambda path: _digest(path, advance, stop), paths))
        finally:
            stop.set()  # an interrupt does not wait for the rest of large files


def _digest(path: Path, advance: Advance | None, stop: Event) -> str:
    digest, chunk = hashlib.sha256(), bytearray(CHUNK_BYTES)
    view = memoryview(chunk)
    try:
        with open(path, "rb", buffering=0, opener=open_without_waiting) as file:
            while (count := file.readinto(chunk)) and not stop.is_set():
                digest.update(view[:count])
                if advance is not None:
                    advance(count)
    except OSError as error:  # a failed read does not say of which file
        raise OSError(error.errno, error.strerror, str(path)) from error
    return digest.hexdigest()
