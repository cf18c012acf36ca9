"""How engines run beside what others make of the same checkpoints: prints a table for each model.

    make bench-peers
    python tests/benchmarks/peers.py [--models smollm2 ...] [--only lmcast genai] [--rounds 3]
        [--workloads 1x128 4x1024 ...] [--work DIRECTORY] [--plot peers.png] [--json]

The runtimes take turns, each round in fresh processes and in environments of their own. The tables
have medians of the rounds, and ratios are medians of the rounds' ratios, so that a machine that
slows down slows all of them. What a runtime cannot open is said in its place.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import children
from peer_models import MODELS, Model

MB = 1e6
NEW_TOKENS = 48
IDLE = 0.3  # of the load average; above it the numbers are not worth recording
TITLES = {
    "lmcast": "lmcast",
    "hosted": "lmcast's in genai",
    "genai": "onnxruntime-genai",
    "openvino": "openvino-genai",
    "llamacpp": "llama.cpp",
    "eager": "Hugging Face eager",
}
# What came of each round, or in one line why nothing came.
Rounds = list[dict[str, Any]] | str
Found = dict[str, Rounds]


def main() -> None:
    options = parse()
    load = os.getloadavg()[0]
    if load > IDLE:
        print(f"warning: the load average is {load:.1f}: others use this machine", file=sys.stderr)
    found = {name: compare(MODELS[name], options.work / name, options) for name in options.models}
    if options.json:
        print(json.dumps({"load average": load, "models": found}, indent=1))
    else:
        print(f"load average {load:.1f}, {options.threads} threads, {options.rounds} rounds\n")
        print("\n\n".join(text(MODELS[name].title, each, options) for name, each in found.items()))
    if options.plot:
        plot(found, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    workloads = ["1x128", "1x1024", "1x4096", "4x128", "16x128"]
    work = Path(".cache/peers")
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--only", choices=TITLES, nargs="+", default=list(TITLES))
    parser.add_argument("--workloads", nargs="+", default=workloads, help="rows x prompt tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=work, help="kept; up to 25 GB")
    parser.add_argument("--plot", type=Path, help="where a picture of the ratios goes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.workloads = [[int(part) for part in each.split("x")] for each in options.workloads]
    return options


def compare(model: Model, work: Path, options: argparse.Namespace) -> Found:
    """Run every runtime `rounds` times, in turn."""
    given = {"threads": options.threads, "workloads": options.workloads, "new": NEW_TOKENS}
    # Steps follow the prompt, and some runtimes keep a token or two in reserve.
    given["context"] = max(length for _, length in options.workloads) + 2 * NEW_TOKENS
    found: Found = {}
    paths: dict[str, Path] = {}
    pythons = {name: children.python("genai" if name == "hosted" else name) for name in TITLES}
    for name in model.runtimes:
        if name not in options.only:
            continue
        try:
            paths[name] = model.prepare(work, name, pythons[name])
            found[name] = []
        except RuntimeError as error:
            found[name] = f"cannot prepare: {last_line(error)}"
    for number in range(options.rounds):
        for name, path in paths.items():
            rounds = found[name]
            if isinstance(rounds, str):
                continue
            print(f"{model.title}: round {number + 1}, {TITLES[name]}", file=sys.stderr)
            begin = time.perf_counter()
            try:
                child = children.run("peer_runs", name, pythons[name], path=str(path), **given)
            except RuntimeError as error:
                found[name] = f"cannot run: {last_line(error)}"
                continue
            rounds.append(child.result | {"rss": child.peak_rss})
            print(f"    {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    return found


def last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:200]


def text(title: str, found: Found, options: argparse.Namespace) -> str:
    """Return a table of a model, and the ratios of ours to each of the others."""
    columns = ["runtime", "load s", "peak MB"]
    for rows, length in options.workloads:
        columns += [f"{rows} x {length} prefill", "decode"]
    lines, notes = [], []
    for name, rounds in found.items():
        if isinstance(rounds, str):
            notes.append(f"{TITLES[name]} {rounds}")
            continue
        line = [TITLES[name], f"{middle(rounds, 'load'):.2f}", f"{middle(rounds, 'rss') / MB:.0f}"]
        for index in range(len(options.workloads)):
            line += [f"{speed(rounds, index, key):.1f}" for key in ("prefill", "decode")]
        lines.append(line)
    for mine, others in (("lmcast", found), ("hosted", ["genai"])):
        for name in others:
            notes += against(found, mine, name, options)
    return "\n".join([title, children.table(columns, lines), *notes])


def middle(rounds: list[dict[str, Any]], key: str) -> float:
    return median(each[key] for each in rounds)


def speed(rounds: list[dict[str, Any]], index: int, key: str) -> float:
    return median(each["workloads"][index][key] for each in rounds)


def ratios(found: Found, own: str, name: str, index: int, key: str) -> list[float]:
    """Return one's speed to another's in each round, least first."""
    mine, theirs = found[own], found[name]
    assert not isinstance(mine, str) and not isinstance(theirs, str)
    return sorted(
        a["workloads"][index][key] / b["workloads"][index][key]
        for a, b in zip(mine, theirs, strict=True)
    )


def against(found: Found, own: str, name: str, options: argparse.Namespace) -> Iterator[str]:
    """Yield what one is to another: medians, in brackets the range, and how far tokens agree."""
    mine, theirs = found.get(own, ""), found.get(name, "")
    if name == own or isinstance(mine, str) or isinstance(theirs, str):
        return
    for index, (rows, length) in enumerate(options.workloads):
        parts = []
        for key in ("prefill", "decode"):
            each = ratios(found, own, name, index, key)
            parts.append(f"{key} {median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f})")
        ids = [rounds[0]["workloads"][index]["ids"] for rounds in (mine, theirs)]
        same = next((i for i, (a, b) in enumerate(zip(*ids, strict=True)) if a != b), NEW_TOKENS)
        parts.append(f"first {same} of {NEW_TOKENS} tokens the same")
        speeds = f"{TITLES[own]} of {TITLES[name]}, {rows} x {length}"
        yield f"{speeds}: {', '.join(parts)}"


def plot(found: dict[str, Found], options: argparse.Namespace) -> None:
    """Draw ours to the others': a row of panels for each model, a bar for each workload."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        len(found), 2, figsize=(12, 2.6 * len(found)), squeeze=False, layout="constrained"
    )
    for (model, each), row in zip(found.items(), panels, strict=True):
        peers = [n for n, rounds in each.items() if n != "lmcast" and not isinstance(rounds, str)]
        for key, axes in zip(("prefill", "decode"), row, strict=True):
            for place, name in enumerate(peers):
                heights = [
                    median(ratios(each, "lmcast", name, i, key))
                    for i in range(len(options.workloads))
                ]
                at = [i + 0.8 * place / len(peers) for i in range(len(heights))]
                axes.bar(at, heights, 0.8 / len(peers), align="edge", label=TITLES[name])
            axes.axhline(1, color="black", linewidth=0.8)
            axes.set_xticks(
                [i + 0.4 for i in range(len(options.workloads))],
                [f"{rows} x {length}" for rows, length in options.workloads],
            )
            axes.set_title(f"{MODELS[model].title}: {key}, lmcast / other", fontsize=9)
            axes.legend(fontsize=7)
    figure.savefig(options.plot, dpi=110)


if __name__ == "__main__":
    main()
