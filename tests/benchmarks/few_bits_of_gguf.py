"""A GGUF's weights in few bits beside the same engine with plain numbers: prints a table.

    python tests/benchmarks/few_bits_of_gguf.py MODEL.gguf [--rounds 3] [--threads 2]

Both engines take turns, each round in fresh processes; the table has medians, and the last row the
medians of the rounds' ratios.
"""

import argparse
import os
import random
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import children

from lmcast.exporter.pipeline import export

MB = 1e6
ENGINES = {"kept": "in few bits", "wide": "--widen"}
COLUMNS = {"load": 1, "prefill": 1, "decode": 1, "private": MB, "rss": MB}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="a .gguf file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    picker = random.Random(0)
    prompt = [picker.randrange(10_000) for _ in range(128)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ENGINES}
    with tempfile.TemporaryDirectory(prefix="lmcast-benchmark-") as work:
        sizes = {}
        for name in ENGINES:
            engine = export(options.model, Path(work, name), parity=False, widen=name == "wide")
            sizes[name] = engine.summary().bytes
        for _ in range(options.rounds):
            for name in ENGINES:
                given = {"threads": options.threads, "prompt": prompt, "new": 48}
                directory = str(Path(work, name))
                child = children.run("runtimes", "lmcast", directory=directory, **given)
                found[name].append(child.result)
    print(text(found, sizes, options.model.stat().st_size))


def text(found: dict[str, list[dict[str, Any]]], sizes: dict[str, int], file: int) -> str:
    lines = [
        "| engine | MB | times the file | load s | prefill tok/s | decode tok/s | private MB"
        " | peak RSS MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, label in ENGINES.items():
        cells = [f"{sizes[name] / MB:.1f}", f"{sizes[name] / file:.2f}"]
        cells += [
            f"{median(run[column] for run in found[name]) / unit:.4g}"
            for column, unit in COLUMNS.items()
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    ratios = [
        median(one[c] / other[c] for one, other in zip(found["kept"], found["wide"], strict=True))
        for c in COLUMNS
    ]
    size = sizes["kept"] / sizes["wide"]
    lines.append(f"| ratio | {size:.2f} | | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
