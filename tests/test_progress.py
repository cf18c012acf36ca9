"""Progress: a bar on a terminal that moves, lines in a log, nothing of what is over at once."""

import os
import pty
import re
import subprocess
import sys

import pytest

STAGES = """
import sys, time
from lmcast.exporter import progress
progress.PATIENCE = float(sys.argv[1])
shown = progress.Terminal()
with shown.stage("weighing", 200) as step:
    time.sleep(1)
    for _ in range(200):
        step(1)
with shown.stage("thinking"):
    time.sleep(1)
shown.warn("wet paint")
shown.say("two minutes")
"""
LINES = [
    "weighing ...", *(f"weighing: {percent} % after N s" for percent in range(10, 100, 10)),
    "thinking ...", "warning: wet paint", "two minutes",
]  # fmt: skip
QUICK = ["warning: wet paint", "two minutes"]


def said(patience: float, terminal: bool, variables: dict[str, str]) -> str:
    """Return what the stages write to standard error, a terminal or a pipe."""
    reads, writes = pty.openpty() if terminal else os.pipe()
    plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    command = [sys.executable, "-c", STAGES, str(patience)]
    process = subprocess.Popen(
        command, stderr=writes, env={**plain, "TERM": "xterm-256color", **variables}
    )
    os.close(writes)
    data = b""
    while True:
        try:
            more = os.read(reads, 1 << 16)
        except OSError:  # a terminal whose other side is closed
            more = b""
        if not more:
            break
        data += more
    os.close(reads)
    assert process.wait() == 0
    return re.sub(r"after \d+ s", "after N s", data.decode().replace("\r\n", "\n"))


# whether there is a terminal, the environment, seconds before a stage is named -> lines
PLAIN: dict[str, tuple[bool, dict[str, str], float, list[str]]] = {
    "a log": (False, {}, 0.1, LINES),
    "a log, over at once": (False, {}, 5, QUICK),
    "NO_COLOR": (True, {"NO_COLOR": "1"}, 0.1, LINES),
    "a dumb terminal": (True, {"TERM": "dumb"}, 0.1, LINES),
}


@pytest.mark.parametrize("name", PLAIN)
def test_lines(name: str):
    terminal, variables, patience, lines = PLAIN[name]
    text = said(patience, terminal, variables)
    assert "\x1b" not in text
    assert text.splitlines() == lines


def test_a_coloured_log_has_no_moving_bar():
    text = said(0.1, False, {"FORCE_COLOR": "1"})
    assert "weighing: 50 %" in text
    assert "\x1b[33mwarning: wet paint" in text
    assert "\x1b[?25l" not in text


def test_a_bar_on_a_terminal():
    text = said(0.1, True, {})
    assert -1 < text.rfind("\x1b[?25l") < text.rfind("\x1b[?25h")  # hides the cursor, shows it
    assert "weighing:" not in text
    assert text.endswith("two minutes\n")


def test_a_reader_that_is_gone_is_no_check_that_failed():
    """The command line makes a status of its own of it; rich would end the process with 1."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "from lmcast.exporter.progress import Terminal; Terminal().warn('of something')"
    done = subprocess.run(
        [sys.executable, "-c", f"try:\n    {code}\nexcept BrokenPipeError:\n    print('seen')"],
        stderr=writer, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stdout) == (0, "seen\n")
