"""What an export costs, beside what others pay for the same model: prints a table.

python tests/benchmarks/export.py [--work DIRECTORY] [--dtype bfloat16] [--only lmcast genai]
"""

import argparse
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import children
from random_qwen3 import DTYPES

MB = 1e6
PEERS = {
    "lmcast": "lmcast",
    "genai": "onnxruntime-genai builder",
    "torch_onnx": "torch.onnx.export (dynamo)",
}
# Of ours to theirs, at most: CPU time and peak memory.
AIMS = {"genai": (1 / 3, 1 / 10), "torch_onnx": (1 / 20, 1 / 10)}


@dataclass(frozen=True)
class Cost:
    """One export: everything in float32, from a checkpoint in `dtype`."""

    exporter: str
    dtype: str
    cpu_seconds: float
    wall_seconds: float
    peak_rss: int
    written: int  # bytes of the files that the export leaves


def main() -> None:
    options = parse()
    work = Path(options.work or tempfile.mkdtemp(prefix="lmcast-benchmark-"))
    costs = []
    try:
        for dtype in options.dtype:
            checkpoint = work / dtype
            if not checkpoint.exists():
                children.run("random_qwen3", "write", directory=str(checkpoint), dtype=dtype)
            warm(checkpoint)
            for name in options.only:
                costs.append(measure(name, checkpoint, work / f"{name}-{dtype}", options.keep))
    finally:
        if not options.keep:
            shutil.rmtree(work)
    print(json.dumps([asdict(c) for c in costs], indent=1) if options.json else text(costs))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", help="where files go, about 8 GB; default: a temporary directory")
    parser.add_argument("--keep", action="store_true", help="keep --work; a rerun finds it")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--only", choices=PEERS, nargs="+", default=list(PEERS))
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def warm(checkpoint: Path) -> None:
    """Read the checkpoint once, so that nobody waits for the disk on behalf of the next."""
    with open(checkpoint / "model.safetensors", "rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def measure(name: str, checkpoint: Path, output: Path, keep: bool) -> Cost:
    if output.exists():
        shutil.rmtree(output)
    given = {"checkpoint": str(checkpoint), "output": str(output)}
    child = children.run("exporters", name, children.python(name), **given)
    written = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    if not keep:
        shutil.rmtree(output)
    return Cost(
        name, checkpoint.name, child.cpu_seconds, child.wall_seconds, child.peak_rss, written
    )


def text(costs: list[Cost]) -> str:
    """Return the table, and below it how far the aims are reached."""
    columns = ["checkpoint", "exporter", "CPU s", "wall s", "peak RSS MB", "written MB"]
    rows = [
        [
            cost.dtype,
            PEERS[cost.exporter],
            f"{cost.cpu_seconds:.1f}",
            f"{cost.wall_seconds:.1f}",
            f"{cost.peak_rss / MB:.0f}",
            f"{cost.written / MB:.2f}",
        ]
        for cost in costs
    ]
    return "\n".join([children.table(columns, rows), "", *verdicts(costs)])


def verdicts(costs: list[Cost]) -> list[str]:
    lines = []
    ours = {cost.dtype: cost for cost in costs if cost.exporter == "lmcast"}
    for cost in costs:
        if cost.exporter not in AIMS or cost.dtype not in ours:
            continue
        mine, aims = ours[cost.dtype], AIMS[cost.exporter]
        pairs = (
            ("CPU", mine.cpu_seconds, cost.cpu_seconds, aims[0]),
            ("memory", float(mine.peak_rss), float(cost.peak_rss), aims[1]),
        )
        for what, my, their, aim in pairs:
            reached = "reached" if my <= their * aim else "missed"
            lines.append(
                f"{cost.dtype}: {what} is 1/{their / my:.1f} of {PEERS[cost.exporter]}'s"
                f" (aim 1/{1 / aim:.0f}: {reached})"
            )
    if "float32" in ours:  # the one that is linked
        written = ours["float32"].written / MB
        reached = "reached" if written < 1 else "missed"
        lines.append(f"float32: linked, {written:.2f} MB written (aim below 1 MB: {reached})")
    return lines


if __name__ == "__main__":
    main()
