"""Parity finds what is broken, and where; a good engine passes."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx
import pytest
import torch
from tiny.llama import config, set_tensor, tiny_llama

from lmcast.exporter import export, passes, targets
from lmcast.exporter.cli import main
from lmcast.exporter.engine.manifest import read_manifest, write_manifest
from lmcast.exporter.passes.rewrite import nodes_of
from lmcast.plugins.errors import CheckFailed

FIELDS = {
    "report",
    "ran", "dtype", "tokens", "beyond_window", "passed", "times_allowed", "floor", "bisection",
    "quality", "results", "rounding", "texts", "version", "subject", "baseline", "seconds",
    "picked",
}  # fmt: skip
TEXTS = [
    "generation_config.json",
    "tokenizer.json",
    "eos_ids",
    "special_tokens",
    "token ids",
]  # of the tiny checkpoint
SCENARIOS = ["prefill", "step by step", "ragged batch"]
# Rows of all tests grow beyond 16 tokens, whose keys are then others.
LONGROPE = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
}


def lmcast(*arguments: object) -> int:
    """Run the command line in this process and return its exit status."""
    sys.argv = ["lmcast", *map(str, arguments)]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """A folder with a checkpoint and its engine, which tests copy from."""
    before, arguments = torch.get_num_threads(), sys.argv
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("parity")
    tiny_llama(folder / "checkpoint")
    config(rope_scaling=LONGROPE)(folder / "checkpoint")
    export(folder / "checkpoint", folder / "engine", weights="copy")
    yield folder
    torch.set_num_threads(before)
    sys.argv = arguments


def parity(engine: Path, checkpoint: Path, folder: Path, *options: str) -> tuple[int, dict, Any]:
    report, junit = folder / "report.json", folder / "junit.xml"
    status = lmcast(
        "parity", engine, "--against", checkpoint, "--json", report, "--junit", junit, *options
    )
    return status, json.loads(report.read_text()), ElementTree.parse(junit).getroot()


def test_a_good_engine_passes(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    status, report, suite = parity(made / "engine", made / "checkpoint", tmp_path, "--bisect")
    assert status == 0
    assert report.keys() == FIELDS
    assert report["passed"] is True
    assert report["bisection"] is None
    assert report["quality"] is None
    assert (report["dtype"], report["tokens"], report["beyond_window"]) == ("float32", 64, None)
    assert [r["scenario"] for r in report["results"]] == SCENARIOS
    for result in report["results"]:
        assert result["passed"]
        assert 0 < result["error"] <= result["bound"]
        assert result["bound"] == 4 * result["eager_error"] + report["floor"]
        assert result["top1"] == 1
        assert 0 <= result["kl"] < 1e-9
    assert (suite.tag, suite.get("tests"), suite.get("failures")) == ("testsuite", "8", "0")
    assert [case.get("name") for case in suite.iter("testcase")] == SCENARIOS + TEXTS
    assert report["texts"] == dict.fromkeys(TEXTS, "equal")
    table = capsys.readouterr().out
    assert table.count("ok\n") == 3
    assert "FAILED" not in table


def test_report_of_the_export_is_the_same_kind(made: Path):
    report = json.loads((made / "engine" / "parity.json").read_text())
    assert report.keys() == FIELDS - {
        "report",
        "baseline",
        "picked",
        "seconds",
    }  # of the command alone
    assert report["passed"] is True


def rewrite(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change a JSON file of a checkpoint, {} where there is none."""

    def write(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        change(content)
        path.write_text(json.dumps(content))

    return write


SWAPPED = "token 'a' is 67, not 68, token 'b' is 68, not 67"


def token_of_a_letter(content: dict) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


# What changes in the checkpoint after the export -> what differs, and why.
OTHER_TEXTS: dict[str, tuple[Callable[[Path], Any], dict[str, str]]] = {
    "tokenizer": (
        rewrite("tokenizer.json", token_of_a_letter),
        {
            "tokenizer.json": f"is not what an export of the checkpoint writes: {SWAPPED}",
            "token ids": "'The capital of France is Paris.' is [54, 74, 71, ",
        },
    ),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        {"tokenizer.json": "the checkpoint has none, the engine has"},
    ),
    "chat template": (
        lambda folder: (folder / "chat_template.jinja").write_text("{{ messages[0].content }}"),
        {"chat_template.jinja": "the engine has none, the checkpoint has"},
    ),
    "ends of text": (
        rewrite("generation_config.json", lambda content: content.update(eos_token_id=[1, 5])),
        {
            "generation_config.json": "is not what an export of the checkpoint writes:"
            " eos_token_id: [1, 5] -> 1",
            "eos_ids": "[1] in the engine, [1, 5] of the checkpoint",
        },
    ),
    "special tokens": (
        rewrite("tokenizer_config.json", lambda content: content.pop("bos_token")),
        {
            "special_tokens": "{'bos_token': '<s>', 'eos_token': '</s>'} in the engine,"
            " {'eos_token': '</s>'} of the checkpoint"
        },
    ),
}


@pytest.mark.parametrize("name", OTHER_TEXTS)
def test_other_texts_are_found(name: str, made: Path, tmp_path: Path, capsys):
    change, differs = OTHER_TEXTS[name]
    shutil.copytree(made / "checkpoint", tmp_path / "checkpoint")
    change(tmp_path / "checkpoint")
    status, report, suite = parity(made / "engine", tmp_path / "checkpoint", tmp_path, "--bisect")
    assert status == 1
    assert report["passed"] is False
    assert report["bisection"] is None  # what the engine computes is right
    found = {k: v for k, v in report["texts"].items() if v != "equal"}
    assert found.keys() == differs.keys()
    assert all(found[name].startswith(said) for name, said in differs.items()), found
    failed = {
        case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None
    }
    assert failed == differs.keys()
    assert capsys.readouterr().out.count("FAILED") == len(differs)


def test_an_engine_without_a_tokenizer_or_whose_steps_are_no_pass(made: Path, tmp_path, capsys):
    checkpoint, engine = tmp_path / "checkpoint", tmp_path / "engine"
    shutil.copytree(made / "checkpoint", checkpoint)
    config(rope_scaling={"type": "dynamic", "factor": 4.0}, max_position_embeddings=30)(checkpoint)
    export(checkpoint, engine, tokenizer=False, parity=False)
    status, report, _ = parity(engine, checkpoint, tmp_path)
    assert (status, report["tokens"]) == (0, 30)
    assert "tokenizer.json" not in report["texts"]
    capsys.readouterr()
    assert lmcast("parity", engine, "--against", checkpoint, "--tokens", 31) == 2
    assert "beyond 30, 'dynamic' rotary scaling depends on the calls" in capsys.readouterr().err


def scaled(tensor: str, by: float) -> Callable[[Path], Any]:
    """Change a tensor of the checkpoint: the engine then has another."""
    return set_tensor(tensor, lambda values: values[tensor] * by)


# name: (tensor, layer that diverges, value that diverges first, its operator)
WEIGHTS = {
    "q of layer 1": (
        "model.layers.1.self_attn.q_proj.weight", 1, "layers.1.mixer.q", "FusedMatMul",
    ),
    "norm of layer 0": (
        "model.layers.0.post_attention_layernorm.weight",
        0, "layers.0.pre_ffn", "SkipSimplifiedLayerNormalization",
    ),
    "down of layer 1": (
        "model.layers.1.mlp.down_proj.weight", 1, "layers.1.ffn.down", "FusedMatMul",
    ),
    "embedding": (
        "model.embed_tokens.weight", 0, "layers.0.pre_mixer", "RMSNormalization",
    ),
    "head": ("lm_head.weight", None, None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_another_weight_is_found(name: str, made: Path, tmp_path: Path, capsys):
    tensor, layer, value, operator = WEIGHTS[name]
    shutil.copytree(made / "checkpoint", tmp_path / "checkpoint")
    scaled(tensor, 1.01)(tmp_path / "checkpoint")
    status, report, suite = parity(made / "engine", tmp_path / "checkpoint", tmp_path, "--bisect")
    assert status == 1
    assert report["passed"] is False
    failed = [
        case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None
    ]
    assert failed == [r["scenario"] for r in report["results"] if not r["passed"]]
    assert suite.get("failures") == str(len(failed)) != "0"
    assert report["bisection"]["layer"] == layer
    if value is None:
        assert report["bisection"]["first"] is None
        assert "final norm or head" in capsys.readouterr().out
        return
    first = report["bisection"]["first"]
    assert (first["name"], first["operator"]) == (value, operator)
    assert first["error"] > 4 * first["eager_error"]
    assert f"layer {layer} at {value} ({operator})" in capsys.readouterr().out


def edit(engine: Path, node: str, attribute: str, change: Callable[[float], float]) -> None:
    """Change an attribute of a node in the graph of an engine, and its manifest accordingly."""
    model = onnx.load(engine / "engine.onnx", load_external_data=False)
    (found,) = [n for n in model.graph.node if n.name == node]
    (value,) = [a for a in found.attribute if a.name == attribute]
    value.f = change(value.f)
    (engine / "engine.onnx").write_bytes(model.SerializeToString())
    fields = read_manifest(engine).fields
    written_by_us = {"format", "lmcast", "files", "self"}
    write_manifest(engine, {k: v for k, v in fields.items() if k not in written_by_us})


# name: (node, attribute, change, layer, value that diverges first)
ATTRIBUTES: dict[str, tuple[str, str, Callable[[float], float], int, str]] = {
    "epsilon": ("layers.1.pre_ffn", "epsilon", lambda e: e * 1000, 1, "layers.1.pre_ffn"),
    "scale": (
        "layers.1.mixer.cached_attention", "scale", lambda s: s * 1.5, 1, "layers.1.mixer.o",
    ),
    "activation": ("layers.0.ffn.Mul", "alpha", lambda a: a * 1.1, 0, "layers.0.ffn.down"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_another_attribute_is_found(name: str, made: Path, tmp_path: Path):
    node, attribute, change, layer, value = ATTRIBUTES[name]
    engine = tmp_path / "engine"
    shutil.copytree(made / "engine", engine)
    edit(engine, node, attribute, change)
    status, report, _ = parity(engine, made / "checkpoint", tmp_path, "--bisect")
    assert status == 1
    assert report["bisection"]["layer"] == layer
    assert report["bisection"]["first"]["name"] == value


def test_prompts_of_a_file(made: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("hello\nlonger than that\n")
    status, report, _ = parity(
        made / "engine", made / "checkpoint", tmp_path,
        "--prompts", str(tmp_path / "prompts.txt"),
    )  # fmt: skip
    assert status == 0
    assert report["tokens"] == len("longer than that")


def test_tokens_set_the_length(made: Path, tmp_path: Path):
    status, report, _ = parity(made / "engine", made / "checkpoint", tmp_path, "--tokens", "9")
    assert status == 0
    assert report["tokens"] == 9


def test_json_to_the_terminal(made: Path, capsys: pytest.CaptureFixture):
    assert lmcast("parity", made / "engine", "--against", made / "checkpoint", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out).keys() == FIELDS


REFUSED: dict[str, tuple[list[str], str]] = {
    "no tokens": (["--tokens", "0"], "tokens is 0; accepted: an integer from 1"),
    "too many tokens": (["--tokens", "129"], "tokens is 129; accepted: 1 to 128"),
    "drawn and given": (["--tokens", "9", "--prompts", "a.txt"], "is the length of drawn prompts"),
    "no such prompts": (["--prompts", "absent.txt"], "absent.txt: cannot be read"),
    "report in no folder": (["--json", "absent/report.json"], "absent/report.json: cannot be"),
    "one file for both": (["--json", "both", "--junit", "both"], "both: is given for two reports"),
    "quality without a recipe": (["--quality"], "was made without a recipe, which would say"),
    "junit in no folder": (["--junit", "absent/junit.xml"], "absent/junit.xml: cannot be"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_options_are_refused(name: str, made: Path, capsys: pytest.CaptureFixture):
    options, message = REFUSED[name]
    assert lmcast("parity", made / "engine", "--against", made / "checkpoint", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_another_config_is_refused(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    shutil.copytree(made / "checkpoint", tmp_path / "checkpoint")
    config(rope_theta=500.0)(tmp_path / "checkpoint")
    assert lmcast("parity", made / "engine", "--against", tmp_path / "checkpoint") == 2
    error = capsys.readouterr().err
    assert "another config.json" in error
    assert str(tmp_path / "checkpoint") in error


def test_a_broken_pass_is_not_published(made: Path, tmp_path: Path, monkeypatch):
    def broken(model: Any) -> int:
        changes = passes.quick_gelu(model)
        for node in nodes_of(model, "QuickGelu"):
            node.attributes["alpha"] = type(node.attributes["alpha"])(
                "alpha", node.attributes["alpha"].type, 1.1
            )
        return changes

    order = tuple(broken if p is passes.quick_gelu else p for p in passes.CPU)
    wrong = dataclasses.replace(targets.get("cpu"), passes=lambda: order)
    monkeypatch.setitem(targets.TARGETS, "cpu", wrong)
    with pytest.raises(CheckFailed, match=r"not equal to eager PyTorch: .*error .*, bound "):
        export(made / "checkpoint", tmp_path / "place" / "engine")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
