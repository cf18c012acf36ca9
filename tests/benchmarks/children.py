"""Run one function in a fresh process, and account for it: CPU, wall time, peak RSS."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS = HERE / "peers"  # lists of what is installed, by `make bench-peers`


@dataclass(frozen=True)
class Child:
    """A finished process and what its function returned."""

    result: Any
    cpu_seconds: float  # user and system, with the processes that it waited for
    wall_seconds: float
    peak_rss: int  # bytes, the kernel's high-water mark


def python(name: str) -> str:
    """Return the interpreter of a runtime: of its own environment, where it has a list in PEERS."""
    own = Path(sys.prefix, "peers", name, "bin", "python")
    return str(own) if (PEERS / f"{name}.txt").exists() else sys.executable


def run(module: str, function: str, python: str = sys.executable, **arguments: Any) -> Child:
    """Call `function(**arguments)` of a module of this folder; raises RuntimeError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder, "answer.json"), Path(folder, "log")
        command = [python, __file__, module, function, json.dumps(arguments), str(answer)]
        start = time.perf_counter()
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out)
            _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            tail = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{module}.{function} ended with {process.returncode}:\n{tail}")
        found = json.loads(answer.read_text())
    cpu = usage.ru_utime + usage.ru_stime
    return Child(found["result"], cpu, wall, found["peak_rss"])


def main() -> None:
    """Be the process: call the function, then say what it returned and the peak of memory."""
    module, function, arguments, answer = sys.argv[1:]
    sys.path.insert(0, str(HERE))
    result = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    # Not wait4's ru_maxrss, which begins with the size of the parent.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    Path(answer).write_text(json.dumps({"result": result, "peak_rss": int(peak) << 10}))


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Return rows under their columns as text: the first column left, the others right."""
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


if __name__ == "__main__":
    main()
