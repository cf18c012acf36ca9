"""What memory a long prompt takes beside its states: a table.

    python tests/benchmarks/long_prompt.py [--tokens 32768] [--formats int4] [--threads 2]

SmolLM2-135M's dimensions with random weights and a context that has room. Peaks are those of a
process of its own: all of its memory, and what is private to it; states are keys and values.
"""

import argparse
import os
import tempfile
import time
from typing import Any
from unittest import mock

import by_operator
import children

MB = 1e6
COLUMNS = ["engine", "tokens", "states MB", "loaded MB", "peak MB", "peak - states", "private MB",
           "prompt s", "CPU s"]  # fmt: skip


def prepare(work: str, name: str, tokens: int) -> None:
    """Write an engine in a format whose context has room for the prompt and some tokens more."""
    room = {"max_position_embeddings": 2 * tokens}
    with mock.patch.dict(by_operator.CONFIG, room):
        by_operator.prepare(work, name)


def measure(engine: str, tokens: int, threads: int) -> dict[str, Any]:
    """Run a prompt and a step; return bytes and seconds. In a process of its own."""
    import numpy as np

    from lmcast.exporter.bench import Peaks
    from lmcast.exporter.runtime.engine import Engine

    peaks = Peaks()
    with peaks.watching():
        loaded = Engine(engine, threads=threads)
        session = loaded.session(1)
        peaks.look()
        before = peaks.rss
        ids = np.random.default_rng(0).integers(loaded.vocab_size, size=(1, tokens))
        wall, cpu = time.perf_counter(), time.process_time()
        session.append(ids)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        session.append(ids[:, :1])
    states = sum(array.nbytes for _, array in session.reserve(tokens))
    return {"states": states, "loaded": before, "rss": peaks.rss, "private": peaks.private,
            "wall": wall, "cpu": cpu}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--formats", nargs="+", choices=by_operator.FORMATS, default=["int4"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="lmcast-benchmark-") as work:
        for name in options.formats:
            given = {"tokens": options.tokens}
            children.run("long_prompt", "prepare", work=work, name=name, **given)
            given |= {"engine": f"{work}/{name}", "threads": options.threads}
            found = children.run("long_prompt", "measure", **given).result
            sizes = [found["states"], found["loaded"], found["rss"], found["rss"] - found["states"],
                     found["private"]]  # fmt: skip
            times = [f"{found[what]:.0f}" for what in ("wall", "cpu")]
            rows.append([name, str(options.tokens), *(f"{n / MB:.0f}" for n in sizes), *times])
    print(children.table(COLUMNS, rows), flush=True)


if __name__ == "__main__":
    main()
