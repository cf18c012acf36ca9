"""Benchmark of an engine: load, prefill and decode speed, memory, share of the read bandwidth; of a
picture, how long it takes to its features.

The engine runs alone in a fresh process, so that the peaks are its own. Peak private memory is
anonymous memory (RssAnon): weights read from a mapped file are page cache, which processes share
and the kernel reclaims at will, so they count in the peak RSS only. On a GPU, weights and states
are in its memory: its peak counts all processes since the start, and the read bandwidth is the
GPU's.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from lmcast.exporter.cores import usable
from lmcast.exporter.runtime.engine import Engine
from lmcast.exporter.runtime.prepare import Prepared
from lmcast.exporter.runtime.session import Session
from lmcast.plugins.annotations import Count, Rows, Runs, Threads
from lmcast.plugins.arguments import checked
from lmcast.plugins.errors import InputError

READ_BYTES = 512 << 20  # 512 MiB: well above the caches
READS = 5  # the fastest of these counts: other processes only slow it down
WATCH_SECONDS = 0.01
MB, GB = 1e6, 1e9


class BenchError(InputError):
    """Numbers that make no measurement, or an engine whose process died."""


@dataclass(frozen=True)
class BenchReport:
    """Medians over `runs`; seconds, bytes, tokens per second over all rows of the batch."""

    engine: str
    prompt_tokens: int
    new_tokens: int
    batch: int
    threads: int
    runs: int
    load_seconds: float  # from the directory to a graph that can run, without Python's imports
    load_cpu_seconds: float
    first_token_seconds: float  # from the start of loading: load, cold prefill, one pick
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    peak_rss: int  # with the pages of mapped weights
    peak_private: int  # anonymous memory, Python and the runtime included
    gpu: str | None  # its name, where a plan ran
    peak_gpu: int | None
    weight_bytes_per_step: int  # read in a decoding step of one row; rows share all but experts
    read_bandwidth: float  # bytes a second, by the same number of threads in the same process
    bandwidth_share: float  # of it, what reading the weights in decode reaches
    # Of a picture before these tokens; None where there is none.
    image: str | None = None
    image_tokens: int | None = None
    prepare_seconds: float | None = None  # from the file to what the tower takes
    encode_seconds: float | None = None  # in the tower; the first of it loads its graph

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """Return the report for a person."""
        rows = {
            "load": f"{self.load_seconds:.3f} s ({self.load_cpu_seconds:.3f} s of CPU)",
            "first token": f"{self.first_token_seconds:.3f} s, loading included",
            "prefill": f"{self.prefill_tokens_per_second:.1f} tokens/s",
            "decode": f"{self.decode_tokens_per_second:.1f} tokens/s",
            "peak memory": f"{self.peak_private / MB:.0f} MB private, {self.peak_rss / MB:.0f} MB"
            " with the mapped weights"
            + ("" if self.peak_gpu is None else f", {self.peak_gpu / MB:.0f} MB of the GPU"),
            "weights read": f"{self.weight_bytes_per_step / MB:.0f} MB a step,"
            f" {self.bandwidth_share:.0%} of {self.read_bandwidth / GB:.1f} GB/s read bandwidth",
        }
        if self.encode_seconds is not None:
            rows["picture"] = (
                f"{self.prepare_seconds:.3f} s to prepare, {self.encode_seconds:.3f} s in the"
                f" tower: {self.image_tokens} tokens"
            )
        before = "" if self.image_tokens is None else f"a picture of {self.image_tokens} and "
        setting = (
            f"{self.batch} x {before}{self.prompt_tokens} + {self.new_tokens} tokens,"
            f" {self.gpu or f'{self.threads} threads'}, median of {self.runs}"
        )
        return "\n".join([setting, *(f"{name:<13} {value}" for name, value in rows.items())])


@checked
def bench(
    engine_dir: str | PathLike[str],
    prompt_tokens: Count = 128,
    new_tokens: Count = 32,
    batch: Rows = 1,
    threads: Threads | None = None,
    runs: Runs = 3,
    prepack: bool = False,
    portable: bool = False,
    exact: bool = False,
    image: str | PathLike[str] | None = None,
) -> BenchReport:
    """Measure an engine in a process of its own, on random token ids and greedy sampling.

    threads: at most the processors of this process; None for all of them. prepack, portable,
    exact: as for Engine. image: a picture that stands before the tokens of every row; it is seen
    anew in each run. Raises BenchError for a process that dies, EngineError for a directory
    that is no whole engine.
    """
    engine = Engine(engine_dir, threads, prepack, portable, exact=exact)
    setting: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "batch": batch,
    }
    setting |= {"threads": engine.threads or usable(), "runs": runs}
    require_context(engine, image, prompt_tokens, new_tokens)
    directory = str(engine.directory)
    measured = measured_apart(
        {"directory": directory, "prepack": prepack, "portable": portable, "exact": exact}
        | setting
        | {"image": image if image is None else str(image)}
        | ({} if "threads" in engine.target.loads else {"threads": None})
    )
    weight_bytes = weight_bytes_per_step(engine)
    steps = [rate / batch for rate in measured["decode"]]
    shares = [s * weight_bytes / b for s, b in zip(steps, measured["bandwidth"], strict=True)]
    return BenchReport(
        engine=directory,
        **setting,
        **measured["once"],
        **({} if image is None else of_picture(str(image), measured)),
        prefill_tokens_per_second=median(measured["prefill"]),
        decode_tokens_per_second=median(measured["decode"]),
        weight_bytes_per_step=weight_bytes,
        read_bandwidth=median(measured["bandwidth"]),
        bandwidth_share=median(shares),
    )


def measured_apart(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of `measure` from a process of its own; raises BenchError if that dies."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(request)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BenchError(
            f"{request['directory']}: the measured process ended with status {done.returncode}:"
            f" {reason}"
        )
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def weight_bytes_per_step(engine: Engine) -> int:
    """Return the bytes of the weights that one token is multiplied with."""
    about = engine.manifest.about
    total = sum(stored.bytes for stored in about.weights.values())
    return int(total * about.active_parameters / about.parameters)


class Peaks:
    """Peak memory of this process, in bytes; zeros where the system has no /proc."""

    def __init__(self) -> None:
        self.rss = self.private = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look every few milliseconds, from a thread, and once at the end."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(WATCH_SECONDS):
                self.look()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.look()

    def look(self) -> None:
        """Read the sizes once. The kernel keeps a peak of RSS, but none of RssAnon."""
        try:
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        except FileNotFoundError:
            return
        sizes = dict(line.split(":", 1) for line in lines if line.endswith(" kB"))
        self.rss = _bytes(sizes["VmHWM"])
        self.private = max(self.private, _bytes(sizes["RssAnon"]))


def _bytes(size: str) -> int:
    """Return what /proc calls '12 kB'."""
    return int(size.split()[0]) << 10


class GpuPeaks(Peaks):
    """Also the peak of GPU memory taken since the start, by all processes."""

    def __init__(self, gpu: Any):
        super().__init__()
        self.gpu, self.taken = gpu, 0
        self._start = gpu.used()

    def look(self) -> None:
        super().look()
        self.taken = max(self.taken, self.gpu.used() - self._start)


class Bandwidth:
    """How fast threads of this process read memory: the largest number of a large array each."""

    def __init__(self, threads: int):
        self.threads, self.parts = threads, list[np.ndarray]()

    def bandwidth(self, size: int) -> float:
        """Return bytes a second. numpy lets go of the interpreter lock while it reduces."""
        if not self.parts:
            # Written once, so that every page exists.
            self.parts = np.array_split(np.ones(size // 4, np.int32), self.threads)
        seconds = []
        with ThreadPoolExecutor(len(self.parts)) as pool:
            for _ in range(READS):
                start = time.perf_counter()
                list(pool.map(np.max, self.parts))
                seconds.append(time.perf_counter() - start)
        return size / min(seconds)


def loaded(request: Mapping[str, Any]) -> Engine:
    """Return the engine that is measured; its graph is loaded when first asked for."""
    return Engine(request["directory"], request["threads"], request["prepack"], request["portable"])


def require_context(
    engine: Engine, image: str | PathLike[str] | None, prompt_tokens: int, new_tokens: int
) -> None:
    """Refuse more tokens than the context; raises BenchError."""
    shown = 0 if image is None else len(begin(engine, str(image)).ids)
    if shown + prompt_tokens + new_tokens > engine.context:
        of_image = f"{shown} tokens of the picture, " if shown else ""
        raise BenchError(
            f"{of_image}{prompt_tokens} prompt_tokens and {new_tokens} new_tokens are more than the"
            f" context of this engine, {engine.context}"
        )


def begin(engine: Engine, image: str) -> Prepared:
    """Return the beginning of a prompt: a picture, and nothing else."""
    (ready,) = engine.prepare("", [image], chat=False)
    return ready


def of_picture(image: str, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the report says of a picture."""
    return {
        "image": image,
        "image_tokens": measured["image_tokens"],
        "prepare_seconds": median(measured["prepare"]),
        "encode_seconds": median(measured["encode"]),
    }


def prepare(request: Mapping[str, Any]) -> Peaks:
    """Import what the engine needs, which is not part of loading; return what watches memory."""
    engine = loaded(request)
    gpu = engine.target.prepare(engine.manifest)
    return Peaks() if gpu is None else GpuPeaks(gpu)


class Seen:
    """The picture of a measurement, and the seconds that each run took to its features."""

    def __init__(self, image: str | None):
        self.image, self.tokens = image, 0
        self.prepare: list[float] = []
        self.encode: list[float] = []

    def measured(self) -> dict[str, Any]:
        """Return what a report is made of."""
        return {"prepare": self.prepare, "encode": self.encode, "image_tokens": self.tokens}

    def shown(self, engine: Engine, ids: np.ndarray) -> tuple[np.ndarray, Any, float]:
        """Return ids B,T behind the picture, the images of the rows, and the seconds it took."""
        if self.image is None:
            return ids, None, 0.0
        start = time.perf_counter()
        ready = begin(engine, self.image)
        assert ready.images is not None
        self.prepare.append(time.perf_counter() - start)
        start = time.perf_counter()
        engine.tower.see(ready.images.pictures)
        self.encode.append(time.perf_counter() - start)
        (self.tokens,) = ready.images.tokens
        images = ready.images.followed_by(ids.shape[1])
        before = np.repeat(np.array([ready.ids]), len(ids), axis=0)
        took = self.prepare[-1] + self.encode[-1]
        return np.concatenate([before, ids], axis=1), [images] * len(ids), took


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Do the runs in this process: what `bench` starts its process for."""
    peaks = prepare(request)
    prompt, new, batch = (request[n] for n in ("prompt_tokens", "new_tokens", "batch"))
    prefill: list[float] = []
    decode: list[float] = []
    bandwidth: list[float] = []
    seen = Seen(request["image"])

    def run() -> tuple[float, Session]:
        """Prefill and decode once; return the seconds to the first token, and what held the
        states."""
        ids = np.random.default_rng(0).integers(0, engine.vocab_size, (batch, prompt))
        ids, images, before = seen.shown(engine, ids)
        start = time.perf_counter()
        session = engine.session(batch)
        picked = session.append(ids, None, images).argmax(-1)
        first = time.perf_counter() - start
        for _ in range(new):
            picked = session.append(picked[:, None]).argmax(-1)
        prefill.append(ids.size / first)
        decode.append(batch * new / (time.perf_counter() - start - first))
        return before + first, session

    with peaks.watching():
        wall, cpu = time.perf_counter(), time.process_time()
        engine = loaded(request)
        assert engine.runner
        load, load_cpu = time.perf_counter() - wall, time.process_time() - cpu
        first, held = run()  # whose memory is looked at once more before it goes
    del held
    # After the peaks: it is not the engine's.
    gpu = engine.runner.gpu
    memory = Bandwidth(request["threads"]) if gpu is None else gpu
    bandwidth.append(memory.bandwidth(READ_BYTES))
    # Side by side, because what else runs on the machine changes from one second to the next.
    for _ in range(request["runs"] - 1):
        run()
        bandwidth.append(memory.bandwidth(READ_BYTES))
    once = {
        "load_seconds": load,
        "load_cpu_seconds": load_cpu,
        "first_token_seconds": load + first,
        "peak_rss": peaks.rss,
        "peak_private": peaks.private,
        "gpu": None if gpu is None else gpu.name,
        "peak_gpu": peaks.taken if isinstance(peaks, GpuPeaks) else None,
    }
    measured = {"once": once, "prefill": prefill, "decode": decode, "bandwidth": bandwidth}
    return measured | seen.measured()


def main() -> None:
    """Measure what the argument asks for and print JSON; a user's mistake is one line."""
    try:
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
