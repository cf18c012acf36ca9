"""Reports of parity in other people's CI: baselines, JUnit, and the page."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tiny.llama import write_json

from lmcast.exporter.prove import baseline
from lmcast.exporter.prove.junit import junit
from lmcast.exporter.prove.parity import parity
from lmcast.exporter.prove.parity_page import parity_page
from lmcast.exporter.prove.parity_report import Change, Report, Result
from lmcast.plugins.errors import InputError

ROOT = Path(__file__).parents[2]
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[A]"
Q = "layers.1.mixer.q.weight"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def report(proven: Path) -> Report:
    """Another report of the same engine."""
    return parity(proven / "engine", proven / "checkpoint", layers=True)


# Baselines. ------------------------------------------------------------------------------------


def scale(number: str, by: float, scenario: str = "prefill") -> Callable[[Report], Report]:
    """Change a number of a scenario."""

    def change(report: Report) -> Report:
        results = tuple(
            dataclasses.replace(r, **{number: getattr(r, number) * by})
            if r.scenario == scenario
            else r
            for r in report.results
        )
        return dataclasses.replace(report, results=results)

    return change


# What is measured now -> what is worse than before.
WORSE: dict[str, tuple[Callable[[Report], Report], list[str]]] = {
    "the same": (lambda report: report, []),
    "half the error": (scale("error", 0.5), []),
    "as of another order of sums": (scale("error", 2.9), []),
    "five times the error": (scale("error", 5.0), ["prefill: error"]),
    "of another scenario": (scale("error", 5.0, "ragged batch"), ["ragged batch: error"]),
    "no number": (scale("error", float("nan"), "step by step"), ["step by step: error"]),
    "fifty times the divergence": (scale("kl", 50.0), ["prefill: kl"]),
    "where eager errs as much more": (
        lambda r: scale("eager_error", 5.0)(scale("error", 5.0)(r)), [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORSE)
def test_what_has_become_worse_is_named(name: str, proven: Path, report: Report):
    change, worse = WORSE[name]
    path = proven / "before.json"
    now = baseline.with_changes(change(report), path, baseline.read_baseline(path))
    assert now.baseline is not None and len(now.baseline) == 6  # error and KL of three scenarios
    found = [case.name for case in now.cases() if case.part == "baseline" and case.problem]
    assert found == worse
    if name != "no number":  # which fails without a baseline
        assert now.computes and now.passed == (not worse)
    assert now.table().count("WORSE") == len(worse)


# An edit of the baseline -> why it is refused.
REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "of another checkpoint": (
        lambda b: b["subject"].update(checkpoint="0" * 64), "checkpoint is 00000",
    ),
    "of another target": (lambda b: b["subject"].update(target="onnx"), "target is onnx there"),
    "of other formats": (
        lambda b: b["subject"].update(weights={"int4": 3}), r"weights is \{'int4': 3\} there",
    ),
    "of a recipe": (lambda b: b["subject"].update(recipe="1" * 64), "recipe is 1111"),
    "of exact kernels": (lambda b: b["subject"].update(exact=True), "exact is True there"),
    "of given prompts": (lambda b: b["subject"].update(prompts="2" * 64), "prompts is 2222"),
    "of another dtype": (lambda b: b.update(dtype="float16"), "dtype is float16 there"),
    "of a plan": (lambda b: b.update(ran="plan"), "ran is plan there"),
    "of other scenarios": (lambda b: b["results"].pop(), "in prefill, step by step; this run"),
    "of a later lmcast": (lambda b: b.update(version=2), "another lmcast: version 2, accepted"),
    "of an earlier lmcast": (lambda b: b.pop("version"), "was written by an earlier lmcast"),
    "without a subject": (lambda b: b.pop("subject"), "subject is missing"),
    "a report of quality": (lambda b: b.pop("results"), "is no report of parity"),
    "a negative divergence": (
        lambda b: b["results"][1].update(kl=-1.0), r"results\[1\]\.kl is -1\.0; accepted",
    ),
    "no number": (
        lambda b: b["results"][0].update(error=float("nan")), "other.json: .*NaN",
    ),
    "no tokens": (lambda b: b.update(tokens=0), r"tokens is 0; accepted: 1 to"),
    "an error in words": (lambda b: b["results"][0].update(error="x"), r"error is 'x'; accepted"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_another_baseline_is_refused_by_name(name: str, proven: Path, tmp_path: Path):
    edit, message = REFUSED[name]
    body = json.loads((proven / "before.json").read_text())
    edit(body)
    write_json(tmp_path / "other.json", body)
    with pytest.raises(InputError, match=message) as refused:
        parity(proven / "engine", proven / "checkpoint", baseline=tmp_path / "other.json")
    assert str(tmp_path / "other.json") in str(refused.value)


def test_the_baseline_of_the_command(proven: Path, tmp_path: Path, lmcast: Run):
    """It says how many tokens; exit status 1 and a name for what is worse. Two runs are equal."""
    body = json.loads((proven / "before.json").read_text())
    for result in body["results"]:
        result["error"] *= 1e-3
    write_json(tmp_path / "better.json", body)
    files = ("--json", tmp_path / "now.json", "--junit", tmp_path / "now.xml")
    files += ("--html", tmp_path / "now.html")
    status, shown, _ = lmcast(
        "parity", proven / "engine", "--against", proven / "checkpoint",
        "--baseline", tmp_path / "better.json", *files,
    )  # fmt: skip
    assert status == 1
    for scenario in ("prefill", "step by step", "ragged batch"):
        assert f"{scenario} since the baseline: WORSE: error is" in shown
    now = json.loads((tmp_path / "now.json").read_text())
    assert now["tokens"] == body["tokens"] == 64 and not now["passed"]
    assert [change["before"] for change in now["baseline"]] == [
        result[number] for result in body["results"] for number in ("error", "kl")
    ]
    suite = ElementTree.parse(tmp_path / "now.xml").getroot()
    assert suite.get("failures") == "3"
    assert "is worse" not in shown and "1e+03 times as much" in shown
    files = ("--junit", proven / "before.json", "--html", proven / "checkpoint/config.json")
    status, _, said = lmcast(
        "parity", proven / "engine", "--against", proven / "checkpoint", *files
    )
    assert (status, said.count("\n")) == (2, 1) and "config.json: is there, and no report" in said


# Reports. --------------------------------------------------------------------------------------

# Of the schema of Jenkins' xUnit plugin (junit-10.xsd), which others read too: an element -> its
# attributes, those of them that it needs, and what it may hold, "" for text.
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped", "time", "timestamp", "hostname"},
        {"name", "tests", "failures", "errors"},
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, {"name", "value"}, set()),
    "testcase": (
        {"name", "classname", "time"}, {"name"},
        {"failure", "error", "skipped", "system-out", "system-err"},
    ),
    "failure": ({"type", "message"}, set(), {""}),
    "system-out": (set(), set(), {""}),
}  # fmt: skip
STRANGE = Result("a\x00\x1b[31m<b>&\u202e\udc80", 1, float("nan"), 0.1, 0.4, 1.0, 0.0, 9.0)
FAILED = Report("float32", 3, None, (STRANGE,), baseline=(Change("<i>", "kl", 0.0, 1.0, 0.5),))


def check_schema(element: ElementTree.Element) -> None:
    allowed, needed, holds = SCHEMA[element.tag]
    assert needed <= element.attrib.keys() <= allowed, element.tag
    assert {child.tag for child in element} <= holds - {""}, element.tag
    assert "" in holds or not (element.text or "").strip(), element.tag
    if "time" in element.attrib:  # as Surefire writes it
        assert re.fullmatch(r"\d{1,3}(\.\d*)?", element.attrib["time"])
    for child in element:
        check_schema(child)


def test_junit_has_times_and_numbers_of_passes(report: Report):
    suite = ElementTree.fromstring(junit(report))
    check_schema(suite)
    cases = suite.findall("testcase")
    assert (suite.get("tests"), suite.get("failures")) == (str(len(cases)), "0")
    assert float(suite.get("time") or 0) > 0
    named = {p.get("name"): p.get("value") for p in suite.iter("property")}
    for result in report.results:
        (case,) = suite.findall(f"testcase[@name='{result.scenario}']")
        assert float(case.get("time") or 0) > 0
        shown = dict(line.split(" = ") for line in (case.findtext("system-out") or "").split("\n"))
        for name in ("error", "eager_error", "bound", "kl", "top1", "positions"):
            value = str(getattr(result, name))
            assert (shown[name], named[f"{result.scenario}.{name}"]) == (value, value)


def test_reports_escape_what_strangers_write():
    suite = ElementTree.fromstring(junit(FAILED))  # well-formed, whatever names contain
    check_schema(suite)
    assert suite.get("failures") == "2"
    page = parity_page(FAILED, "<script>\x00\udc80</script> & co")
    page.encode()
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page
    ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def test_the_page(report: Report):
    """One well-formed file, nothing from elsewhere: plots of three scenarios and of the layers."""
    page = parity_page(report, "a against b")
    assert b'"lmcast ' in page.encode()[:1024]  # known again as a report
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    names = {name for element in root.iter() for name in (element.tag, *element.attrib)}
    assert not names & {"script", "src", "href", "link"}
    assert "url(" not in page and "http" not in page
    plots = list(root.iter("svg"))
    assert [plot.get("aria-label") for plot in plots] == ["Errors by position"] * 3 + [
        "Errors by layer"
    ]
    for result, plot in zip(report.results, plots, strict=False):
        (drawn,) = plot.findall("polyline")
        assert len(drawn.attrib["points"].split()) == len({t for _, t, _ in result.errors})
        assert max(error for _, _, error in result.errors) == result.error
    notes = [rect.findtext("title") for rect in plots[3].findall("rect")]
    assert [str(note).split(":")[0] for note in notes] == ["layers.0", "layers.1"]
    for plot in plots:
        wide, high = map(float, plot.attrib["viewBox"].split()[2:])
        for element in plot:
            assert all(0 <= float(element.get(n, 0)) <= wide for n in ("x", "x1", "x2"))
            assert all(0 <= float(element.get(n, 0)) <= high for n in ("y", "y1", "y2"))
