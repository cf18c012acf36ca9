"""What checking an engine adds to opening its graph, at 1.2 GB of weights and 20 MB of tokenizer:

    python tests/benchmarks/load.py [--work DIRECTORY --keep] [--rounds 21]

`load` reads engine.json and hashes the graph and texts; ONNX Runtime alone opens the same graph,
with the same settings. The two take turns in one process, with all files in the page cache. On a
busy machine read the CPU time: the wall time is then the neighbours'.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import children

AIM = 0.050  # seconds
TOKENIZER_BYTES = 20_000_000  # as those of vocabularies of 250,000 have


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", help="where files go, 2.5 GB; default: a temporary directory")
    parser.add_argument("--keep", action="store_true", help="keep --work; a rerun finds it")
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    work = Path(options.work or tempfile.mkdtemp(prefix="lmcast-benchmark-"))
    try:
        if not (work / "engine").exists():
            children.run("load", "write", directory=str(work))
        child = children.run("load", "measure", engine=str(work / "engine"), rounds=options.rounds)
    finally:
        if not options.keep:
            shutil.rmtree(work)
    print(text(child.result, options.rounds))


def text(found: dict[str, list[list[float]]], rounds: int) -> str:
    """Return a table of medians: of both ways, and of what one takes more than the other."""
    added = [
        [b - a for a, b in zip(*turn, strict=True)] for turn in zip(*found.values(), strict=True)
    ]
    rows = [
        [name, *(f"{median(times) * 1e3:.1f}" for times in zip(*turns, strict=True))]
        for name, turns in (*found.items(), ("added", added))
    ]
    table = children.table(["opened by", "ms", "CPU ms"], rows)
    return f"{table}\nmedians of {rounds}; aim: at most {AIM * 1e3:.0f} ms added"


def write(directory: str) -> None:
    """Write a checkpoint, and an engine of it with its own weights."""
    import random_qwen3

    from lmcast.exporter import export

    checkpoint = Path(directory, "checkpoint")
    random_qwen3.write(str(checkpoint), "bfloat16")
    tokenizer = checkpoint / "tokenizer.json"
    tokenizer.write_bytes(
        tokenizer.read_bytes().ljust(TOKENIZER_BYTES)
    )  # spaces: JSON all the same
    engine = Path(directory, "engine")
    export(checkpoint, engine, dtype="float16", weights="copy", parity=False)
    assert (engine / "tokenizer.json").stat().st_size == TOKENIZER_BYTES


def measure(engine: str, rounds: int) -> dict[str, list[list[float]]]:
    """Return the seconds of every round, wall and CPU, of each of the two."""
    from lmcast.exporter import load
    from lmcast.exporter.backends.onnxruntime import open_runner
    from lmcast.exporter.backends.runner import Loading

    manifest, loading = load(engine).manifest, Loading(None)
    ways: dict[str, Callable[[], object]] = {
        "ONNX Runtime alone": lambda: open_runner(manifest, loading),
        "load": lambda: load(engine).runner,
    }
    found: dict[str, list[list[float]]] = {name: [] for name in ways}
    clocks = time.perf_counter, time.process_time
    for turn in range(rounds + 1):
        for name, open_it in ways.items():
            start = [clock() for clock in clocks]
            opened = open_it()
            if turn:  # the first reads files from the disk
                found[name].append([clock() - at for clock, at in zip(clocks, start, strict=True)])
            del opened
    return found


if __name__ == "__main__":
    main()
