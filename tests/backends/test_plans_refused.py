"""What no plan is built for: an error of its own each, that says what to do, and nothing left."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, parser
from plan_builder import Builder

from lmcast.exporter import export, targets
from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.backends.tensorrt import build, embed, libraries
from lmcast.exporter.backends.tensorrt.request import Request, Sizes, parse_sms
from lmcast.exporter.backends.tensorrt.worker import Job
from lmcast.exporter.build import build as build_plan
from lmcast.exporter.engine.manifest import verify
from lmcast.exporter.progress import silent
from lmcast.plugins.errors import InputError

SMS = (89, 120)


@pytest.fixture(scope="module")
def engine(checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portable") / "engine"
    options: dict[str, Any] = {"parity": False, "tokenizer": False}
    return export(checkpoint("llama/plain"), folder, "onnx", "float16", **options).directory


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    made = Builder()
    yield made
    made.close()


# (SMs, sizes) -> what the error says
WRONG = {
    "a data-centre GPU": ((90,), {}, "SM90: tensorrt-rtx builds no plan for it here; accepted: 75"),
    "no such GPU": ((89, 200), {}, "SM200: tensorrt-rtx builds no plan"),
    "no SM, no GPU": ((), {}, "no GPU is here: --sm says which ones the plan is for: 75, 80"),
    "no rows": (SMS, {"max_batch": 0}, "max_batch is 0; accepted: an integer from 1"),
    "more than the context": (SMS, {"max_context": 65}, "--max-context is 65; accepted: 1 to 64"),
    "longer than a row": (
        SMS, {"max_context": 32, "max_tokens": 33}, "--max-tokens is 33; accepted: 1 to 32",
    ),
    "more usual than possible": (
        SMS, {"max_batch": 2, "opt_batch": 3}, "--opt-batch is 3; accepted: 1 to 2",
    ),
    "usual beyond a call": (
        SMS, {"max_tokens": 8, "opt_tokens": 9}, "--opt-tokens is 9; accepted: 1 to 8",
    ),
    "pixels for a text": (
        SMS, {"max_pixels": 1024}, "--max-pixels: this engine takes no pictures; leave it out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_request_refused(engine: Path, name: str):
    sms, sizes, words = WRONG[name]
    with pytest.raises(InputError, match=re.escape(words)):
        build_plan(engine, "tensorrt-rtx", sms, Sizes(**sizes))
    assert not verify(engine) and not (engine / "plans").exists()


@pytest.mark.parametrize("text", ["abc", "", "89;120", "8", "8.9.0", "-89"])
def test_sms_refused(text: str):
    with pytest.raises(BackendError, match="accepted: compute capabilities such as 89,120"):
        parse_sms(text)


def test_sms_are_read_as_people_write_them():
    assert parse_sms("120, sm89,8.9,SM120") == SMS


def test_unknown_target(engine: Path):
    with pytest.raises(ValueError, match="'cuda' is not built ahead of time; accepted: tensorrt-"):
        build_plan(engine, "cuda", SMS)


def test_missing_library(engine: Path, monkeypatch):
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=re.escape("pip install 'lmcast[rtx]'")):
        build_plan(engine, "tensorrt-rtx", SMS)


def test_library_that_needs_a_gpu(engine: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setattr(libraries, "find_spec", lambda name: name)
    with pytest.raises(BackendError, match="export with --target onnx, and run `lmcast build"):
        build_plan(engine, "tensorrt")


def test_no_portable_graph(checkpoint, tmp_path: Path):
    made = export(checkpoint("llama/plain"), tmp_path / "e", "cpu", parity=False, tokenizer=False)
    with pytest.raises(ValueError, match="its graph was rewritten for target cpu"):
        build_plan(made.directory, "tensorrt-rtx", SMS)


def test_too_little_memory():
    with pytest.raises(BackendError, match="build on a larger one with `lmcast build`"):
        build.require_memory(1 << 50)


def test_aborting_process(engine: Path, monkeypatch):
    monkeypatch.setattr(build, "WORKER", "aborting_worker")
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    words = "ended with signal 6; it said: layers.0.mixer: internal error"
    with pytest.raises(BackendError, match=re.escape(words)):
        build_plan(engine, "tensorrt-rtx", SMS)
    assert not verify(engine) and not (engine / "plans").exists()


@pytest.mark.parametrize("package", ["lmcast_native", "triton"])
def test_missing_plugins(package: str, monkeypatch):
    graph = ir.from_proto(parser.parse_model(
        '<ir_version: 11, opset_import: ["" : 24, "lmcast" : 1]> g (float[B,8] x) => (float[B,2] y)'
        "{ y, z = lmcast.moe_route (x) }"
    ))  # fmt: skip
    monkeypatch.setattr(embed, "find_spec", lambda name: None if name == package else name)
    words = f"moe_route: TensorRT runs these as plugins, which need the package {package}, which"
    with pytest.raises(BackendError, match=words + " is not installed: pip install"):
        embed.embed(graph, Request("tensorrt-rtx", SMS, 1, 64, 64, 1, 64))


def topk() -> Any:
    return parser.parse_model(
        '<ir_version: 11, opset_import: ["" : 24]> g (float[B,6000] x) => (float[B,5000] y) {'
        " k = Constant <value_ints = [5000]> () y, at = TopK (x, k) }"
    )


def wide() -> Any:
    return parser.parse_model(
        '<ir_version: 11, opset_import: ["" : 24]> g (float[B,64] x, float[64,64] w)'
        " => (float[B,64] y) { y = MatMul (x, w) }"
    )


def fp4(*more: str, kind: int = TensorProto.FLOAT4E2M1) -> Any:
    weight = helper.make_tensor("up", kind, [64, 32], bytes(1024), raw=True)
    given = [helper.make_tensor_value_info("s", TensorProto.FLOAT16, [2, 32])]
    given += [helper.make_tensor_value_info(name, kind, [2, 32]) for name in more]
    node = helper.make_node("DequantizeLinear", ["up", "s", *more], ["y"], axis=0, block_size=32)
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [64, 32])
    graph = helper.make_graph([node], "g", given, [made], [weight])
    opset = [helper.make_opsetid("", 24)]
    return helper.make_model(graph, opset_imports=opset, ir_version=11)


def asymmetric() -> Any:
    return fp4("zeros", kind=TensorProto.UINT4)


def rounded() -> Any:
    made = parser.parse_model(
        '<ir_version: 11, opset_import: ["" : 24, "lmcast" : 1]> g (float[B,64] x) => (float[B,64]'
        ' y) { y = lmcast.quantize_input <format = "mxfp8", rotation = 0> (x) }'
    )
    made.graph.node[0].name = "layers.0.mixer.q.quantize_input"
    return made


def unknown() -> Any:
    made = wide()
    made.graph.node[0].op_type, made.graph.node[0].name = "Nonsense", "layers.0.mixer.q"
    return made


# graph, SMs -> what the error says
BUILT: dict[str, tuple[Callable[[], Any], tuple[int, ...], str]] = {
    "TopK too large": (topk, SMS, "TopK takes at most 3840 of a row there: this model runs with"),
    "FP4 on an old SM": (fp4, SMS, "weight up is FP4, which SM89 has no arithmetic for: --widen"),
    "FP4 that FP8 is no help for": (fp4, (86,), "SM86 has no arithmetic for: --sm from 100 on"),
    "zero points": (asymmetric, SMS, "weight up is INT4 with zero points, which TensorRT does not"),
    "rounded inputs": (rounded, (86, 89), "layers.0.mixer.q are rounded to mxfp8, which SM86 has"),
    "fp32 on SM75": (wide, (75,), "SM75 multiplies no fp32: export with --dtype float16"),
    "an operator it lacks": (unknown, SMS, "layers.0.mixer.q (Nonsense): "),
}


@pytest.mark.parametrize("name", BUILT)
def test_build_refused(name: str, builder: Builder, tmp_path: Path):
    make, sms, words = BUILT[name]
    graph = tmp_path / "model.onnx"
    graph.write_bytes(make().SerializeToString())
    asked = Request("tensorrt-rtx", sms, 1, 64, 64, 1, 64)
    job = Job(str(graph), str(tmp_path), "llama", str(tmp_path / "a.plan"), asked)
    with pytest.raises(BackendError, match=re.escape(words)):
        builder.run(job, silent)


def test_command(lmcast, engine: Path):
    status, _, error = lmcast("build", engine, "--sm", "90")
    assert status == 2
    assert error.startswith("error: SM90: tensorrt-rtx builds no plan for it here")
    assert "--target tensorrt, built on such a GPU" in error and error.count("\n") == 1


# What is asked for -> how errors call it.
ASKED: dict[str, tuple[dict[str, Any], dict[targets.Option, str]]] = {
    "SMs": ({"sms": SMS}, {"sms": "--sm"}),
    "a size": ({"sizes": Sizes(max_context=64)}, {"sizes": "--max-context"}),
    "a flag": ({"sizes": Sizes(widen=True)}, {"sizes": "--widen"}),
    "several": (
        {"sms": SMS, "sizes": Sizes(max_batch=2, opt_tokens=8)},
        {"sms": "--sm", "sizes": "--max-batch, --opt-tokens"},
    ),
}  # fmt: skip
UNREAD = [
    (target.name, name)
    for target in targets.TARGETS.values()
    for name, (_, called) in ASKED.items()
    if called.keys() - target.options
]


@pytest.mark.parametrize(("target", "name"), UNREAD)
def test_options_that_a_target_does_not_read_are_refused(tmp_path: Path, target: str, name: str):
    """Before the checkpoint is looked for: there is none."""
    given, called = ASKED[name]
    read = targets.get(target).options
    named = ", ".join(names for option, names in called.items() if option not in read)
    words = f"target {target} does not read {named}; leave that out, or give --target "
    with pytest.raises(InputError, match=re.escape(words)):
        export(tmp_path / "none", tmp_path / "engine", target, **given)


def test_some_targets_read_all_options():
    assert {target.options for target in targets.TARGETS.values()} >= {
        frozenset(), frozenset({"sms", "sizes"}),
    }  # fmt: skip
