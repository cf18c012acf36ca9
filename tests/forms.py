"""Prints TARGETS.md: in which form each operator runs, by family and target.

tests/backends/test_built_plans.py holds every row to a plan that was built.
"""

import tempfile
from pathlib import Path

import onnx_ir as ir
from tiny import CASES, Case, make

from lmcast.calib.formats import WEIGHTS
from lmcast.exporter import cast, passes, pipeline, targets
from lmcast.exporter.backends.tensorrt.formats import NUMBERS, onnx
from lmcast.exporter.checkpoint import open_checkpoint
from lmcast.exporter.dtypes import DTYPES
from lmcast.exporter.graph.context import set_context
from lmcast.exporter.graph.operator_forms import Forms, forms
from lmcast.exporter.weights.gpu_forms import KERNELS

SMS = (75, 80, 86, 89, 120, 121)  # that plans of TensorRT for RTX 1.7 are built for
CONTEXT = 64  # of the tiny checkpoints
DOCUMENT = Path(__file__).parents[1] / "TARGETS.md"
HEAD = """# Targets

In which form each operator of lmcast runs, on ONNX Runtime's CPU (`--target cpu`, fp32), on GPUs
with ONNX Runtime (`--target cuda`, fp16 or bf16) and in TensorRT for RTX (`--target tensorrt-rtx`,
fp16 or bf16): **native**, the runtime has a kernel of
its own for it; **plugin**, the project's own Triton kernels, compiled ahead of time, in the plan;
or **body**, plain operators that the runtime fuses as it can. `--target onnx` has bodies
everywhere. In fp32, and with heads wider than 256, attention is a body in TensorRT, whose fused
kernels end there. Where a family has layers of both forms, both are named.

`python tests/forms.py > TARGETS.md` prints this page from the first tiny checkpoint of each family
in tests/tiny; a test builds each of them into a plan and reads the forms back from it.

## Weights in few bits, by the SM of a TensorRT for RTX plan

**yes**, the plan holds the weights as they are; **FP8**, with `--widen` it holds them in that
format, to the same values; -, `lmcast` refuses them there by name. A test builds each.

{formats}
Inputs that a recipe rounds are multiplied in the format itself where the weight is in the same:
`fp8` with `fp8` or `fp8-channel`, `int8` with `int8`, `nvfp4` with `nvfp4`. All others are rounded,
and then multiplied in fp16 or bf16, as weights alone are: TensorRT for RTX 1.7 has no other
kernels. Weights with a scale for each row, and `int4` in an fp16 engine, are dequantized within
their product; those with other blocks in a kernel before it, and stacks of experts whole.

## Weights in few bits on `--target cuda`

The operator of ONNX Runtime that reads the codes, 4 bits as 4 bits, but those of `mxfp4` in
products as 8; -, `lmcast` refuses them there by name. It dequantizes a weight into scratch memory
for prompts, and for single tokens within the product; a test reads the kernels from a fake GPU.
Experts are those with a gate of silu, or gpt-oss' own, in widths that are multiples of 64 (of 32
for `mxfp4`), and their scales are rounded to the dtype of the engine. Where the scales of other
integers are not exact in it, products are in fp32.

{kernels}
Keys and values in FP8 are read by `GroupQueryAttention` from SM89 on. Inputs that a recipe rounds
are refused: there are no products of codes with codes.

## Operators

| Family | Operator | cpu | cuda | tensorrt-rtx |
| --- | --- | --- | --- | --- |
"""


def first_cases() -> list[Case]:
    """Return the first case of each family, in the order of their names."""
    by_name = {case.architecture: case for case in reversed(CASES)}
    return [by_name[name] for name in sorted(by_name)]


def traced(checkpoint: Path, dtype: str) -> ir.Model:
    """Return the portable graph of a checkpoint, without its weights."""
    source = open_checkpoint(checkpoint)
    found = pipeline.understand(source, (), tokenizer=False, text_only=True)
    return cast.trace(found, source, DTYPES[dtype])


def rewritten(graph: ir.Model, target: str) -> Forms:
    """Return the forms of a portable graph's operators after the passes of a target."""
    set_context(graph, CONTEXT)
    passes.run(graph, targets.get(target).passes())
    return forms(graph, plugins=target != "cpu")


def rows(family: str, cpu: Forms, cuda: Forms, plan: Forms) -> list[str]:
    """Return a family's lines of the table."""
    return [
        f"| {family} | `{operator}` |"
        + "".join(f" {', '.join(forms[operator])} |" for forms in (cpu, cuda, plan))
        for operator in plan
    ]


def format_rows() -> list[str]:
    """Return the table of formats: which SM has each."""
    sms = SMS
    head = "| Weights | " + " | ".join(f"SM{sm}" for sm in sms) + " |"
    return [head, "| --- |" + " --- |" * len(sms), *(format_row(name, sms) for name in WEIGHTS)]


def format_row(name: str, sms: tuple[int, ...]) -> str:
    """Return a format's line of the table."""
    numbers = NUMBERS[onnx(WEIGHTS[name].scheme.element)]
    wider = NUMBERS[numbers.wider] if numbers.wider else None
    cells = [
        "yes"
        if sm >= numbers.first_sm
        else wider.name
        if wider is not None and sm >= wider.first_sm
        else "-"
        for sm in sms
    ]
    return f"| `{name}` | {' | '.join(cells)} |"


def kernel_rows() -> list[str]:
    """Return the table of formats: which operators of ONNX Runtime's CUDA provider take each."""
    found = ((name, KERNELS[WEIGHTS[name].scheme.name]) for name in WEIGHTS)
    lines = [
        f"| `{name}` | `{k.products}` | {(k.experts and f'`{k.experts}`') or '-'} |"
        for name, k in found
    ]
    return ["| Weights | Products | Experts |", "| --- | --- | --- |", *lines]


def main() -> None:
    lines = []
    for case in first_cases():
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = make(case, Path(folder))
            cpu = rewritten(traced(checkpoint, "float32"), "cpu")
            short = traced(checkpoint, "float16")
            both = (rewritten(short.clone(), name) for name in ("cuda", "tensorrt-rtx"))
            lines += rows(case.architecture, cpu, *both)
    tables = HEAD.replace("{formats}", "\n".join(format_rows()) + "\n")
    tables = tables.replace("{kernels}", "\n".join(kernel_rows()) + "\n")
    print(tables + "\n".join(lines))


if __name__ == "__main__":
    main()
