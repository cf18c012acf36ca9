"""How fast engines with weights of 4 and 8 bits run, beside onnxruntime-genai's int4: a table.

    python tests/benchmarks/decode.py [--work DIRECTORY --keep] [--rounds 5] [--only int4 genai]

All weights and the tied head are quantized: int4 in groups of 32, as onnxruntime-genai's builder
does, int8 by row. The runtimes take turns, each round in fresh processes; the ratios are medians of
the rounds' ratios.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import children
from random_qwen3 import VOCAB

MB = 1e6
RUNTIMES = {
    "int4": "lmcast int4",
    "int8": "lmcast int8",
    "genai": "onnxruntime-genai int4",
}
AIM = 1.0  # of onnxruntime-genai's decode, at least
SHOWN = {
    "load": ("load s", 1, 2),
    "prefill": ("prefill tok/s", 1, 1),
    "decode": ("decode tok/s", 1, 2),
    "private": ("private MB", MB, 0),
    "rss": ("peak RSS MB", MB, 0),
}
Measured = dict[str, list[dict[str, Any]]]


def main() -> None:
    options = parse()
    work = Path(options.work or tempfile.mkdtemp(prefix="lmcast-benchmark-"))
    picker = random.Random(0)
    arguments = {
        "threads": options.threads,
        "prompt": [picker.randrange(VOCAB) for _ in range(options.prompt_tokens)],
        "new": options.new_tokens,
    }
    found: Measured = {name: [] for name in options.only}
    try:
        for name in options.only:
            prepare(work, name)
        for _ in range(options.rounds):
            for name in options.only:
                runtime = "genai" if name == "genai" else "lmcast"
                child = children.run("runtimes", runtime, directory=str(work / name), **arguments)
                found[name].append(child.result)
    finally:
        if not options.keep:
            shutil.rmtree(work)
    print(json.dumps(found, indent=1) if options.json else text(found))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", help="where files go, about 4 GB; default: a temporary directory")
    parser.add_argument("--keep", action="store_true", help="keep --work; a rerun finds it")
    parser.add_argument("--only", choices=RUNTIMES, nargs="+", default=list(RUNTIMES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def prepare(work: Path, name: str) -> None:
    """Write the checkpoint, a recipe and what a runtime runs, where not yet there."""
    checkpoint, output = work / "bfloat16", work / name
    if not checkpoint.exists():
        children.run("random_qwen3", "write", directory=str(checkpoint), dtype="bfloat16")
    if output.exists():
        return
    given = {"checkpoint": str(checkpoint), "output": str(output)}
    if name == "genai":
        children.run("exporters", "genai", **given, precision="int4")
        return
    recipe = work / f"{name}-recipe"
    children.run("decode", "round_all", checkpoint=str(checkpoint), recipe=str(recipe), format=name)
    children.run("exporters", "lmcast", **given, recipe=str(recipe))
    shutil.rmtree(recipe)


def round_all(checkpoint: str, recipe: str, format: str) -> None:
    """Write a recipe by rounding every matrix to nearest: speed does not depend on the values."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from files.rounded import round_weights

    matrices = lambda name, parameter: format if parameter.dim() == 2 else None  # noqa: E731
    round_weights(Path(checkpoint), Path(recipe), matrices)


def text(found: Measured) -> str:
    """Return the table, and below it how far the aim is reached."""
    rows = [
        [RUNTIMES[name]]
        + [
            f"{median(r[key] for r in rounds) / unit:.{digits}f}"
            for key, (_, unit, digits) in SHOWN.items()
        ]
        for name, rounds in found.items()
    ]
    columns = ["runtime", *(title for title, _, _ in SHOWN.values())]
    lines = [children.table(columns, rows), ""]
    for name in ("int4", "int8"):
        if {name, "genai"} <= found.keys():
            pairs = zip(found[name], found["genai"], strict=True)
            each = sorted(mine["decode"] / theirs["decode"] for mine, theirs in pairs)
            ratio = median(each)
            reached = "reached" if ratio >= AIM else "missed"
            lines.append(
                f"{RUNTIMES[name]}: decode {ratio:.3g} of {RUNTIMES['genai']}'s ({each[0]:.3g} to"
                f" {each[-1]:.3g}; aim {AIM:.3g}: {reached})"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
