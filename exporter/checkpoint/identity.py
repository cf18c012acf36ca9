"""Which file a linked engine was made from, and whether it is still the same."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import open_regular, read_into

# 1 MiB: of a file that is not safetensors (GGUF: its metadata begins there, and names the model).
PREFIX_BYTES = 1 << 20
LONGEST_HEADER = 100_000_000  # as for reading safetensors
REMEDY = "export again from the present file, or restore the one the engine was made from"


class OtherTimeError(CheckpointError):
    """A file that was written since; its bytes may be the same."""


@dataclass(frozen=True)
class SourceFile:
    """A file of weights as it was: cheap to compare, without reading the weights."""

    path: Path
    size: int  # bytes
    mtime_ns: int
    header_sha256: str  # of the safetensors header with its length, or of the first MiB
    sha256: str | None = None  # of all bytes, where they have been read

    @classmethod
    def of(cls, path: Path) -> "SourceFile":
        """Describe a regular file; raises CheckpointError if it cannot be read."""
        with open_regular(path) as descriptor:
            status = os.fstat(descriptor)
            header = bytearray(_header_bytes(descriptor, status.st_size, path))
            read_into(descriptor, memoryview(header), 0, path)
        digest = hashlib.sha256(header).hexdigest()
        return cls(path, status.st_size, status.st_mtime_ns, digest)

    def check(self, time: bool = True) -> None:
        """Raise CheckpointError that says 'moved' or 'changed' unless the file is as described.

        time: whether that of its last change counts.
        """
        if not os.path.lexists(self.path):
            raise CheckpointError(
                f"{self.path}: moved: the engine's weights are linked to this file and it is not "
                "there; move it back, or export again"
            )
        now = SourceFile.of(self.path)
        for label, was, found in (
            ("size", self.size, now.size),
            ("SHA-256 of its header", self.header_sha256, now.header_sha256),
        ):
            if was != found:
                raise CheckpointError(
                    f"{self.path}: changed: {label} was {was}, is {found}; {REMEDY}"
                )
        if time and self.mtime_ns != now.mtime_ns:
            raise OtherTimeError(
                f"{self.path}: changed: modification time (ns) was {self.mtime_ns}, is"
                f" {now.mtime_ns}; {REMEDY}"
            )


def _header_bytes(descriptor: int, size: int, path: Path) -> int:
    """How many bytes from the start identify the file."""
    if path.suffix.lower() != ".gguf" and size >= 8:
        start = bytearray(8)
        read_into(descriptor, memoryview(start), 0, path)
        length = int.from_bytes(start, "little")
        if not start.startswith(b"GGUF") and 8 + length <= min(size, LONGEST_HEADER + 8):
            return 8 + length
    return min(size, PREFIX_BYTES)
