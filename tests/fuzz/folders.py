"""What is below a folder, so that any change of it shows."""

import hashlib
import os
import stat
from pathlib import Path

from fuzz.trial import HOME

State = dict[str, tuple[object, ...]]


def state(work: Path) -> State:
    """Return what is below a folder, but for what the frame writes."""
    found: State = {}
    for path in sorted(work.rglob("*")):
        mode = path.lstat().st_mode
        held: object = os.readlink(path) if stat.S_ISLNK(mode) else None
        if stat.S_ISREG(mode):
            held = hashlib.sha256(path.read_bytes()).hexdigest()
        if path != work / HOME / "output":
            found[str(path.relative_to(work))] = (stat.S_IFMT(mode), held)
    return found
