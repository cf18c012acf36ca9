"""A plan of TensorRT for RTX for every family, built with no GPU and read back."""

from collections.abc import Iterator

import forms
import pytest
from plan_builder import Builder
from tiny import Case

from lmcast.exporter import export, pipeline
from lmcast.exporter.backends.tensorrt import build
from lmcast.exporter.backends.tensorrt.plan import read_plan
from lmcast.exporter.backends.tensorrt.request import Sizes

SMS = (89, 120)
SIZES = Sizes(max_batch=4, max_context=64)
OPTIONS = {"parity": False, "tokenizer": False, "sms": SMS, "sizes": SIZES}


# One of each kind gets both profiles, as every export does; the others that for prompts, whose
# lengths begin at 1: a second one takes as long again.
WHOLE = ("deepseek_v32", "gemma3n", "gpt_oss", "llama", "nemotron_h", "qwen3_next")


@pytest.fixture(scope="module")
def builders() -> Iterator[dict[int, Builder]]:
    made = {profiles: Builder(profiles) for profiles in (1, 2)}
    yield made
    for builder in made.values():
        builder.close()


@pytest.mark.parametrize("case", forms.first_cases(), ids=lambda case: case.architecture)
def test_family_builds(case: Case, checkpoint, builders, tmp_path, monkeypatch, report):
    profiles = 1 + (case.architecture in WHOLE)
    builder = builders[profiles]
    source = checkpoint(case)
    graph = forms.traced(source, "float16")
    cpu = forms.rewritten(graph.clone(), "cpu")
    monkeypatch.setattr(build, "run", builder.run)
    monkeypatch.setattr(pipeline, "trace", lambda *_: graph)  # which takes most of an export
    engine = export(source, tmp_path / "engine", "tensorrt-rtx", "float16", **OPTIONS)
    (plan,) = engine.manifest.fields["plans"]
    found = read_plan(engine.directory / plan["file"])
    operators = plan["operators"]
    assert operators, "every family has an attention or something in its place"
    # What the plan says, against the graph that it was built from: nothing fell back.
    assert found.sms == SMS
    native = sum(count.get("native", 0) for count in operators.values())
    # Of each fused attention one kernel for a prompt, one for a step.
    assert list(found.fused.values()) == [native] * profiles * (native > 0)
    assert dict(found.plugins) == {n: c["plugin"] for n, c in operators.items() if "plugin" in c}
    assert len(builder.kernels) == sum(found.plugins.values())
    assert all(builder.kernels), "the kernels in the plan are those that were compiled"
    documented = forms.DOCUMENT.read_text().splitlines()
    own = [line for line in documented if line.startswith(f"| {case.architecture} |")]
    assert own == forms.rows(case.architecture, cpu, operators), "run tests/forms.py"
    report(
        "Plans for SM89 and SM120",
        {"family": case.architecture, "bytes": plan["bytes"], "plugins": len(builder.kernels)},
    )


def test_bfloat16_of_one_row(checkpoint, builders, tmp_path, monkeypatch):
    """What a user gets by default of a checkpoint in bf16: a plan for one row."""
    monkeypatch.setattr(build, "run", builders[2].run)
    options = OPTIONS | {"sizes": Sizes()}
    source = checkpoint("qwen3_moe/plain")
    engine = export(source, tmp_path / "engine", "tensorrt-rtx", "bfloat16", **options)
    (plan,) = engine.manifest.fields["plans"]
    assert sum(plan["fused"].values()) == 2 * plan["operators"]["cached_attention"]["native"] > 0
