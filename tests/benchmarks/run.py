"""How an engine runs, beside what others make of the same model: prints a table.

    python tests/benchmarks/run.py [--work DIRECTORY --keep] [--rounds 5] [--only lmcast genai]

The runtimes take turns, each round in fresh processes; the table has medians of the rounds and the
ratios are medians of the rounds' ratios, so that a machine that slows down slows all of them.
"""

import argparse
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import children
from random_qwen3 import VOCAB

MB = 1e6
RUNTIMES = {
    "lmcast": "lmcast (linked)",
    "genai": "onnxruntime-genai",
    "eager": "Hugging Face eager",
}
# Of ours to onnxruntime-genai's: at least, or at most.
AIMS = {
    "load": ("at most", 1 / 10),
    "prefill": ("at least", 1.0),
    "decode": ("at least", 1.0),
    "private": ("at most", 1 / 2),
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
        directories = prepare(work, options.only)
        for _ in range(options.rounds):
            for name in options.only:
                child = children.run("runtimes", name, directory=directories[name], **arguments)
                found[name].append(child.result)
    finally:
        if not options.keep:
            shutil.rmtree(work)
    check_ids(found)
    print(json.dumps(found, indent=1) if options.json else text(found))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", help="where files go, about 5 GB; default: a temporary directory")
    parser.add_argument("--keep", action="store_true", help="keep --work; a rerun finds it")
    parser.add_argument("--only", choices=RUNTIMES, nargs="+", default=list(RUNTIMES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def prepare(work: Path, names: list[str]) -> dict[str, str]:
    """Write the checkpoint and what each runtime runs, where not yet there."""
    checkpoint = work / "float32"
    if not checkpoint.exists():
        children.run("random_qwen3", "write", directory=str(checkpoint), dtype="float32")
    directories = {"eager": checkpoint}
    for name in {"lmcast", "genai"} & set(names):
        directories[name] = work / f"{name}-float32"
        if not directories[name].exists():
            output = str(directories[name])
            children.run("exporters", name, checkpoint=str(checkpoint), output=output)
    return {name: str(path) for name, path in directories.items()}


def check_ids(found: Measured) -> None:
    """Speed is worth nothing unless all of them compute the same model."""
    ids = {name: rounds[0]["ids"] for name, rounds in found.items()}
    expected = next(iter(ids.values()))
    for name, got in ids.items():
        if got != expected:
            raise RuntimeError(f"{name} picked {got}, the others {expected}")


def text(found: Measured) -> str:
    """Return the table, and below it how far the aims are reached."""
    shown: dict[str, tuple[str, float, int]] = {
        "load": ("load s", 1, 3),
        "load CPU": ("load CPU s", 1, 3),
        "first token": ("first token s", 1, 2),
        "prefill": ("prefill tok/s", 1, 1),
        "decode": ("decode tok/s", 1, 2),
        "private": ("private MB", MB, 0),
        "rss": ("peak RSS MB", MB, 0),
    }
    rows = [
        [RUNTIMES[name]]
        + [
            f"{median(r[key] for r in rounds) / unit:.{digits}f}"
            for key, (_, unit, digits) in shown.items()
        ]
        for name, rounds in found.items()
    ]
    columns = ["runtime", *(title for title, _, _ in shown.values())]
    lines = [children.table(columns, rows), ""]
    if "lmcast" not in found:
        return lines[0]
    share = median(r["share"] for r in found["lmcast"])
    lines.append(f"lmcast decode reads weights at {share:.0%} of the measured memory bandwidth")
    for name in found:
        if name != "lmcast":
            lines += ratios(found, name)
    return "\n".join(lines)


def ratios(found: Measured, name: str) -> list[str]:
    lines = []
    for key, (bound, aim) in AIMS.items():
        pairs = zip(found["lmcast"], found[name], strict=True)
        each = sorted(mine[key] / theirs[key] for mine, theirs in pairs)
        ratio = median(each)
        line = f"{key}: {ratio:.3g} of {RUNTIMES[name]}'s ({each[0]:.3g} to {each[-1]:.3g}"
        if name == "genai":
            reached = ratio <= aim if bound == "at most" else ratio >= aim
            line += f"; aim {bound} {aim:.3g}: {'reached' if reached else 'missed'}"
        lines.append(line + ")")
    return lines


if __name__ == "__main__":
    main()
