"""A plan of TensorRT for RTX for every graph that a family has, built with no GPU and read back."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import forms
import onnx_ir as ir
import pytest
from plan_builder import Builder
from safetensors.torch import save_file
from tiny import Case, case, read

from lmcast.exporter import cast, export
from lmcast.exporter.backends.tensorrt import build
from lmcast.exporter.backends.tensorrt.plan import read_plan
from lmcast.exporter.backends.tensorrt.request import Sizes
from lmcast.graphs import archs

SMS = (89, 120)
SIZES = Sizes(max_batch=4, max_context=64)
OPTIONS = {
    "parity": False, "tokenizer": False, "text_only": True, "sms": SMS, "sizes": SIZES,
}  # fmt: skip


# One of each kind gets both profiles, as every export does; the others that for prompts, whose
# lengths begin at 1: a second one takes as long again.
WHOLE = ("deepseek_v32", "gemma3n_text", "gpt_oss", "llama", "nemotron_h", "qwen3_next")


# Families whose graph is another's: that of the text in their files, unless no file has that text
# alone, and those that are another's record under a later name.
FIRST = forms.first_cases()
NEVER_ALONE = ("qwen3_vl", "qwen3_vl_moe")
OUTER = [case for case in FIRST if "text_config" in case.settings]
ARCHS = {case.architecture: archs.get(case.architecture) for case in FIRST if case not in OUTER}
SAME = {
    name: next(first for first, arch in ARCHS.items() if replace(arch, name=name) == ARCHS[name])
    for name in ARCHS
}
OWN = [case for case in FIRST if SAME.get(case.architecture) == case.architecture]
OWN += [case for case in OUTER if case.architecture in NEVER_ALONE]


@pytest.fixture(scope="module")
def builders() -> Iterator[dict[int, Builder]]:
    made = {profiles: Builder(profiles) for profiles in (1, 2)}
    yield made
    for builder in made.values():
        builder.close()


@pytest.mark.parametrize("case", OWN, ids=lambda case: case.architecture)
def test_family_builds(case: Case, checkpoint, builders, tmp_path, monkeypatch, report):
    profiles = 1 + (case.architecture in WHOLE)
    builder = builders[profiles]
    source = checkpoint(case)
    graph = forms.traced(source, "float16")
    cpu, cuda = (forms.rewritten(graph.clone(), name) for name in ("cpu", "cuda"))
    monkeypatch.setattr(build, "run", builder.run)
    monkeypatch.setattr(cast, "trace", lambda *_: graph)  # which takes most of an export
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
    rows = forms.rows(case.architecture, cpu, cuda, operators)
    assert documented(case) == rows, "run tests/forms.py"
    report(
        "Plans for SM89 and SM120",
        {"family": case.architecture, "bytes": plan["bytes"], "plugins": len(builder.kernels)},
    )


def documented(case: Case) -> list[str]:
    """Return the lines of a family in TARGETS.md."""
    lines = forms.DOCUMENT.read_text().splitlines()
    return [line for line in lines if line.startswith(f"| {case.architecture} |")]


def as_other(case: Case, checkpoint: Path, to: Path) -> str:
    """Write a checkpoint as one of the family whose graph it has; return that family."""
    if case in OUTER:
        return text_of(checkpoint, to)
    config, tensors = read(checkpoint)
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    other = SAME[case.architecture]
    (to / "config.json").write_text(json.dumps(config | {"model_type": other}))
    return other


def text_of(checkpoint: Path, to: Path) -> str:
    """Write the text of a multimodal checkpoint as one of its own family; return that family."""
    config, tensors = read(checkpoint)
    for before in ("language_model.", "model.language_model."):
        inside = {n.removeprefix(before): t for n, t in tensors.items() if n.startswith(before)}
        if inside:
            break
    if before.startswith("model."):
        inside = {f"model.{name}": tensor for name, tensor in inside.items()}
        inside |= {name: t for name, t in tensors.items() if name.startswith("lm_head.")}
    save_file(inside, to / "model.safetensors", {"format": "pt"})
    text = config["text_config"] | {"tie_word_embeddings": "lm_head.weight" not in inside}
    (to / "config.json").write_text(json.dumps(text))
    return text["model_type"]


@pytest.mark.parametrize(
    "case", [case for case in FIRST if case not in OWN], ids=lambda case: case.architecture
)
def test_family_has_the_graph_of_another(case: Case, checkpoint, tmp_path: Path):
    """Byte for byte what a family traces that has a plan above: not built again."""
    other = as_other(case, checkpoint(case), tmp_path)
    assert other in {own.architecture for own in OWN} - {case.architecture}
    graphs = [forms.traced(source, "float16") for source in (checkpoint(case), tmp_path)]
    mine, others = (ir.to_proto(g).SerializeToString(deterministic=True) for g in graphs)
    assert mine == others
    made = (forms.rewritten(graphs[0].clone(), name) for name in ("cpu", "cuda", "tensorrt-rtx"))
    assert documented(case) == forms.rows(case.architecture, *made), "run tests/forms.py"


def test_bfloat16_of_one_row(checkpoint, builders, tmp_path, monkeypatch):
    """What a user gets by default of a checkpoint in bf16: a plan for one row."""
    monkeypatch.setattr(build, "run", builders[2].run)
    options = OPTIONS | {"sizes": Sizes()}
    source = checkpoint("qwen3_moe/plain")
    engine = export(source, tmp_path / "engine", "tensorrt-rtx", "bfloat16", **options)
    (plan,) = engine.manifest.fields["plans"]
    assert sum(plan["fused"].values()) == 2 * plan["operators"]["cached_attention"]["native"] > 0


# With fewer than 4 heads of queries no fused kernel takes a step, whatever their width.
@pytest.mark.parametrize(("heads", "width"), [(3, 32), (2, 24)])
def test_few_heads_over_one(heads, width, checkpoint, builders, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "run", builders[2].run)
    shape = {"num_attention_heads": heads, "num_key_value_heads": 1, "head_dim": width}
    plain = case("llama/plain")
    settings = plain.settings | shape | {"hidden_size": heads * width}
    source = checkpoint(replace(plain, name=f"llama/{heads} heads", settings=settings))
    engine = export(source, tmp_path / "engine", "tensorrt-rtx", "float16", **OPTIONS)
    (plan,) = engine.manifest.fields["plans"]
    assert plan["operators"] == {"cached_attention": {"body": engine.manifest.fields["layers"]}}
    assert not plan["fused"]
