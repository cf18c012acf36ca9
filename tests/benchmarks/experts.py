"""Mixture of experts, ours beside Hugging Face eager: prints a table.

    python tests/benchmarks/experts.py [--work DIRECTORY --keep] [--rounds 3]

The checkpoint has the layers of Qwen3-30B-A3B, four of 48, in bfloat16 as such models are released;
the engine computes in float32, and Hugging Face in each of the two, with its default way of running
experts. All take turns, each round in fresh processes; the table has medians.
"""

import argparse
import os
import random
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import children
import numpy as np
from random_qwen3_moe import VOCAB

GB, MB = 1e9, 1e6
RUNTIMES = {
    "lmcast": "lmcast, float32",
    "float32": "Hugging Face eager, float32",
    "bfloat16": "Hugging Face eager, bfloat16",
}
READ_AIM, SPEED_AIM = 1.15, 3.0


def main() -> None:
    options = parse()
    work = Path(options.work or tempfile.mkdtemp(prefix="lmcast-benchmark-"))
    picker = random.Random(0)
    prompt = [picker.randrange(VOCAB) for _ in range(options.prompt_tokens)]
    arguments = {"threads": options.threads, "prompt": prompt, "new": options.new_tokens}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNTIMES}
    try:
        exported = prepare(work)
        engine, checkpoint = str(work / "engine"), str(work / "checkpoint")
        touched = children.run("experts", "bytes_touched", directory=engine, **arguments).result
        for _ in range(options.rounds):
            for name in RUNTIMES:
                if name == "lmcast":
                    child = children.run("runtimes", "lmcast", directory=engine, **arguments)
                else:
                    given = {"directory": checkpoint, "dtype": name, **arguments}
                    child = children.run("runtimes", "eager", **given)
                found[name].append(child.result)
    finally:
        if not options.keep:
            shutil.rmtree(work)
    print(text(found, touched, exported))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", help="where files go, 19 GB; default: a temporary directory")
    parser.add_argument("--keep", action="store_true", help="keep --work; a rerun finds it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    return parser.parse_args()


def prepare(work: Path) -> str:
    """Write the checkpoint and the engine where not yet there; return what the export took."""
    checkpoint, engine = work / "checkpoint", work / "engine"
    if not checkpoint.exists():
        children.run("random_qwen3_moe", "write", directory=str(checkpoint), dtype="bfloat16")
    took = work / "export.txt"
    if not engine.exists():
        given = {"checkpoint": str(checkpoint), "output": str(engine)}
        child = children.run("exporters", "lmcast", **given)
        size = sum(file.stat().st_size for file in engine.rglob("*") if file.is_file())
        took.write_text(
            f"export: {child.cpu_seconds:.1f} CPU-s, {child.wall_seconds:.1f} s,"
            f" peak RSS {child.peak_rss / MB:.0f} MB, {size / GB:.2f} GB written"
        )
    return took.read_text()


def bytes_touched(directory: str, threads: int, prompt: list[int], new: int) -> dict[str, float]:
    """Return the bytes of weights that a decoding step touches, by the kernel's own account.

    Pages of the mapped weights are marked as not referenced before each step and counted after.
    """
    from lmcast.exporter.bench import weight_bytes_per_step
    from lmcast.exporter.runtime.engine import Engine

    engine = Engine(directory, threads)
    session = engine.session(1)
    logits = session.append(np.array([prompt]))
    counts = []
    for _ in range(new):
        token = int(logits[0].argmax())
        Path("/proc/self/clear_refs").write_text("1")
        logits = session.append([[token]])
        counts.append(referenced(f"{directory}/weights"))
    return {"touched": median(counts), "least": weight_bytes_per_step(engine)}


def referenced(files: str) -> int:
    """Return the bytes of referenced pages of mappings of files below a path."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key = line.split(None, 1)[0]
        if not key.endswith(":"):
            inside = files in line
        elif inside and key == "Referenced:":
            total += int(line.split()[1]) << 10
    return total


def text(found: dict[str, list[dict[str, Any]]], touched: dict[str, float], exported: str) -> str:
    rows = [
        [
            RUNTIMES[name],
            *(f"{median(r[key] for r in rounds):.1f}" for key in ("prefill", "decode")),
            *(f"{median(r[key] for r in rounds) / MB:.0f}" for key in ("private", "rss")),
        ]
        for name, rounds in found.items()
    ]
    columns = ["runtime", "prefill tok/s", "decode tok/s", "private MB", "peak RSS MB"]
    share = median(r["share"] for r in found["lmcast"])
    times = touched["touched"] / touched["least"]
    lines = [
        exported,
        children.table(columns, rows),
        f"a decoding step touches {touched['touched'] / MB:.0f} MB of weights, {times:.3f} of the"
        f" {touched['least'] / MB:.0f} MB that a token is multiplied with (aim {READ_AIM}),"
        f" at {share:.0%} of the measured read bandwidth",
    ]
    for key in ("prefill", "decode"):
        for name in ("float32", "bfloat16"):
            pairs = zip(found["lmcast"], found[name], strict=True)
            ratio = median(mine[key] / theirs[key] for mine, theirs in pairs)
            aim = f" (aim {SPEED_AIM:g})" if key == "decode" else ""
            lines.append(f"{key}: {ratio:.2f} of {RUNTIMES[name]}{aim}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
