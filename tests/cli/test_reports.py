"""Files that commands write reports to: what they may write over, and where."""

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lmcast.exporter.cli.reports import check_reports, report
from lmcast.exporter.prove.junit import junit
from lmcast.exporter.prove.parity_report import Report, Result
from lmcast.plugins.errors import InputError

REPORT = Report("float32", 3, None, (Result("prefill", 1, 0.0, 0.0, 1.0, 1.0, 0.0, 2.0),))


@dataclass
class Measured:
    """Has what a report needs."""

    def as_json(self) -> dict[str, Any]:
        return {"kl": 0.5}

    def table(self) -> str:
        return "kl 0.5"


def engine(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "engine.json").write_text(json.dumps({"format": 1, "lmcast": "1"}))


def recipe(folder: Path) -> None:
    (folder / "weights").mkdir()
    keys = ("version", "source", "weights", "inputs", "caches", "report")
    (folder / "recipe.json").write_text(json.dumps(dict.fromkeys(keys, 1)))


def text(data: str) -> Any:
    return lambda folder: (folder / "file").write_text(data)


# What is there -> makes it, the file to write, what is said, whether --force helps.
REFUSED: dict[str, tuple[Any, str, str, bool]] = {
    "a checkpoint's config": (text('{"model_type": "llama"}'), "file", "no report", True),
    "notes": (text("mine"), "file", "no report", True),
    "the name, unquoted": (text("lmcast parity was run"), "file", "no report", True),
    "the name, further down": (text(" " * 2000 + '"lmcast parity"'), "file", "no report", True),
    "a link to notes": (
        lambda f: (text("mine")(f), (f / "link").symlink_to("file")), "link", "no report", True,
    ),
    "an engine": (engine, "file", "is inside", False),
    "deep in an engine": (engine, "inner/file", "is inside", False),
    "a part of an engine": (engine, "engine.json", "is inside", False),
    "a recipe": (recipe, "weights/file", "is inside", False),
    "a link into an engine": (
        lambda f: (engine(f), (f / "inner/link").symlink_to("../file")), "inner/link", "is inside",
        False,
    ),
    "a folder": (lambda f: (f / "file").mkdir(), "file", "it is no file", False),
    "no folder": (lambda f: None, "absent/file", "there is no", False),
    "a link to nowhere": (
        lambda f: (f / "link").symlink_to("absent/file"), "link", "cannot be written", False,
    ),
    "a name that is too long": (lambda f: None, "x" * 300, "cannot be written", False),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path):
    make, file, message, forced = REFUSED[name]
    make(tmp_path)
    with pytest.raises(InputError, match=message) as refused:
        check_reports([None, tmp_path / file], force=False)
    assert "\n" not in str(refused.value)
    assert ("--force" in str(refused.value)) == forced
    if forced:
        check_reports([tmp_path / file], force=True)
    else:
        with pytest.raises(InputError, match=message):
            check_reports([tmp_path / file], force=True)


def test_the_baseline_is_written_over_by_force_alone(tmp_path: Path):
    file = tmp_path / "before.json"
    file.write_text('{"report": "lmcast parity"}')
    (tmp_path / "link").symlink_to("before.json")
    with pytest.raises(InputError, match="link: is the baseline; --force"):
        check_reports([tmp_path / "link"], force=False, baseline=file)
    check_reports([tmp_path / "link"], force=True, baseline=file)
    check_reports([tmp_path / "after.json", Path("-")], force=False, baseline=file)


def test_reports_are_json_whatever_was_found(tmp_path: Path):
    """Logits of a broken engine may be no numbers, which JSON does not know."""
    of_broken = (Result("prefill", 1, math.nan, 0.0, 1.0, 1.0, math.inf, 2.0),)
    report(replace(REPORT, results=of_broken), "parity", tmp_path / "a.json", {})

    def unknown(name: str) -> None:
        raise AssertionError(name)

    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=unknown)
    (result,) = found["results"]
    assert (result["error"], result["kl"], result["passed"]) == (None, None, False)


def test_reports_are_known_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file, xml, empty = tmp_path / "a.json", tmp_path / "a.xml", tmp_path / "empty"
    empty.touch()
    for _ in range(2):
        check_reports([file, xml, empty, Path("-"), Path(os.devnull)], force=False)
        report(Measured(), "quality", file, {xml: junit(REPORT)})
    assert json.loads(file.read_text()) == {"report": "lmcast quality", "kl": 0.5}
    assert capsys.readouterr().out == "kl 0.5\n" * 2


@pytest.mark.parametrize("full", ["json", "beside"])
def test_a_device_that_takes_nothing(full: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """One error: nothing was printed, and no other report written."""
    paths = [Path("/dev/full"), tmp_path / "other"]
    file, beside = paths if full == "json" else paths[::-1]
    with pytest.raises(InputError, match="/dev/full: cannot be written: No space left"):
        report(Measured(), "quality", file, {beside: b"1"})
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_one_file_for_two_reports_is_refused(tmp_path: Path):
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(InputError, match="given for two reports"):
        check_reports([tmp_path / "file", tmp_path / "link"], force=True)
