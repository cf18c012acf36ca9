"""Prints LAUNCHES.md: what a decoding step of each family launches on a GPU, counted without one.

    python tests/benchmarks/cuda_launches.py > tests/benchmarks/LAUNCHES.md

ONNX Runtime's CUDA provider runs on a fake GPU (tests/fake_cuda), and refuses a graph of which a
node would be on the CPU. Options: --sm 80, and names of cases as in tests/tiny instead of all.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from cuda_calls import counted, on_gpu, shortened  # noqa: E402
from fake_cuda import Log  # noqa: E402
from tiny import CASES, Case, case, make  # noqa: E402

HEAD = """# Launches of a decoding step

What one step of one row launches on SM{sm}, by `python tests/benchmarks/cuda_launches.py`: kernels
of ONNX Runtime, products of cuBLAS, and kernels of lmcast. No node is on the CPU, and nothing is
copied to or from the host. The graph of a step is captured once and launched as one.

## A layer

The difference between four layers and two, with heads of 64 numbers.

| Model | Weights | ONNX Runtime | cuBLAS | together | lmcast |
| --- | --- | --- | --- | --- | --- |
"""
FAMILIES = """
## A step of a whole model

The first tiny checkpoint of each family, whose heads are too narrow for some kernels.

| Family | Layers | ONNX Runtime | cuBLAS | lmcast |
| --- | --- | --- | --- | --- |
"""
WIDE = {"head_dim": 64, "num_attention_heads": 8, "num_key_value_heads": 2}
DENSE, SPARSE = "llama/plain", "qwen3_moe/plain"
LAYERS = ((DENSE, "copy"), (DENSE, "link"), ("qwen3/plain", "copy"), (SPARSE, "copy"))


def step(log: Log, name: str) -> dict[str, int]:
    made = log.after(f"{name}: step")
    assert not made.copies("DtoH") and not made.copies("HtoD"), name
    return counted(made)


def layer_rows(folder: Path, sm: int) -> list[str]:
    """Return the lines of LAYERS."""
    rows = []
    for name, weights in LAYERS:
        engines = {}
        for count in (2, 4):
            deep = {**case(name).settings, **WIDE, "num_hidden_layers": count}
            at = folder / f"{name.replace('/', '-')}-{weights}-{count}"
            source = shortened(replace(case(name), settings=deep), at / "checkpoint")
            engines[str(count)] = (str(source), str(at / "engine"))
        _, log = on_gpu(engines, sm, weights=weights)
        few, many = (step(log, str(count)) for count in (2, 4))
        kernels, products, ours = ((many[k] - few[k]) // 2 for k in ("kernels", "products", "ours"))
        family = name.partition("/")[0]
        rows.append(
            f"| {family} | {weights} | {kernels} | {products} | {kernels + products} | {ours} |"
        )
    return rows


def family_rows(folder: Path, sm: int, cases: list[Case]) -> list[str]:
    """Return a line for each case."""
    engines = {}
    for number, one in enumerate(cases):
        source = make(one, folder / f"checkpoint{number}")
        engines[one.name] = (str(source), str(folder / f"engine{number}"))
    _, log = on_gpu(engines, sm)
    rows = []
    for one in cases:
        about = json.loads(Path(engines[one.name][1], "engine.json").read_text())
        made = step(log, one.name)
        counts = " | ".join(str(made[kind]) for kind in ("kernels", "products", "ours"))
        rows.append(f"| {one.architecture} | {about['layers']} | {counts} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sm", type=int, default=90)
    parser.add_argument("cases", nargs="*")
    asked = parser.parse_args()
    first = {one.architecture: one for one in reversed(CASES)}
    chosen = [case(n) for n in asked.cases] or [first[name] for name in sorted(first)]
    with tempfile.TemporaryDirectory() as folder:
        layers = [] if asked.cases else layer_rows(Path(folder), asked.sm)
        families = family_rows(Path(folder), asked.sm, chosen)
    print(HEAD.format(sm=asked.sm) + "\n".join(layers) + "\n" + FAMILIES + "\n".join(families))


if __name__ == "__main__":
    main()
