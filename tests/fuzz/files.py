"""A part whose input is a folder of files: checkpoints, engines, recipes, prompts."""

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzz import edits as editing
from fuzz.edits import Edit
from fuzz.trial import INPUT


@dataclass
class Files:
    """make: writes good files into a folder. use: handles a folder in a trial, with a folder for
    what it writes; returns what is wrong with what it accepted, or None.

    more: draws edits of the part's own from a folder, as often as those of any file.
    most: edits of one trial.
    """

    name: str
    about: str
    make: Callable[[Path], object]
    use: Callable[[Path, Path], str | None]
    more: Sequence[Callable[[Path, random.Random], Edit]] = ()
    most: int = 3
    folder: Path = field(default=Path(), init=False)

    def prepare(self, folder: Path) -> None:
        self.make(folder)
        self.folder = folder

    def edits(self, chance: random.Random) -> Sequence[Edit]:
        drawing = [editing.draw, *self.more]
        count = min(self.most, 1 + int(chance.expovariate(1)))
        return [chance.choice(drawing)(self.folder, chance) for _ in range(count)]

    def run(self, edits: Sequence[Edit], work: Path) -> str | None:
        shutil.copytree(self.folder, work / INPUT, symlinks=True)
        editing.apply(edits, work / INPUT)
        return self.use(work / INPUT, work)
