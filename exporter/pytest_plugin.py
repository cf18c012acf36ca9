"""A plugin of pytest: what parity checks of an engine, each as a test.

    pytest --lmcast-engine DIR --lmcast-against CHECKPOINT

Without these options it adds them to pytest's help and does nothing else: what proves engines is
imported when the first of its tests runs.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lmcast.exporter.prove.parity_report import Report
    from lmcast.plugins.errors import InputError

HASHES = "hashes"


@dataclass(frozen=True)
class Subject:
    """An engine, the checkpoint that it is proven against, and the recipe that it was made with."""

    engine: Path
    against: str
    recipe: Path | None

    @cached_property
    def found(self) -> "Report | InputError":
        """What parity finds, or refuses: once in a process, for all tests."""
        from lmcast.exporter.prove.parity import parity, shows_inner_values
        from lmcast.exporter.runtime.engine import Engine
        from lmcast.plugins.errors import InputError

        try:
            bisect = shows_inner_values(Engine(self.engine))
            return parity(self.engine, self.against, recipe=self.recipe, bisect=bisect)
        except InputError as error:
            return error


SUBJECTS = pytest.StashKey[list[Subject]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, none of which has a default."""
    group = parser.getgroup("lmcast", "parity of lmcast's engines")
    for option, metavar, told in (
        ("engine", "DIR", "An engine to prove. Repeatable."),
        ("against", "CHECKPOINT", "What it was made from: once for all engines, or for each one."),
        ("recipe", "DIR", "A recipe that engines were made with, as its hash says. Repeatable."),
    ):
        name = f"--lmcast-{option}"
        group.addoption(name, action="append", default=[], metavar=metavar, help=told)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse wrong options, in one line and before anything is collected."""
    engines, against, recipes = (
        config.getoption(f"--lmcast-{name}") for name in ("engine", "against", "recipe")
    )
    if engines or against or recipes:
        config.stash[SUBJECTS] = list(_subjects(engines, against, recipes))


def _subjects(engines: list[str], against: list[str], recipes: list[str]) -> Iterator[Subject]:
    from lmcast.exporter.checkpoint.hub import is_model
    from lmcast.exporter.engine.manifest import read_manifest
    from lmcast.plugins.errors import InputError

    if not engines:
        raise pytest.UsageError("--lmcast-against and --lmcast-recipe are for a --lmcast-engine")
    if len(against) not in (1, len(engines)):
        raise pytest.UsageError(
            f"--lmcast-against: {len(against)} for {len(engines)} engines; give it once for all, or"
            " once for each in their order"
        )
    for name in against:
        if not (os.path.exists(name) or is_model(name)):
            raise pytest.UsageError(f"--lmcast-against {name}: is not there, and no model's name")
    try:
        made_with = {str(name): read_manifest(Path(name)).about.recipe for name in engines}
        known = {hashlib.sha256(_recipe_json(Path(name))).hexdigest(): name for name in recipes}
    except InputError as error:
        raise pytest.UsageError(str(error)) from None
    used = {made.sha256 for made in made_with.values() if made is not None}
    if unused := [name for digest, name in known.items() if digest not in used]:
        raise pytest.UsageError(f"--lmcast-recipe {unused[0]}: no engine was made with it")
    for index, name in enumerate(engines):
        made = made_with[name]
        recipe = None if made is None else known.get(made.sha256)
        own = against[index if len(against) > 1 else 0]
        yield Subject(Path(name), own, None if recipe is None else Path(recipe))


def _recipe_json(recipe: Path) -> bytes:
    from lmcast.exporter.checkpoint.files import read_capped
    from lmcast.exporter.engine.names import RECIPE_JSON
    from lmcast.exporter.engine.sealed import MAX_BYTES

    return read_capped(recipe / RECIPE_JSON, MAX_BYTES)


@pytest.hookimpl(tryfirst=True)  # before -k and -m choose among items
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add the tests of each engine: they are in no file that could be collected."""
    for subject in config.stash.get(SUBJECTS, []):
        name = f"lmcast/{subject.engine}"
        items += EngineTests.from_parent(session, name=name, nodeid=name, subject=subject).collect()


class EngineTests(pytest.Collector):
    """The tests of one engine."""

    def __init__(self, *, subject: Subject, **given: Any):
        super().__init__(**given)
        self.subject = subject

    def collect(self) -> list[pytest.Item]:
        """Return what every engine has tests of, whether it has that or not: which it has is known
        once it has run."""
        from lmcast.exporter.prove.scenarios import PARTS, SCENARIOS

        names = (HASHES, *PARTS, *SCENARIOS)
        return [EngineTest.from_parent(self, name=name, subject=self.subject) for name in names]


class EngineTest(pytest.Item):
    """One test: its measured numbers are its user_properties."""

    def __init__(self, *, subject: Subject, **given: Any):
        super().__init__(**given)
        self.subject = subject

    def runtest(self) -> None:
        """Fail with what is wrong, named in a line each."""
        problems = self._hashes() if self.name == HASHES else self._parity()
        if problems:
            pytest.fail("\n".join(problems), pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Return where it is, and how it is called."""
        return self.subject.engine, None, f"{self.subject.engine}: {self.name}"

    def _hashes(self) -> list[str]:
        from lmcast.exporter.engine.manifest import read_manifest, verify

        self.user_properties.append(("files", len(read_manifest(self.subject.engine).files)))
        return [str(problem) for problem in verify(self.subject.engine)]

    def _parity(self) -> list[str]:
        report = self.subject.found
        if isinstance(report, ValueError):  # an InputError is one
            return [str(report)]
        own = [case for case in report.cases() if self.name in (case.name, case.part)]
        if not own:
            pytest.skip(f"this engine has nothing of that: {self.name}")
        for case in own:
            named = "" if case.name == self.name else f"{case.name}."
            equal = {} if case.values else {"equal": case.problem is None}
            for name, value in (*case.values.items(), *equal.items(), ("seconds", case.seconds)):
                self.user_properties.append((f"{named}{name}", value))
        problems = [f"{case.name}: {case.problem}" for case in own if case.problem is not None]
        if problems and self.name == own[0].name and report.bisection is not None:
            problems.append(report.bisection.text())
        return problems
