"""Record that linked files were written again with the bytes that they had."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmcast.exporter.checkpoint.identity import SourceFile
from lmcast.exporter.engine import manifest
from lmcast.exporter.engine.manifest import EngineError, read_manifest, write_manifest
from lmcast.exporter.engine.sealed import Problem
from lmcast.exporter.engine.staging import carry, staged
from lmcast.exporter.progress import Progress, silent
from lmcast.plugins.arguments import checked

UNKNOWN = (
    "changed: it was written again, and no hash of its bytes is recorded, as the export read only"
    " a sample (above 8 GiB, without --check full); export again"
)


@checked
def relink(engine: Path, progress: Progress = silent) -> list[Problem]:
    """Verify an engine but for the times of the files that it links to, and record those.

    Returns what differs otherwise: with anything, the engine stays as it is. A file of another time
    must have a hash of its bytes recorded, as an export does of all that it reads. The engine is
    replaced in one step; a signature is dropped, as by all that writes one, and progress warned.
    Raises EngineError where nothing is linked, CheckpointError where a file changes meanwhile.
    """
    fields = read_manifest(engine).fields
    linked = fields.get("linked", [])
    if not linked:
        raise EngineError(f"{engine}: is not linked; its weights are inside")
    if problems := manifest.verify(engine, quick=True, times=False):
        return problems
    now = [SourceFile.of(engine / item["path"]) for item in linked]  # before their bytes are read
    with progress.stage("comparing weights", sum(file.size for file in now)) as step:
        problems = manifest.verify(engine, times=False, advance=step)
    entries = []
    for item, file in zip(linked, now, strict=True):
        if item["mtime_ns"] != file.mtime_ns and "sha256" not in item:
            problems.append(Problem(item["path"], UNKNOWN))
        entries.append({**item, "mtime_ns": file.mtime_ns})
    if not problems and entries != linked:
        _write(engine, {**fields, "linked": entries}, now, progress)
    return problems


def _write(
    engine: Path, fields: Mapping[str, Any], now: Sequence[SourceFile], progress: Progress
) -> None:
    """Write the engine with other fields in its engine.json."""
    hashes = {file.path: file.sha256 for file in read_manifest(engine).files}
    with staged(engine, progress) as directory:
        for path in hashes:
            carry(engine / path, directory / path)
        for file in now:
            file.check()
        write_manifest(directory, fields, hashes)
