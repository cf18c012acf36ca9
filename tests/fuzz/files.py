"""A part whose input is a folder of files: checkpoints, engines, recipes, prompts."""

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fuzz import edits as editing
from fuzz.edits import Edit
from fuzz.trial import INPUT


@dataclass
class Files:
    """make: writes good files into a folder. use: handles a folder in a trial, with a folder for
    what it writes; returns what is wrong with what it accepted, or None.

    more: draws edits of the part's own from a folder, as often as those of any file.
    most: edits of one trial. inside: the folder in it that is edited. arrange: changes a trial's
        copy before that.
    """

    name: str
    about: str
    make: Callable[[Path], object]
    use: Callable[[Path, Path], str | None]
    more: Sequence[Callable[[Path, random.Random], Edit]] = ()
    most: int = 3
    inside: str = "."
    arrange: Callable[[Path], object] = lambda copy: None
    folder: Path = field(default=Path(), init=False)

    def prepare(self, folder: Path) -> None:
        self.make(folder)
        self.folder = folder

    def edits(self, chance: random.Random) -> Sequence[Edit]:
        drawing = [editing.draw, *self.more]
        count = min(self.most, 1 + int(chance.expovariate(1)))
        drawn = [chance.choice(drawing)(self.folder / self.inside, chance) for _ in range(count)]
        return [replace(edit, file=Path(self.inside, edit.file).as_posix()) for edit in drawn]

    def run(self, edits: Sequence[Edit], work: Path) -> str | None:
        shutil.copytree(self.folder, work / INPUT, symlinks=True)
        self.arrange(work / INPUT)
        editing.apply(edits, work / INPUT)
        return self.use(work / INPUT, work)


@dataclass(frozen=True)
class Of:
    """An edit of one of several kinds."""

    kind: str
    edit: Edit

    def __str__(self) -> str:
        return f"{self.kind}, {self.edit}"


class Kinds:
    """Folders of several kinds; a trial spoils one of them, and one without edits uses all."""

    def __init__(self, name: str, about: str, kinds: Sequence[Files]):
        self.name, self.about = name, about
        self.kinds = {kind.name: kind for kind in kinds}

    def prepare(self, folder: Path) -> None:
        for number, kind in enumerate(self.kinds.values()):
            (made := folder / str(number)).mkdir()
            kind.prepare(made)

    def edits(self, chance: random.Random) -> Sequence[Of]:
        kind = self.kinds[chance.choice(list(self.kinds))]
        return [Of(kind.name, edit) for edit in kind.edits(chance)]

    def run(self, edits: Sequence[Of], work: Path) -> str | None:
        if edits:
            return self.kinds[edits[0].kind].run([of.edit for of in edits], work)
        for name, kind in self.kinds.items():
            wrong = kind.run((), work)
            if wrong is not None:
                return f"{name}: {wrong}"
            shutil.rmtree(work / INPUT)
        return None
