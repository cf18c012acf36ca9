"""What an engine of target cuda asks of a GPU, counted without one, for people and as JSON.

    python tests/benchmarks/cuda_dry.py ENGINE --sm 90 --batch 1 --prompt-tokens 128 --new-tokens 32

It is loaded, given a prompt and run for steps by lmcast's own session on a fake GPU (fake_cuda):
launches by whose they are, copies by their way and waits are what a GPU would be asked for too, and
so is device memory, but for the driver's own. Time is not: nothing is computed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fake_cuda import Log, note, on_fake_gpu  # noqa: E402

PARTS = ("load", "prompt", "first step", "captured", "step")


def calls(path: str, batch: int, prompt: int, new: int) -> None:
    """Load, one prompt of zeros, and steps; in the process on the fake GPU."""
    import numpy as np

    from lmcast.exporter import load

    note("load")
    engine = load(path)
    assert engine.runner
    session = engine.session(batch)
    note("prompt")
    session.append(np.zeros((batch, prompt), np.int64))
    for name in [*PARTS[2:], *(f"step {i}" for i in range(new - 3))][:new]:
        note(name)
        session.append(np.zeros((batch, 1), np.int64))


def asked(log: Log, held: int) -> dict[str, int]:
    """Return what a part of a log asks of a GPU. held: bytes of memory before it."""
    launches = log.launches
    ours = sum(event.ours for event in launches)
    products = sum(event.kind == "blas" for event in launches)
    found = {
        "kernels of ONNX Runtime": len(launches) - ours - products,
        "products of cuBLAS": products,
        "kernels of lmcast": ours,
        "graphs launched": len(log.of("graph")),
        "waits": len(log.of("wait")),
        "most memory": max([held, *(event.fields["in_use"] for event in log.of("allocate"))]),
    }
    ways = {"HtoD": "bytes to the GPU", "DtoH": "bytes from it", "DtoD": "bytes within it"}
    return found | {
        text: sum(event.fields["bytes"] for event in log.copies(way)) for way, text in ways.items()
    }


def dry(path: str, sm: int, batch: int, prompt: int, new: int) -> dict[str, Any]:
    """Return the peak of device memory, and what each part asks of the GPU."""
    run = on_fake_gpu(calls, path, batch, prompt, new, sm=sm)
    found, held = {}, 0
    for part in PARTS[: 2 + new]:
        log = run.log.after(part)
        found[part] = asked(log, held)
        held = [held, *(event.fields["in_use"] for event in log.of("allocate", "free"))][-1]
    return {"peak memory": run.log.peak, **found}


def text(found: dict[str, Any]) -> str:
    """Return a table: a line for each count, a column for each part."""
    parts = {name: counts for name, counts in found.items() if isinstance(counts, dict)}
    lines = [f"peak of device memory: {found['peak memory']:,} bytes", ""]
    lines.append(" " * 26 + "".join(f"{name:>16}" for name in parts))
    for what in next(iter(parts.values())):
        lines.append(f"{what:<26}" + "".join(f"{counts[what]:>16,}" for counts in parts.values()))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine")
    parser.add_argument("--sm", type=int, default=90)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sizes = given.batch, given.prompt_tokens, given.new_tokens
    found = dry(given.engine, given.sm, *sizes)
    print(json.dumps(found) if given.json else text(found))


if __name__ == "__main__":
    main()
