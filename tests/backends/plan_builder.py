"""A process that builds one plan after the other: importing all of it anew takes half of a build.

Each line on its standard input is what the worker of exporter/backends/tensorrt is started with, as
JSON; each line of its answer an event of that worker, and last {"kernels": [...]}: the sha256 of
what every plugin was given, and whether those bytes lie in the plan.
"""

import contextlib
import gc
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


class Builder:
    """Such a process, seen from outside; `run` stands for that of build.py.

    profiles: 1 for plans that take prompts alone, of any length, which take half as long to build.
    """

    def __init__(self, profiles: int = 2) -> None:
        # With Triton's interpreter set, a kernel that is in no cache yet would not compile.
        compiling = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(profiles)],
            env=compiling,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.kernels: list[bool] = []  # of the last plan: whether it has each, byte by byte

    def run(self, job: Any, progress: Any) -> dict[str, Any]:
        from lmcast.exporter.backends.tensorrt.build import BackendError, follow

        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(job.as_json() + "\n")
        self._process.stdin.flush()
        ended = follow(self._process.stdout, progress)
        self.kernels = json.loads(self._process.stdout.readline() or '{"kernels": []}')["kernels"]
        if "built" not in ended:
            raise BackendError(str(ended))
        return ended["built"]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def serve(profiles: int) -> None:
    from lmcast.exporter.backends.tensorrt import embed, worker
    from lmcast.exporter.backends.tensorrt.request import Request

    every = type.__getattribute__(Request, "profiles").fget
    setattr(Request, "profiles", property(lambda asked: every(asked)[-profiles:]))  # noqa: B010

    given: list[bytes] = []
    attributes = embed.attributes

    def keep(text: str, blob: bytes) -> Mapping[str, Any]:
        given.append(blob)
        return attributes(text, blob)

    embed.attributes = keep
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        given.clear()
        worker.serve(line, events)
        found = []
        with (
            contextlib.suppress(FileNotFoundError, ValueError),
            open(worker.read_job(line).output, "rb") as file,
        ):
            plan = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            found = [plan.find(blob) >= 0 for blob in given]
        events.write(json.dumps({"kernels": found}) + "\n")


if __name__ == "__main__":
    gc.set_threshold(200_000, 20, 100)  # as tests/conftest.py does
    serve(int(sys.argv[1]))
