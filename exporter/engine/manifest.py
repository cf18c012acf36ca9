"""engine.json: the complete list of an engine's files, and verification against it."""

import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lmcast.exporter.checkpoint.kinds import CHECKPOINT, what_it_is
from lmcast.exporter.engine.description import Description, Linked, Parity
from lmcast.exporter.engine.names import ENGINE_JSON, RECIPE_JSON, SIGNATURE, is_read_whole
from lmcast.exporter.engine.sealed import (
    MAX_BYTES,
    SELF,
    Advance,
    DamagedError,
    FileEntry,
    Problem,
    check_seal,
    differs,
    kind,
    list_files,
    parse_object,
    read_files,
    read_regular,
    seal,
    walk,
    wrong_contents,
)
from lmcast.plugins import records
from lmcast.plugins.arguments import checked
from lmcast.plugins.errors import InputError
from lmcast.plugins.records import RecordError

FORMAT = 3  # of 2 the graph has the name that other programs look for
SMALL = 16 << 20  # bytes of any file whose hash a loader computes
RESERVED = {"format", "lmcast", "files", SELF}  # written here and by nobody else
AGAIN = "export again"


class EngineError(InputError):
    """An engine directory that cannot be read, written or replaced."""


@dataclass(frozen=True)
class Manifest:
    """A validated engine.json; fields holds all that its writer passed to write_manifest."""

    directory: Path
    lmcast: str  # version that wrote the engine
    fields: Mapping[str, Any]
    files: tuple[FileEntry, ...]
    linked: tuple[Linked, ...]

    @cached_property
    def about(self) -> Description:
        """The fields as a record; raises EngineError for one that is not as declared."""
        try:
            return records.read(Description, self.fields)
        except RecordError as error:
            raise EngineError(f"{self.directory / ENGINE_JSON}: {error}; {AGAIN}") from None


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
    found = {path: status for path, status in walk(directory) if path != ENGINE_JSON}
    for path, status in found.items():
        if not stat.S_ISREG(status.st_mode):
            raise EngineError(f"{directory / path} is {kind(status)}; an engine holds files only.")
    files = list_files(directory, found, hashes or {}, advance)
    body = {**fields, "format": FORMAT, "lmcast": version("lmcast"), "files": files}
    (directory / ENGINE_JSON).write_bytes(seal(body))


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


def read_file(path: Path, most: int = MAX_BYTES) -> bytes:
    """Return the bytes of a file of an engine; raises EngineError for none of at most so many."""
    try:
        return read_regular(path, most)
    except DamagedError as error:
        raise EngineError(f"{path}: {error}; export again") from None
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror}") from None


def read_object(path: Path, most: int = MAX_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file of an engine; raises EngineError for anything else."""
    try:
        return parse_object(read_file(path, most))
    except DamagedError as error:
        raise EngineError(f"{path}: {error}; export again") from None


def read_parity(path: Path) -> Parity:
    """Return what parity measured of an engine; raises EngineError."""
    try:
        return records.read(Parity, read_object(path))
    except RecordError as error:
        raise EngineError(f"{path}: {error}; export again") from None


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
    ours = {"version", "source", "weights", "inputs", "report"}
    # An earlier lmcast wrote no caches, listed no files and recorded fewer hashes and no quality.
    later = {"caches", "files", "quality", "source_sha256", SELF}
    if not isinstance(body, dict) or body.keys() - later != ours:
        return False
    return names <= {RECIPE_JSON, "weights"}


@checked
def verify(
    directory: Path,
    *,
    quick: bool = False,
    times: bool = True,
    advance: Advance | None = None,
) -> list[Problem]:
    """Return all differences between an engine and its manifest; none where it is whole.

    quick: check existence, kind and size of the listed files, the sha256 of the graph, of texts and
        of those up to SMALL, and the identity of linked sources, as a loader needs; otherwise also
        surplus files and every sha256 that is recorded.
    times: whether those of linked sources are of their identity.
    advance: as in write_manifest.

    Raises EngineError where there is no engine.
    """
    try:
        manifest = _parse(directory, read_regular(directory / ENGINE_JSON))
        found = dict(walk(directory))
    except (FileNotFoundError, NotADirectoryError):
        raise EngineError(_no_engine(directory)) from None
    except DamagedError as error:
        return [Problem(ENGINE_JSON, str(error))]
    except OSError as error:
        raise EngineError(f"{error.filename} cannot be read: {error.strerror}.") from error
    listed = {entry.path: entry for entry in manifest.files}
    problems = [p for e in manifest.files for p in differs(e, found.get(e.path))]
    if not quick:
        for path in found.keys() - listed.keys() - {ENGINE_JSON}:
            regular = stat.S_ISREG(found[path].st_mode)
            if path == SIGNATURE and regular:
                continue  # right or wrong, as signing.verify says
            what = "not part of the engine" if regular else f"is {kind(found[path])}"
            problems.append(Problem(path, what))
    broken = {problem.path for problem in problems}
    read = [e for e in manifest.files if not quick or e.size <= SMALL or is_read_whole(e.path)]
    problems += _wrong(directory, [e for e in read if e.path not in broken], advance)
    problems.sort(key=lambda problem: problem.path)
    return problems + changed_sources(manifest, quick, times, advance)


def undeclared(directory: Path) -> list[Problem]:
    """Return what engine.json says that is not as declared, as a problem; hashes cannot tell."""
    try:
        records.read(Description, read_manifest(directory).fields)
    except RecordError as error:
        return [Problem(ENGINE_JSON, str(error))]
    return []


def _no_engine(directory: Path) -> str:
    given, output = "CHECKPOINT", directory
    if not directory.exists():
        found = "does not exist"
    elif what := what_it_is(directory):
        found, output = f"is {what}", Path("ENGINE")
        given = str(directory) if what == CHECKPOINT else given
    elif not directory.is_dir():
        found = "is not a directory"
    else:
        found = f"has no {ENGINE_JSON}"
    return (
        f"{directory} {found}: it is no lmcast engine, which is a directory"
        f" made by `lmcast export {given} -o {output}`."
    )


def _parse(directory: Path, data: bytes) -> Manifest:
    try:
        return _parsed(directory, parse_object(data), data)
    except DamagedError as error:
        told = str(error)
        raise DamagedError(told if told.endswith(".") else f"{told}; {AGAIN}.") from None


def _parsed(directory: Path, body: dict[str, Any], data: bytes) -> Manifest:
    if not RESERVED - {SELF} <= body.keys():
        raise DamagedError("is not the manifest of an lmcast engine")
    if type(body["format"]) is not int or body["format"] < 1:
        raise DamagedError(f"format is {body['format']!r:.40}; {FORMAT} is accepted")
    if body["format"] > FORMAT:
        raise DamagedError(
            f"format {body['format']} was made by a newer lmcast ({body['lmcast']!r:.40}); this one"
            f" reads up to {FORMAT}: upgrade lmcast."
        )
    if body["format"] < FORMAT:
        raise DamagedError(
            f"format {body['format']} was made by an older lmcast ({body['lmcast']!r:.40}):"
            f" {AGAIN}."
        )
    check_seal(body, data)
    fields = {key: value for key, value in body.items() if key not in RESERVED}
    try:
        by: str = records.convert(str, body["lmcast"], "lmcast")
        linked: tuple[Linked, ...] = records.convert(
            tuple[Linked, ...], fields.get("linked", []), "linked"
        )
    except RecordError as error:
        raise DamagedError(str(error)) from None
    files = read_files(body["files"], frozenset({ENGINE_JSON, SIGNATURE}))
    return Manifest(directory, by, fields, files, linked)


def _wrong(directory: Path, entries: Sequence[FileEntry], advance: Advance | None) -> list[Problem]:
    try:
        return list(wrong_contents(directory, entries, advance))
    except OSError as error:
        raise EngineError(f"{error.filename} cannot be read: {error.strerror}.") from error


def changed_sources(
    manifest: Manifest, quick: bool = False, times: bool = True, advance: Advance | None = None
) -> list[Problem]:
    """Return how linked sources differ from their identity; the rest as for `verify`."""
    if not manifest.linked:
        return []
    # Here, so that an engine with its own weights never imports the readers of checkpoints.
    from lmcast.exporter.checkpoint.identity import OtherTimeError, SourceFile

    problems, directory = [], manifest.directory
    for item in manifest.linked:
        path = directory / item.path  # that of a source is absolute as a rule, and then kept
        source = SourceFile(path, item.size, item.mtime_ns, item.header_sha256)
        try:
            source.check(times)
        except InputError as error:
            told = str(error).removeprefix(f"{path}: ")
            if isinstance(error, OtherTimeError):
                told += f"; where its bytes are the same, `lmcast verify --relink {directory}`"
                told += " records that, and `lmcast generate --verify` runs it as it is"
            problems.append(Problem(item.path, told))
            continue
        if not quick and item.sha256 is not None:
            entry = FileEntry(item.path, item.size, item.sha256)
            problems += _wrong(directory, [entry], advance)
    return problems


def changes(manifest: Manifest, whole: bool) -> list[Problem]:
    """Return what differs from the manifest as far as sizes, times and the hashes of small files
    tell, or those of all do.

    Of linked files whose hash is recorded, the bytes then count and not the time.
    """
    problems = verify(manifest.directory, quick=True)
    if not whole:
        return problems
    hashed = {file.path for file in manifest.linked if file.sha256 is not None}
    unhashed = [problem for problem in problems if problem.path not in hashed]
    return unhashed + verify(manifest.directory, times=False)
