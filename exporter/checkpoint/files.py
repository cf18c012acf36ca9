"""Finding and opening the files of a checkpoint directory without trusting their names or kinds."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lmcast.exporter.checkpoint.errors import CheckpointError

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
GIT_LFS = b"version https://git-lfs"  # how the text file starts that stands for one not yet fetched
WEIGHTS = (".safetensors", ".gguf")
ROOT_USER = 0


def _require_regular(mode: int, shown: Path) -> None:
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "not a file")
        raise CheckpointError(f"{shown}: is {kind}; a regular file is needed here")


@contextmanager
def open_regular(path: Path, shown: Path | None = None) -> Iterator[int]:
    """Yield a read-only descriptor of a regular file; never blocks on a FIFO or opens a device.

    Errors name `shown`. Raises CheckpointError if the file is of another kind or cannot be opened.
    """
    shown = shown or path
    try:
        _require_regular(os.stat(path).st_mode, shown)  # opening a device can have effects
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise CheckpointError(f"{shown}: cannot be opened: {error.strerror}") from None
    try:
        _require_regular(os.fstat(descriptor).st_mode, shown)  # it may have been exchanged
        yield descriptor
    finally:
        os.close(descriptor)


def read_into(descriptor: int, buffer: memoryview, offset: int, shown: Path) -> None:
    """Fill `buffer` from `offset`; a file that ends early is refused (a memory map would crash)."""
    done = 0
    try:
        while done < len(buffer):
            count = os.preadv(descriptor, [buffer[done:]], offset + done)
            if not count:
                missing = len(buffer) - done
                raise CheckpointError(
                    f"{shown}: ends {missing} bytes early; it was truncated while being read"
                )
            done += count
    except OSError as error:
        raise CheckpointError(f"{shown}: cannot be read: {error.strerror}") from None


def read_capped(path: Path, limit: int, shown: Path | None = None) -> bytes:
    """Return a whole regular file of at most `limit` bytes; a larger one is refused unread."""
    shown = shown or path
    with open_regular(path, shown) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise CheckpointError(f"{shown}: is {size} bytes; at most {limit} are accepted here")
        data = bytearray(size)
        read_into(descriptor, memoryview(data), 0, shown)
    if data.startswith(GIT_LFS):
        raise CheckpointError(f"{shown}: is a Git LFS pointer, not the file; run `git lfs pull`")
    return bytes(data)


def cached_repository(path: Path) -> tuple[Path, str] | None:
    """Return the folder (models--x) and the commit of the Hugging Face cache that a file or folder
    lies in the snapshot of, None where it lies in none."""
    for folder in (path, *path.parents):
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
            return folder.parent.parent, folder.name
    return None


def links(root: Path, name: str) -> Iterator[Path]:
    """Yield all links on the way from `root`, which is resolved, to what is called `name` there."""
    place, waiting = root, [*reversed(PurePosixPath(name).parts)]
    while waiting:
        part = waiting.pop()
        step = place.parent if part == ".." else place / part  # an absolute one begins anew
        if step.is_symlink():
            yield step
            waiting += reversed(Path(os.readlink(step)).parts)
        else:
            place = step


def trusted_owners() -> set[int]:
    """Return whose links may lead out of a checkpoint: those of the user who runs this, and root's,
    who can change any file anyway; a link of anybody else would read in this user's name."""
    return {ROOT_USER, os.geteuid()}


@dataclass(frozen=True)
class Folder:
    """A checkpoint directory: finds its files, refusing names that leave it and others' links."""

    root: Path  # resolved
    cached: Path | None  # the repository of the Hugging Face cache that root is a snapshot of

    @classmethod
    def at(cls, path: Path) -> "Folder":
        root = Path(os.path.realpath(path))
        found = cached_repository(root)
        return cls(root, found and found[0])

    def names(self) -> list[str]:
        """Return the names of all entries, sorted."""
        try:
            return sorted(os.listdir(self.root))
        except OSError as error:
            raise CheckpointError(f"{self.root}: cannot be listed: {error.strerror}") from None

    def find(self, name: str, source: str = "") -> Path | None:
        """Return the resolved path of a regular file, None if there is nothing of this name.

        `name` is relative to the directory, with slashes; `source` says in errors who gave it.
        """
        self._require_inside(name, source)
        path = self.root / name
        try:
            if not os.path.lexists(path):
                return None
            real = Path(os.path.realpath(path, strict=True))
            mode = os.stat(real).st_mode
        except OSError as error:
            target = f" (a link to {os.readlink(path)})" if path.is_symlink() else ""
            raise CheckpointError(f"{path}{target}: cannot be found: {error.strerror}") from None
        if not real.is_relative_to(self.root) and not self._is_cached(real):
            self._require_own_links(name, real)
        _require_regular(mode, path)
        return real

    def _is_cached(self, real: Path) -> bool:
        """Whether a file is of the cache that the directory lies in, whoever wrote that: a blob of
        its repository, or of the store that repositories share."""
        if self.cached is None:
            return False
        return real.parent == self.cached / "blobs" or real.is_relative_to(
            self.cached.parent / "blobs"
        )

    def _require_own_links(self, name: str, real: Path) -> None:
        """Refuse a link out of the directory that somebody else made, and a text's to another kind
        of file: a checkpoint that was unpacked or cloned has its links in the user's name."""
        told = f"{self.root / name}: is a link to {real}, outside the checkpoint directory"
        trusted = trusted_owners()
        for link in links(self.root, name):
            if (owner := os.lstat(link).st_uid) not in trusted:
                raise CheckpointError(
                    f"{told}, and {link} belongs to user {owner}; accepted: links of your own and"
                    " root's; copy the file here instead"
                )
        ending, blob = PurePosixPath(name).suffix, real.parent.name == "blobs"
        if (
            ending not in WEIGHTS
            and real.suffix != ending
            and not (blob and real.parent.parent.name.startswith("models--"))
        ):
            raise CheckpointError(
                f"{told}; accepted: one to another {ending} file, or into the cache of Hugging"
                " Face; copy the file here instead"
            )

    def read(self, name: str, limit: int) -> bytes | None:
        """Return the contents of a file of at most `limit` bytes, None if there is no such file."""
        real = self.find(name)
        return None if real is None else read_capped(real, limit, self.root / name)

    def _require_inside(self, name: str, source: str) -> None:
        path = PurePosixPath(name)
        if (
            path.is_absolute()
            or path == PurePosixPath(".")
            or ".." in path.parts
            or "\\" in name
            or "\0" in name
        ):
            raise CheckpointError(
                f"{source or self.root}: names the file {name!r}; only a path below the checkpoint "
                "directory, without '..' or backslashes, is accepted"
            )
