"""`lmcast` interrupted at any moment: one line or nothing, and nothing left behind."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny.llama import tiny_llama

from lmcast.exporter import export

# Runs the command line that follows, and interrupts it where a module is about to be imported.
AT_IMPORT = """
import os, signal, sys
module = sys.argv.pop(1)
def hook(event, arguments):
    if event == "import" and arguments[0] == module:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
from lmcast.exporter.command import main
main()
"""
SAID = (130, "interrupted\n")
UNSAID = (-signal.SIGINT, "")  # 130 to a shell


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupts")
    tiny_llama(folder / "checkpoint")
    export(folder / "checkpoint", folder / "engine", parity=False)
    return folder


# Imported in this order: by Python's own parts, by the command line, by libraries in C++ and Rust.
MOMENTS = {
    "lmcast.exporter.interrupts": UNSAID,
    "lmcast.exporter.cli": SAID,
    "click": SAID,
    "lmcast.exporter.runtime.engine": SAID,
    "numpy._core._multiarray_umath": SAID,
    "onnxruntime.capi.onnxruntime_pybind11_state": SAID,
    "tokenizers.tokenizers": SAID,
}


@pytest.mark.parametrize("module", MOMENTS)
def test_within_an_import(module: str, made: Path):
    command = [sys.executable, "-c", AT_IMPORT, module, "generate", made / "engine", "hello"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == MOMENTS[module]


# Before anything is written, and in a trace, which has torch import 400 modules.
@pytest.mark.parametrize("module", ["torch._C", "torch._functorch.aot_autograd"])
def test_an_export_leaves_nothing(module: str, made: Path, tmp_path: Path):
    words = ["export", made / "checkpoint", "-o", tmp_path / "out/engine"]
    command = [sys.executable, "-c", AT_IMPORT, module, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == SAID
    assert list(tmp_path.iterdir()) == []


def test_within_an_import_while_a_directory_is_written(made: Path, tmp_path: Path):
    """The import goes on to its end; then all is put in order."""
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(0.1)\n"
        "print('whole', flush=True)\n"
    )
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from lmcast.exporter.engine.staging import staged\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "with staged(Path(sys.argv[1], 'out', 'engine')) as directory:\n"
        "    (directory / 'half').write_text('half')\n"
        "    import slow\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "whole\n"
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"slow.py"}


# A stage of a long job on a terminal hides the cursor.
DRAWING = r"""
import os, sys, time
sys.argv = ["lmcast", "verify", "engine"]
from lmcast.exporter.engine import manifest
def verify(*_):
    os.write(1, b"ready\n")
    time.sleep(60)
manifest.verify = verify
from lmcast.exporter.command import main
main()
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_cursor_comes_back(number: int, status: int):
    parent, child = pty.openpty()
    plain = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", DRAWING], stdout=subprocess.PIPE, stderr=child, env=plain
    )
    os.close(child)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.2)
    process.send_signal(number)
    assert process.wait(timeout=60) == status
    text = os.read(parent, 1 << 16).decode()
    assert -1 < text.rfind("\x1b[?25l") < text.rfind("\x1b[?25h")
    assert "Traceback" not in text
    assert text.endswith("\r\ninterrupted\r\n") == (number == signal.SIGINT)


def test_what_ignores_interrupts_goes_on_doing_so(made: Path):
    """As in the background of a shell without job control."""
    ignoring = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    words = ["click", "generate", str(made / "engine"), "hello", "-n", "1"]
    command = [sys.executable, "-c", AT_IMPORT, *words]
    done = subprocess.run(command, capture_output=True, preexec_fn=ignoring, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
