"""Prints TARGETS.md: in which form each operator runs, by family and target.

tests/test_built_plans.py holds every row to a plan that was built.
"""

import tempfile
from pathlib import Path

import onnx_ir as ir
from tiny import CASES, Case, make

from lmcast.calib.formats import FORMATS
from lmcast.exporter import passes, pipeline
from lmcast.exporter.checkpoint import open_checkpoint
from lmcast.exporter.forms import Forms, forms

DOCUMENT = Path(__file__).parents[1] / "TARGETS.md"
HEAD = """# Targets

In which form each operator of lmcast runs, on ONNX Runtime's CPU (`--target cpu`, fp32) and in
TensorRT for RTX (`--target tensorrt-rtx`, fp16 or bf16): **native**, the runtime has a kernel of
its own for it; **plugin**, the project's own Triton kernels, compiled ahead of time, in the plan;
or **body**, plain operators that the runtime fuses as it can. `--target onnx` has bodies
everywhere. In fp32, and with heads wider than 256, attention is a body in TensorRT, whose fused
kernels end there. Where a family has layers of both forms, both are named.

`python tests/forms.py > TARGETS.md` prints this page from the first tiny checkpoint of each family
in tests/tiny.py; a test builds each of them into a plan and reads the forms back from it.

| Family | Operator | cpu | tensorrt-rtx |
| --- | --- | --- | --- |
"""


def first_cases() -> list[Case]:
    """Return the first case of each family, in the order of their names."""
    by_name = {case.architecture: case for case in reversed(CASES)}
    return [by_name[name] for name in sorted(by_name)]


def traced(checkpoint: Path, dtype: str) -> ir.Model:
    """Return the portable graph of a checkpoint, without its weights."""
    source = open_checkpoint(checkpoint)
    found = pipeline.understand(source, (), tokenizer=False)
    return pipeline.trace(found, source, FORMATS[dtype])


def rewritten(graph: ir.Model, target: str) -> Forms:
    """Return the forms of a portable graph's operators after the passes of a target."""
    passes.run(graph, target)
    return forms(graph, plugins=target != "cpu")


def rows(family: str, cpu: Forms, plan: Forms) -> list[str]:
    """Return a family's lines of the table."""
    return [
        f"| {family} | `{operator}` | {', '.join(cpu[operator])} | {', '.join(plan[operator])} |"
        for operator in plan
    ]


def main() -> None:
    lines = []
    for case in first_cases():
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = make(case, Path(folder))
            cpu = rewritten(traced(checkpoint, "float32"), "cpu")
            lines += rows(
                case.architecture, cpu, rewritten(traced(checkpoint, "float16"), "tensorrt-rtx")
            )
    print(HEAD + "\n".join(lines))


if __name__ == "__main__":
    main()
