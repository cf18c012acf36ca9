"""The names of GGUF files in a directory; needs no gguf package."""

import re
from collections.abc import Iterable

# One part of a file that is split: its name, number and how many there are.
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
PROJECTOR = "mmproj"  # how names of what encodes images and sound begin; no language model


def models(names: Iterable[str]) -> list[str]:
    """Return the GGUF files of language models; of one that is split, the first part there is."""
    found: dict[tuple[str, str] | str, str] = {}
    for name in sorted(names):
        if name.lower().endswith(".gguf") and not name.lower().startswith(PROJECTOR):
            match = PART.fullmatch(name)
            found.setdefault(name if match is None else (match[1], match[3]), name)
    return list(found.values())
