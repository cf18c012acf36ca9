"""engine.json: the complete list of an engine's files, and verification against it."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import Any

from lmcast.exporter.checkpoint.kinds import CHECKPOINT, what_it_is
from lmcast.exporter.engine.names import ENGINE_JSON, RECIPE_JSON, SIGNATURE
from lmcast.plugins.errors import InputError

FORMAT = 1
# Kilobytes in practice; far above what a list of a million files needs of a reader's memory.
MAX_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20
THREADS = 4  # hashing is bound by the disk beyond this
RESERVED = {"format", "lmcast", "files", "self"}  # written here and by nobody else

Advance = Callable[[int], None]


class EngineError(InputError):
    """An engine directory that cannot be read, written or replaced; one printable line."""

    def __init__(self, message: str):
        shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__("".join(shown))


class DamagedError(ValueError):
    """A defect of engine.json or model.sig, without its path."""


@dataclass(frozen=True)
class FileEntry:
    """One file of an engine; path is relative, with forward slashes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A validated engine.json; fields holds all that its writer passed to write_manifest."""

    directory: Path
    lmcast: str  # version that wrote the engine
    fields: Mapping[str, Any]
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class Problem:
    """One way in which an engine differs from its manifest."""

    path: str  # relative to the engine; of a linked source, as recorded
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def write_manifest(
    directory: Path,
    fields: Mapping[str, Any],
    hashes: Mapping[str, str] | None = None,
    *,
    advance: Advance | None = None,
) -> None:
    """Write engine.json for everything in the directory; equal content gives equal bytes.

    A signature in it is removed, as it was made for other content.

    fields: JSON values (no NaN), none named as in RESERVED.
    hashes: known sha256 by relative path; those files are not read again.
    advance: called with numbers of hashed bytes, from several threads.

    Raises EngineError for anything in the directory that is neither a directory nor a regular file.
    """
    assert not RESERVED & fields.keys(), f"reserved: {RESERVED & fields.keys()}"
    (directory / SIGNATURE).unlink(missing_ok=True)
    found = {path: status for path, status in _walk(directory) if path != ENGINE_JSON}
    for path, status in found.items():
        if not stat.S_ISREG(status.st_mode):
            raise EngineError(f"{directory / path} is {_kind(status)}; an engine holds files only.")
    known = dict(hashes or {})
    assert known.keys() <= found.keys(), f"hashes of absent files: {known.keys() - found.keys()}"
    unknown = sorted(found.keys() - known.keys())
    known.update(zip(unknown, digests([directory / p for p in unknown], advance), strict=True))
    files = [
        {"path": path, "size": found[path].st_size, "sha256": known[path]} for path in sorted(found)
    ]
    body = {**fields, "format": FORMAT, "lmcast": version("lmcast"), "files": files}
    body = json.loads(_render(body))  # as a reader will see it: keys are texts, tuples are lists
    (directory / ENGINE_JSON).write_bytes(_render({**body, "self": _self_digest(body)}))


def read_manifest(directory: Path) -> Manifest:
    """Read and validate engine.json, not the files it lists; raises EngineError."""
    path = directory / ENGINE_JSON
    try:
        return _parse(directory, read_regular(path))
    except (FileNotFoundError, NotADirectoryError):
        raise EngineError(_no_engine(directory)) from None
    except DamagedError as error:
        raise EngineError(f"{path}: {error}") from None
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror}.") from error


def is_engine(directory: Path) -> bool:
    """Whether lmcast wrote this directory, however damaged its contents are by now."""
    try:
        body = json.loads(read_regular(directory / ENGINE_JSON))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(body, dict) and {"format", "lmcast"} <= body.keys()


def is_recipe(directory: Path) -> bool:
    """Whether `lmcast calibrate` wrote this directory: its recipe.json, weights, nothing else."""
    try:
        body = json.loads(read_regular(directory / RECIPE_JSON))
        names = set(os.listdir(directory))
    except (OSError, ValueError, RecursionError):
        return False
    ours = {"version", "source", "weights", "inputs", "caches", "report"}
    if not isinstance(body, dict) or {*body, "caches"} != ours:  # an earlier lmcast wrote no caches
        return False
    return names <= {RECIPE_JSON, "weights"}


def verify(
    directory: Path,
    *,
    quick: bool = False,
    times: bool = True,
    advance: Advance | None = None,
) -> list[Problem]:
    """Return all differences between an engine and its manifest; none where it is whole.

    quick: check existence, kind and size of the listed files and the identity of linked sources, as
        a loader needs; otherwise also surplus files and every sha256 that is recorded.
    times: whether those of linked sources are of their identity.
    advance: as in write_manifest.

    Raises EngineError where there is no engine.
    """
    try:
        manifest = _parse(directory, read_regular(directory / ENGINE_JSON))
        found = dict(_walk(directory))
    except (FileNotFoundError, NotADirectoryError):
        raise EngineError(_no_engine(directory)) from None
    except DamagedError as error:
        return [Problem(ENGINE_JSON, str(error))]
    except OSError as error:
        raise EngineError(f"{error.filename} cannot be read: {error.strerror}.") from error
    listed = {entry.path: entry for entry in manifest.files}
    problems = [p for e in manifest.files for p in _differs(e, found.get(e.path))]
    if not quick:
        for path in found.keys() - listed.keys() - {ENGINE_JSON}:
            regular = stat.S_ISREG(found[path].st_mode)
            if path == SIGNATURE and regular:
                continue  # right or wrong, as signing.verify says
            what = "not part of the engine" if regular else f"is {_kind(found[path])}"
            problems.append(Problem(path, what))
        broken = {problem.path for problem in problems}
        intact = [entry for entry in manifest.files if entry.path not in broken]
        problems += _wrong_contents(directory, intact, advance)
    problems.sort(key=lambda problem: problem.path)
    linked = manifest.fields.get("linked", [])
    return problems + _changed_sources(directory, linked, quick, times, advance)


def _no_engine(directory: Path) -> str:
    given, output = "CHECKPOINT", directory
    if not directory.exists():
        found = "does not exist"
    elif kind := what_it_is(directory):
        found, output = f"is {kind}", Path("ENGINE")
        given = str(directory) if kind == CHECKPOINT else given
    elif not directory.is_dir():
        found = "is not a directory"
    else:
        found = f"has no {ENGINE_JSON}"
    return (
        f"{directory} {found}: it is no lmcast engine, which is a directory"
        f" made by `lmcast export {given} -o {output}`."
    )


def _render(body: Mapping[str, Any]) -> bytes:
    text = json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False)
    return text.encode("ascii") + b"\n"


def _self_digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_render(body)).hexdigest()


def open_without_waiting(path: str, flags: int) -> int:
    """An opener for untrusted files: a link is an error, and a FIFO does not block."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def read_regular(path: Path) -> bytes:
    """Return a small regular file; raises DamagedError for anything else."""
    try:
        with open(path, "rb", opener=open_without_waiting) as file:
            status = os.fstat(file.fileno())
            data = file.read(MAX_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
    except OSError:
        status, data = os.lstat(path), b""
        if stat.S_ISREG(status.st_mode):
            raise
    if not stat.S_ISREG(status.st_mode):
        raise DamagedError(f"is {_kind(status)}; it must be a regular file.")
    if len(data) > MAX_BYTES:
        raise DamagedError(f"is larger than {MAX_BYTES >> 20} MiB, which no engine needs.")
    return data


def _parse(directory: Path, data: bytes) -> Manifest:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise DamagedError("is not valid JSON: damaged, export again.") from None
    if not isinstance(body, dict) or not RESERVED - {"self"} <= body.keys():
        raise DamagedError("is not the manifest of an lmcast engine: export again.")
    if type(body["format"]) is not int or body["format"] < 1:
        raise DamagedError(f"format is {body['format']!r}; {FORMAT} is accepted: export again.")
    if body["format"] > FORMAT:
        raise DamagedError(
            f"format {body['format']} was made by a newer lmcast ({body['lmcast']!r}); this one"
            f" reads up to {FORMAT}: upgrade lmcast."
        )
    _check_self(body, data)
    if not isinstance(body["lmcast"], str) or not isinstance(body["files"], list):
        raise DamagedError("lmcast must be a text and files a list: export again.")
    files = tuple(_file_entry(item) for item in body["files"])
    paths = [entry.path for entry in files]
    if paths != sorted(set(paths)):
        raise DamagedError("files is not sorted or names a file twice: export again.")
    fields = {key: value for key, value in body.items() if key not in RESERVED}
    _check_linked(fields.get("linked", []))
    return Manifest(directory, body["lmcast"], fields, files)


def _check_self(body: Mapping[str, Any], data: bytes) -> None:
    """Check engine.json against its own digest, and its bytes against a fresh rendering."""
    rest = {key: value for key, value in body.items() if key != "self"}
    try:
        intact = body.get("self") == _self_digest(rest) and _render(body) == data
    except ValueError:  # NaN and Infinity, which json reads but _render refuses
        intact = False
    if not intact:
        raise DamagedError("does not match its own sha256: edited or damaged, export again.")


def _file_entry(item: object) -> FileEntry:
    match item:
        case {"path": str(path), "size": int(size), "sha256": str(digest), **rest} if (
            not rest
            and size >= 0
            and not isinstance(size, bool)
            and re.fullmatch("[0-9a-f]{64}", digest)
            and path not in (ENGINE_JSON, SIGNATURE)
            and "\0" not in path
            and all(part not in ("", ".", "..") for part in path.split("/"))
        ):
            return FileEntry(path, size, digest)
    raise DamagedError(
        f"files has {str(item)[:200]!r}; accepted: a relative path inside the engine, its size and"
        " sha256: export again."
    )


def _check_linked(linked: object) -> None:
    if not isinstance(linked, list):
        raise DamagedError(f"linked is {type(linked).__name__}; a list is accepted.")
    for item in linked:
        match item:
            case {"path": str(), "size": int(), "mtime_ns": int(), "header_sha256": str(), **rest}:
                if rest.keys() <= {"sha256"} and isinstance(rest.get("sha256", ""), str):
                    continue
        raise DamagedError(
            f"linked has {str(item)[:200]!r}; accepted: path, size, mtime_ns, header_sha256 and"
            " sha256."
        )


def _walk(directory: Path) -> Iterator[tuple[str, os.stat_result]]:
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


def _kind(status: os.stat_result) -> str:
    names = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO"}
    return names.get(stat.S_IFMT(status.st_mode), "a device or socket")


def _differs(entry: FileEntry, status: os.stat_result | None) -> Iterator[Problem]:
    if status is None:
        yield Problem(entry.path, "missing")
    elif not stat.S_ISREG(status.st_mode):
        yield Problem(entry.path, f"is {_kind(status)}; recorded as a regular file")
    elif status.st_size != entry.size:
        yield Problem(
            entry.path, f"size differs: recorded {entry.size} bytes, found {status.st_size}"
        )


def _wrong_contents(
    directory: Path, entries: Sequence[FileEntry], advance: Advance | None
) -> Iterator[Problem]:
    try:
        found = digests([directory / entry.path for entry in entries], advance)
    except OSError as error:
        raise EngineError(f"{error.filename} cannot be read: {error.strerror}.") from error
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


def _changed_sources(
    directory: Path,
    linked: Sequence[Mapping[str, Any]],
    quick: bool,
    times: bool,
    advance: Advance | None,
) -> list[Problem]:
    if not linked:
        return []
    # Here, so that an engine with its own weights never imports the readers of checkpoints.
    from lmcast.exporter.checkpoint.identity import OtherTimeError, SourceFile

    problems = []
    for item in linked:
        path = directory / item["path"]  # that of a source is absolute as a rule, and then kept
        source = SourceFile(path, item["size"], item["mtime_ns"], item["header_sha256"])
        try:
            source.check(times)
        except InputError as error:
            told = str(error).removeprefix(f"{path}: ")
            if isinstance(error, OtherTimeError):
                told += f"; where its bytes are the same, `lmcast verify --relink {directory}`"
                told += " records that, and `lmcast generate --verify` runs it as it is"
            problems.append(Problem(item["path"], told))
            continue
        if not quick and "sha256" in item:
            entry = FileEntry(item["path"], item["size"], item["sha256"])
            problems += _wrong_contents(directory, [entry], advance)
    return problems
