"""A process whose CUDA libraries are fakes."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fake_cuda.libraries import build
from fake_cuda.log import Log

CALLED = Path(__file__).with_name("called.py")
SMS = (75, 80, 86, 89, 90, 100, 120)


@dataclass(frozen=True)
class Run:
    """A finished process: what its function returned, what it printed, and the GPU's log."""

    result: Any
    output: str
    log: Log


def joined(*folders: str) -> str:
    return os.pathsep.join(filter(None, folders))


def environment(
    log: Path,
    *,
    sm: int | None = 90,
    memory: int = 80 << 30,
    driver: int | None = 13000,
    fill: int = 0,
) -> dict[str, str]:
    """Return the environment of a process on a fake GPU, which writes its log; see `on_fake_gpu`.

    For commands: `subprocess.run(["lmcast", ...], env=environment(path))`, then `Log.read(path)`.
    """
    if sm is not None and sm not in SMS:
        raise ValueError(f"SM {sm}; accepted: {SMS}, None")
    libraries = build() / ("no_driver" if driver is None else "driver")
    return os.environ | {
        # Before those of a real GPU; an empty entry would be the working directory.
        "LD_LIBRARY_PATH": joined(str(libraries), os.environ.get("LD_LIBRARY_PATH", "")),
        "PYTHONPATH": joined(*sys.path),
        "ORT_DISABLE_TELEMETRY": "1",
        "FAKE_CUDA_LOG": str(log),
        "FAKE_CUDA_SM": str(sm or 90),
        "FAKE_CUDA_PRESENT": str(int(sm is not None)),
        "FAKE_CUDA_MEMORY": str(memory),
        "FAKE_CUDA_DRIVER": str(driver or 0),
        "FAKE_CUDA_FILL": str(fill),
    }


def on_fake_gpu(
    function: Callable[..., Any],
    *arguments: Any,
    sm: int | None = 90,
    memory: int = 80 << 30,
    driver: int | None = 13000,
    fill: int = 0,
    timeout: float = 300,
    **variables: str,
) -> Run:
    """Call a function in a process of its own on a fake GPU, and return what came of it.

    function: of a module's top level; its arguments and its result become JSON. sm: of the GPU, one
    of SMS; None: a driver without a GPU. memory: of the device, in bytes. driver: the newest CUDA
    that it is for, as 1000 times major plus 10 times minor; None: there is none but this machine's
    own. fill: what every byte of fresh device memory is. timeout: in seconds. variables: more of
    the environment.
    Raises RuntimeError with what was printed where the process fails, and TimeoutExpired.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder, "answer"), Path(folder, "log")
        source = str(sys.modules[function.__module__].__file__)
        named = [source, function.__name__, json.dumps(arguments), str(answer)]
        done = subprocess.run(
            [sys.executable, "-P", "-X", "faulthandler", str(CALLED), *named],
            env=environment(log, sm=sm, memory=memory, driver=driver, fill=fill) | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
        output = done.stdout.decode(errors="replace")
        if done.returncode:
            name = function.__name__
            raise RuntimeError(f"{name} ended with {done.returncode}:\n{output[-4000:]}")
        return Run(json.loads(answer.read_text()), output, Log.read(log))
