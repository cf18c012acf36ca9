"""What tests share: tiny checkpoints, and tables of measured numbers, printed at the end."""

import gc
import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sympy.solvers import inequalities

if TYPE_CHECKING:
    from tiny import Case

# Triton kernels run in its interpreter, on CPU tensors; it reads this once, when imported.
# test_compiled_kernels compiles them in processes without it.
os.environ["TRITON_INTERPRET"] = "1"
# Some tests import ONNX Runtime themselves, before exporter/backends/ort.py does.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# Of torch, here and in the processes that tests start: threads that wait for each other spin, and
# tests run side by side. Read once, too.
os.environ["OMP_NUM_THREADS"] = "1"
# The processes that tests start share what they compile of our modules: a tenth of their imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_sessionstart() -> None:
    """Undo what a runner may have ignored for us: tests of signals and their children need it."""
    # What a trace makes lives to its end: looking for garbage meanwhile took a fifth of it.
    gc.set_threshold(200_000, 20, 100)
    # Every trace has sympy solve inequalities on its sizes, nearly always those of another trace.
    once = cache(inequalities.reduce_inequalities)
    inequalities.reduce_inequalities = lambda given, symbol: once(frozenset(given), symbol)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    config.add_cleanup(gc.unfreeze)  # run after what pytest itself has to clean up


def pytest_sessionfinish() -> None:
    """Let pytest's own search for garbage pass over all that thousands of tests have kept: the end
    of the process is another."""
    gc.freeze()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> "Callable[[Case | str], Path]":
    """Return a function from a case of tiny.py, or its name, to its directory, made once."""
    from tiny import case, make

    made: dict[str, Path] = {}

    def get(wanted: "Case | str") -> Path:
        found = case(wanted) if isinstance(wanted, str) else wanted
        if found.name not in made:
            made[found.name] = make(found, tmp_path_factory.mktemp("tiny"))
        return made[found.name]

    return get


@pytest.fixture
def lmcast(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a command: exit status, standard output, standard error."""
    from lmcast.exporter.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lmcast", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, *capsys.readouterr()

    return run


Report = Callable[[str, dict[str, Any]], None]


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """`report(table, row)` adds a row to a table; properties of a test also cross pytest-xdist."""

    def add(table: str, row: dict[str, Any]) -> None:
        request.node.user_properties.append((f"table:{table}", row))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    tables: dict[str, list[dict[str, Any]]] = {}
    for reports in terminalreporter.stats.values():
        for outcome in reports:
            if getattr(outcome, "when", None) != "call":
                continue
            for name, row in outcome.user_properties:
                if name.startswith("table:"):
                    tables.setdefault(name.removeprefix("table:"), []).append(row)
    for name, rows in tables.items():
        terminalreporter.section(name)
        columns = list(dict.fromkeys(column for row in rows for column in row))
        text = [columns, *([_cell(row.get(column, "")) for column in columns] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*text, strict=True)]
        for line in text:
            terminalreporter.write_line(
                "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            )


def _cell(value: Any) -> str:
    return f"{value:.2e}" if isinstance(value, float) else str(value)
