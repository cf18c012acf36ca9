"""A report of parity as JUnit XML, for the servers and actions that show it.

It keeps to the schema of Jenkins' xUnit plugin (junit-10.xsd), which others read as well: there
properties belong to a suite and not to a case, so that what was measured of a case is in both
places, by its name in the properties, and as the output of the case.
"""

from xml.etree import ElementTree

from lmcast.exporter.prove.parity_report import Case, Report
from lmcast.plugins.errors import escaped


def junit(report: Report) -> bytes:
    """Return a report as one test suite."""
    cases = list(report.cases())
    suite = ElementTree.Element(
        "testsuite",
        name="lmcast parity",
        tests=str(len(cases)),
        failures=str(sum(case.problem is not None for case in cases)),
        errors="0",
        skipped="0",
        time=_seconds(sum(case.seconds for case in cases)),
    )
    properties = ElementTree.SubElement(suite, "properties")
    of_all = {"dtype": report.dtype, "ran": report.ran, "tokens": report.tokens}
    if report.subject is not None:
        of_all |= {"target": report.subject.target, "lmcast": report.subject.lmcast}
    for name, value in of_all.items():
        ElementTree.SubElement(properties, "property", name=name, value=escaped(str(value)))
    for case in cases:
        for name, value in case.values.items():
            named = {"name": f"{case.name}.{name}", "value": str(value)}
            ElementTree.SubElement(
                properties, "property", {k: escaped(v) for k, v in named.items()}
            )
        _add(suite, case)
    xml: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return xml


def _add(suite: ElementTree.Element, case: Case) -> None:
    names = {"classname": f"lmcast.{case.part}", "name": escaped(case.name)}
    added = ElementTree.SubElement(suite, "testcase", names, time=_seconds(case.seconds))
    if case.problem is not None:
        problem = escaped(case.problem)
        ElementTree.SubElement(added, "failure", type="parity", message=problem).text = problem
    if case.values:
        lines = [escaped(f"{name} = {value}") for name, value in case.values.items()]
        ElementTree.SubElement(added, "system-out").text = "\n".join(lines)


def _seconds(time: float) -> str:
    return f"{time:.3f}"
