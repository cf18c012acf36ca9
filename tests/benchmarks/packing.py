"""What packing a bf16 weight costs, beside `cp` of the same bytes: prints a table.

python tests/benchmarks/packing.py [--work DIRECTORY] [--gigabytes 1] [--rounds 3] [--only mxfp4]
"""

import argparse
import io
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import children
import torch
from torch import Tensor

from lmcast.calib.formats import WEIGHTS
from lmcast.exporter.weights.place import as_bytes, write_all
from lmcast.graphs.weights.quantized import Quantized

MB, GB = 1e6, 1e9
COLUMNS = 4096
ROWS = 2048  # 16 MB at a time: whole blocks of all formats
AIM = 0.6  # of the speed of cp


def main() -> None:
    options = parse()
    work = Path(options.work or tempfile.mkdtemp(prefix="lmcast-benchmark-"))
    work.mkdir(exist_ok=True)
    source = work / "weight.bf16"
    rounds = int(options.gigabytes * GB / (2 * ROWS * COLUMNS))
    try:
        children.run("packing", "draw", path=str(source), blocks=rounds)
        rows = [measure(name, source, work, options.rounds) for name in options.only]
    finally:
        shutil.rmtree(work)
    columns = ["format", "GB/s", "of cp", "CPU s", "peak RSS MB", "written MB"]
    print(children.table(columns, rows))
    print(f"load: {', '.join(f'{load:.1f}' for load in os.getloadavg())}; aim: {AIM} of cp")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", help="where files go, twice the size; default: a temporary one")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=WEIGHTS, nargs="+", default=list(WEIGHTS))
    return parser.parse_args()


def draw(path: str, blocks: int) -> None:
    """Write a weight of normal numbers."""
    torch.manual_seed(0)
    block = (torch.randn(ROWS, COLUMNS) * 0.02).bfloat16().view(torch.int16).numpy().tobytes()
    with open(path, "wb") as file:
        for _ in range(blocks):
            file.write(block)
        os.fsync(file.fileno())


def measure(name: str, source: Path, work: Path, rounds: int) -> list[str]:
    """Return a row of the table: medians of rounds, each with a copy of its own beside it."""
    size, speeds, ratios, costs = source.stat().st_size, [], [], []
    output = work / "packed"
    for _ in range(rounds):
        copied = copy(source, work / "copy")
        child = children.run("packing", "pack", path=str(source), output=str(output), name=name)
        seconds, cpu = child.result
        speeds.append(size / seconds / GB)
        ratios.append(copied / seconds)
        costs.append((child.peak_rss, cpu, output.stat().st_size))
        output.unlink()
    peak, cpu, written = (statistics.median(column) for column in zip(*costs, strict=True))
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    speed = f"{statistics.median(speeds):.2f}"
    return [name, speed, spread, f"{cpu:.1f}", f"{peak / MB:.0f}", f"{written / MB:.0f}"]


def copy(source: Path, target: Path) -> float:
    """Return the seconds that `cp` takes, until the bytes are on the disk."""
    start = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", str(source), str(target)], check=True)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


def pack(path: str, output: str, name: str) -> tuple[float, float]:
    """Pack a file into another; return the seconds and CPU seconds without starting Python.

    The loops are compiled before, as they are once for a machine. One thread packs: what it waits
    for, reading and writing, is done by two others.
    """
    torch.set_num_threads(1)
    format = WEIGHTS[name]
    format.pack(torch.ones(128, 128, dtype=torch.bfloat16))
    start, before = time.perf_counter(), time.process_time()
    most = None
    if format.whole:  # a first pass
        for block in blocks(path):
            here = format.most(block)
            most = here if most is None else torch.maximum(most, here)
    with open(output, "wb", buffering=0) as file, ThreadPoolExecutor(1) as writer:
        pending: Future[None] | None = None
        for packed in format.pack_rows(blocks(path), most):
            if pending is not None:
                pending.result()
            pending = writer.submit(write, file, packed)
        if pending is not None:
            pending.result()
        os.fsync(file.fileno())
    return time.perf_counter() - start, time.process_time() - before


def write(file: io.FileIO, packed: Quantized) -> None:
    for tensor in (packed.codes, packed.scales):
        write_all(file.fileno(), as_bytes(tensor))


def blocks(path: str) -> Iterator[Tensor]:
    """Yield rows of a file; the next are read, into another buffer, while these are packed."""
    buffers = [torch.empty(ROWS, COLUMNS, dtype=torch.bfloat16) for _ in range(2)]
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(1) as reader:

        def read(buffer: Tensor) -> Tensor | None:
            into = memoryview(buffer.view(torch.int16).numpy()).cast("B")
            return buffer if file.readinto(into) else None  # files are of whole blocks

        pending = reader.submit(read, buffers[0])
        while (block := pending.result()) is not None:
            buffers.reverse()
            pending = reader.submit(read, buffers[0])
            yield block


if __name__ == "__main__":
    main()
