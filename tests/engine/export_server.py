"""A process that has imported everything and forks exports: `python export_server.py CHECKPOINT`.

Each line on its standard input is a Job as JSON, each answer an Ended. To import torch for every
export would take far longer than the export of a tiny checkpoint.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

HEADERS, TRACING, WEIGHTS = range(3)  # stages in the order of an export
GRAPHS: list[Any] = []  # what the first export traced


@dataclass(frozen=True)
class Job:
    """One export; killed so many seconds after a stage begins, or stopped where it begins.

    traced: with the graph of the first export, which has the same config. Tracing takes most of
    the time of a tiny export, and touches no file.
    """

    checkpoint: str
    output: str
    weights: Literal["link", "copy"]
    traced: bool = False
    stage: int = HEADERS
    kill_after: float | None = None
    stop: bool = False


@dataclass(frozen=True)
class Ended:
    """An exit status, or a signal as a negative number, and when each stage began."""

    status: int
    seconds: float
    stages: list[float]


class Server:
    """Such a process, seen from outside."""

    def __init__(self, checkpoint: Path):
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(checkpoint)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def send(self, job: Job) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()

    def receive(self) -> Ended:
        assert self._process.stdout is not None
        return Ended(**json.loads(self._process.stdout.readline()))

    def run(self, job: Job) -> Ended:
        self.send(job)
        return self.receive()

    def close(self) -> None:
        """End it, and the export that it may wait for."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


def fork(job: Job) -> Ended:
    read_end, write_end = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            export(job, write_end)
            status = 0
        finally:
            if status:
                traceback.print_exc()
            os._exit(status)  # whatever happened: this process must not serve the next job
    os.close(write_end)
    stages: list[float] = []
    with open(read_end, "rb", buffering=0) as pipe:
        while len(stages) <= job.stage and pipe.read(1):
            stages.append(time.monotonic() - started)
        if job.kill_after is not None:
            time.sleep(job.kill_after)
            os.kill(child, signal.SIGKILL)
        while pipe.read(1):
            stages.append(time.monotonic() - started)
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), time.monotonic() - started, stages)


def export(job: Job, pipe: int) -> None:
    from lmcast.exporter import cast, pipeline
    from lmcast.exporter.progress import Progress, Step

    class Told(Progress):
        """Writes a byte into the pipe whenever a stage begins."""

        begun = 0

        @contextmanager
        def stage(self, name: str, total: int | None = None) -> Iterator[Step]:
            os.write(pipe, b".")
            if job.stop and self.begun == job.stage:
                os.kill(os.getpid(), signal.SIGSTOP)
            self.begun += 1
            yield lambda done: None

    def trace_and_keep(*arguments: Any) -> Any:
        graph = trace(*arguments)
        GRAPHS.append(graph.clone())  # the rest of the export rewrites what it was given
        return graph

    trace = cast.trace
    if job.traced:
        cast.trace = lambda *arguments: GRAPHS[0]  # of this fork alone
    elif not GRAPHS:
        cast.trace = trace_and_keep
    pipeline.export(job.checkpoint, job.output, weights=job.weights, progress=Told())
    cast.trace = trace


def serve(checkpoint: str) -> None:
    import torch

    torch.set_num_threads(1)  # a fork has none of the threads that a pool counts on
    with TemporaryDirectory() as folder, open(os.devnull, "wb") as sink:
        export(Job(checkpoint, f"{folder}/engine", "copy"), sink.fileno())
    gc.collect()
    gc.freeze()  # what was imported is neither looked through nor copied by every child
    for line in sys.stdin:
        print(json.dumps(asdict(fork(Job(**json.loads(line))))), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
