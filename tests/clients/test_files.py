"""What other programs find in an engine's directory, and what they do not."""

import json
import os
import re
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from fake_cuda.interpret import stand_in
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from tiny.llama import tiny_llama

from clients import CLIENTS
from lmcast.exporter import export, load
from lmcast.exporter.clients import hub
from lmcast.exporter.clients.card import write_card
from lmcast.exporter.clients.write import texts_in, unable, unfit
from lmcast.exporter.engine.description import said_of
from lmcast.exporter.engine.manifest import EngineError, read_manifest, verify, write_manifest
from lmcast.exporter.pack import pack, pack_for
from lmcast.exporter.texts import generation
from lmcast.plugins.launch import launch_plan

DOCUMENT = Path(__file__).parents[2] / "docs/clients.md"
LINKED = "they look for weights beside the graph: `lmcast pack` copies them into the engine"
FOUND = {
    "README.md", "config.json", "genai.onnx", "genai_config.json", "model.onnx",
    "special_tokens_map.json", "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a linked engine, and the same with its weights inside."""
    folder = tmp_path_factory.mktemp("clients")
    tiny_llama(folder / "checkpoint")
    export(folder / "checkpoint", folder / "linked", parity=False)
    pack(folder / "linked", folder / "engine")
    return folder


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(f.relative_to(folder)): sha256(f.read_bytes()).hexdigest() for f in files}


def listed(engine: Path) -> set[str]:
    return {file.path for file in read_manifest(engine).files}


def test_linked_engines_say_what_to_do(made: Path, lmcast):
    assert not FOUND & listed(made / "linked")
    summary = load(made / "linked").summary()
    assert summary.clients == {"genai": LINKED, "hub": LINKED}
    assert f"not for genai, hub: {LINKED}" in summary.text().splitlines()
    for clients in (json.loads(lmcast("inspect", made / "linked", "--json")[1])["clients"],):
        assert clients == {"genai": LINKED, "hub": LINKED}


def test_packed_engines_are_open(made: Path, lmcast):
    assert listed(made / "engine") - listed(made / "linked") == FOUND | {
        "weights/model-00001.safetensors"
    }
    assert not verify(made / "engine")
    tokens = json.loads((made / "engine/tokenizer_config.json").read_text())
    assert tokens["model_input_names"] == ["input_ids", "attention_mask"]
    assert load(made / "engine").summary().clients == {"genai": "", "hub": ""}
    assert "other programs open it too: genai, hub" in lmcast("inspect", made / "engine")[1]


def test_none_are_written_where_none_are_asked_for(made: Path, tmp_path: Path):
    options: dict[str, Any] = {"weights": "link", "parity": False, "clients": False}
    export(made / "checkpoint", tmp_path / "linked", **options)
    engine = pack(tmp_path / "linked", tmp_path / "engine")
    assert not FOUND & listed(tmp_path / "engine")
    assert engine.summary().clients == {}
    pack_for(tmp_path / "engine", "hub", tmp_path / "open")
    assert hashes(tmp_path / "open") == hashes(made / "engine") | {
        name: hashes(tmp_path / "open")[name] for name in ("engine.json",)
    }


def test_ten_lines_of_numpy(made: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Those of the document; nothing is written in the engine meanwhile."""
    before = hashes(made / "engine")
    (code,) = re.findall(r"```python\n([^`]*InferenceSession[^`]*)```", DOCUMENT.read_text())
    monkeypatch.chdir(made)
    exec(code, {})
    wanted = load(made / "engine").generate([[9, 8], [5, 6, 7, 8]], max_new_tokens=8)
    assert capsys.readouterr().out == f"{np.array([list(r.ids) for r in wanted])}\n"
    ort.InferenceSession(made / "engine/genai.onnx", providers=["CPUExecutionProvider"])
    assert hashes(made / "engine") == before


# Of a first call: where tokens are, and where padding is. A chat in several turns has it between;
# a row of nothing else begins later.
MASKS = (
    [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]],
    [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]],
    [[0, 1, 1, 0, 1], [1, 0, 0, 1, 0]],
    [[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]],
)


@pytest.mark.parametrize("mask", MASKS)
def test_padding_is_where_the_mask_says(mask: list[list[int]], made: Path):
    """Logits of padding are those of the last token before it: programs read the last column. Rows
    wait for others, as they are finished, and go on."""
    engine = load(made / "engine")
    session = ort.InferenceSession(made / "engine/model.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    past = {v.name: np.zeros([2, 0, 0, 0], np.float32) for v in session.get_inputs()[3:]}
    ids, kept, all_kept = np.arange(10, 20).reshape(2, 5), np.array(mask), np.zeros((2, 0), int)
    rows: list[list[int]] = [[], []]
    for later in (None, [[1], [0]], [[1], [1]], [[0], [1]], [[1], [1]]):
        kept = kept if later is None else np.array(later)
        all_kept = np.concatenate([all_kept, kept], 1)
        given = {"input_ids": ids, "attention_mask": all_kept, "position_ids": np.zeros_like(ids)}
        logits, *present = session.run(names, given | past)
        past = dict(zip(past, present, strict=True))
        for b, row in enumerate(rows):
            for t in range(ids.shape[1]):
                row += ids[b, t : t + 1][kept[b, t : t + 1] > 0].tolist()
                if kept[b, : t + 1].any():
                    wanted = engine.logits(np.array([row]))[0, -1]
                    assert abs(logits[b, t] - wanted).max() < 1e-5 * np.ptp(wanted)
        ids = logits[:, -1:].argmax(-1)


# Their blocks in the document, beside that of ONNX Runtime alone, which runs in this process.
PROGRAMS = {"genai": ("python", "og.Model"), "optimum": ("python", "ORTModel"), "js": ("js", "")}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_document_runs_in_other_programs(program: str, made: Path, tmp_path: Path):
    """As it is written, in a folder that has the engine; what it prints begins as the prompt."""
    client, (language, has) = CLIENTS[program], PROGRAMS[program]
    if client.missing:
        pytest.skip(client.missing)
    blocks = re.findall(rf"```{language}\n([^`]*)```", DOCUMENT.read_text())
    (code,) = [block for block in blocks if has in block]
    file = tmp_path / ("block.mjs" if language == "js" else "block.py")
    file.write_text(code.replace("Once upon a time", "a"))  # in letters that its tokenizer knows
    (tmp_path / "engine").symlink_to(made / "engine")
    if language == "js":
        (tmp_path / "node_modules").symlink_to(client.folder / "node_modules")
    done = subprocess.run(
        ["node" if client.on_node else client.python, file], cwd=tmp_path, capture_output=True,
        text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (made_of_it,) = load(made / "engine").generate(["a"], max_new_tokens=2)
    assert f"a{made_of_it.text}" in done.stdout


TEMPLATES_OF: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "none": ({}, {}),
    "the usual one": ({"default": "a"}, {"chat_template": "a"}),
    "one with a name": (
        {"default": "a", "tool_use": "b"},
        {"chat_template": [
            {"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"},
        ]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES_OF)
def test_chat_templates_are_where_transformers_js_looks(name: str):
    templates, wanted = TEMPLATES_OF[name]
    assert hub.chat(templates) == wanted


def test_the_card_is_one_of_the_hub(made: Path):
    about = metadata_load(made / "engine/README.md")
    assert about == ModelCard.load(made / "engine/README.md").data.to_dict()
    assert about["library_name"] == "lmcast"
    assert about["pipeline_tag"] == "text-generation"
    assert {"onnx", "onnxruntime-genai", "optimum", "transformers.js", "llama"} <= {*about["tags"]}


@pytest.mark.parametrize("source", ["linked", "engine"])
def test_a_repository_for_browsers(source: str, made: Path, tmp_path: Path, lmcast):
    before = hashes(made / source)
    status, out, _ = lmcast("pack", made / source, "--for", "js", "-o", tmp_path / "js", "--json")
    assert status == 0
    files = set(json.loads(out)["files"])
    texts = {"README.md", "config.json", "generation_config.json", "special_tokens_map.json"}
    texts |= {"tokenizer.json", "tokenizer_config.json"}
    assert files == texts | {"onnx/model.onnx", "onnx/model.onnx_data"}
    config = json.loads((tmp_path / "js/config.json").read_text())["transformers.js_config"]
    assert config == {"dtype": "fp32", "use_external_data_format": {"model.onnx": 1}}
    assert metadata_load(tmp_path / "js/README.md")["library_name"] == "transformers.js"
    ort.InferenceSession(tmp_path / "js/onnx/model.onnx", providers=["CPUExecutionProvider"])
    assert hashes(made / source) == before


def test_engines_of_gpus_have_bodies_for_others(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its own graph has machine code; theirs is run by a CPU here, in fp16: some forty roundings
    from what fp32 computes."""
    monkeypatch.setattr(launch_plan, "cubin", stand_in)  # nothing is compiled
    options: dict[str, Any] = {"weights": "copy", "parity": False, "sms": (80,)}
    engine = export(made / "checkpoint", tmp_path / "engine", "cuda", "float16", **options)
    assert engine.summary().clients == {"genai": "", "hub": ""}
    session = ort.InferenceSession(
        tmp_path / "engine/model.onnx", providers=["CPUExecutionProvider"]
    )
    ids = np.array([[9, 8, 7, 20, 30, 40, 50]])
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    given |= {"position_ids": ids}
    for value in session.get_inputs()[3:]:
        given[value.name] = np.zeros([1, 0, 0, 0], np.float16)
    (logits,) = session.run(["logits"], given)
    wanted = load(made / "engine").logits(ids)
    assert abs(logits - wanted).max() < 40 * 2**-10 * abs(wanted).max()
    config = json.loads((tmp_path / "engine/genai_config.json").read_text())
    assert config["model"]["decoder"]["session_options"]["provider_options"] == [{"cuda": {}}]
    # What the export wrote is kept: of machine code it could not be made again.
    pack_for(tmp_path / "engine", "genai", tmp_path / "packed")
    assert hashes(tmp_path / "packed") == hashes(tmp_path / "engine")
    with pytest.raises(EngineError, match=r"for triton: .* only lmcast has kernels for"):
        pack_for(tmp_path / "engine", "triton", tmp_path / "served")


def test_what_cannot_be_packed(made: Path, tmp_path: Path, lmcast):
    shutil.copytree(made / "engine", tmp_path / "engine")
    manifest = read_manifest(tmp_path / "engine")
    write_manifest(tmp_path / "engine", manifest.fields | {"target": "tensorrt-rtx", "clients": {}})
    with pytest.raises(EngineError, match="packed for js: they open engines of target cpu, onnx"):
        pack_for(tmp_path / "engine", "js", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    status, _, said = lmcast("pack", made / "engine", "--for", "hub")
    assert (status, "give -o" in said) == (2, True)


# What is packed for whom, where to, and a part of the refusal.
IN_THE_WAY = (
    ("engine", "js", "engine", "is the engine"),
    ("engine", "js", "engine/js", "is inside the engine"),
    ("engine", "genai", "engine/genai", "is inside the engine"),
    ("engine", "genai", "other", "is an engine of another checkpoint"),
    ("engine", "triton", "again", "is an engine, not what is to be written there: --force"),
    ("linked", "js", "linked", "is the engine"),
    ("linked", "", "linked/packed", "is inside the engine"),
)


def test_what_is_in_the_way(made: Path, tmp_path: Path, lmcast):
    for name in ("linked", "engine"):
        shutil.copytree(made / name, tmp_path / name)
    shutil.copytree(made / "engine", tmp_path / "again")
    shutil.copytree(made / "engine", tmp_path / "other")
    fields = dict(read_manifest(tmp_path / "other").fields)
    write_manifest(tmp_path / "other", fields | {"source": [], "config": {"model_type": "other"}})
    (tmp_path / "engine/model.sig").write_text("{}")
    before = hashes(tmp_path)
    for source, program, output, message in IN_THE_WAY:
        asked = ("--for", program) if program else ()
        status, _, said = lmcast("pack", tmp_path / source, *asked, "-o", tmp_path / output)
        assert (status, said.count("\n"), message in said) == (2, 1, True), (output, said)
    assert hashes(tmp_path) == before
    status, _, said = lmcast(
        "pack", tmp_path / "engine", "--for", "js", "-o", tmp_path / "other", "--force"
    )
    assert status == 0 and "is not signed, as" in said and (tmp_path / "other/onnx").is_dir()
    # An engine takes its own place, and says once that its signature has gone.
    status, _, said = lmcast("pack", tmp_path / "engine", "--for", "hub", "-o", tmp_path / "engine")
    assert (status, said.count("is not signed")) == (0, 1) and not verify(tmp_path / "engine")


REASONS: dict[str, tuple[str, dict[str, str]]] = {
    "all": ("", {}),
    "some": ("not for b: no", {"a": "", "b": "no"}),
    "one reason": ("not for a, b: no", {"a": "no", "b": "no"}),
}


@pytest.mark.parametrize("name", REASONS)
def test_reasons(name: str):
    line, clients = REASONS[name]
    assert line in "\n".join(said_of(clients))


def test_graphs_that_no_other_program_runs():
    function, node = SimpleNamespace(name="known"), SimpleNamespace(domain="lmcast", op_type="own")
    known = SimpleNamespace(domain="lmcast", op_type="known")
    graph: Any = SimpleNamespace(functions={"": function}, graph=[node, known])
    about: Any = SimpleNamespace(graph=SimpleNamespace(anew_beyond=(), total_length=False))
    about.target = "cuda"
    assert "only lmcast has kernels for, own; `lmcast export --target cuda" in unable(graph, about)
    graph.graph = [known]
    assert not unable(graph, about)
    about.graph.anew_beyond, about.graph.total_length = (8,), True
    assert unable(graph, about).startswith("rows that grow beyond 8 tokens")
    about.target, about.graph.weights = "cpu", "copy"
    assert not unfit(about)


GENERATION: dict[str, tuple[dict[str, Any], list[int], dict[str, Any]]] = {
    "the same end": ({"eos_token_id": 2}, [2], {"eos_token_id": 2}),
    "the same ends": ({"eos_token_id": [3, 2]}, [2, 3], {"eos_token_id": [3, 2]}),
    "one more": ({"eos_token_id": 2, "top_k": 5}, [2, 3], {"eos_token_id": [2, 3], "top_k": 5}),
    "none stated": ({"top_k": 5}, [2], {"eos_token_id": [2], "top_k": 5}),
    "none at all": ({"top_k": 5}, [], {"top_k": 5}),
    "a cache": ({"cache_implementation": "hybrid", "eos_token_id": 2}, [2], {"eos_token_id": 2}),
}


@pytest.mark.parametrize("name", GENERATION)
def test_generation_configs_state_all_ends(name: str):
    given, ends, wanted = GENERATION[name]
    assert generation(given, ends) == wanted


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_texts_that_are_too_large_are_not_read(name: str, tmp_path: Path):
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 1 << 40)
    about: Any = SimpleNamespace(special_tokens={})
    with pytest.raises(EngineError, match=f"{name}: is larger than 256 MiB"):
        texts_in(tmp_path, about)


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_damaged_report_gives_no_card(text: str, made: Path, tmp_path: Path):
    shutil.copytree(made / "engine", tmp_path / "engine")
    (tmp_path / "engine/parity.json").write_text(text)
    with pytest.raises(EngineError, match=r"parity\.json: .*; export again"):
        write_card(tmp_path / "engine", read_manifest(made / "engine").fields)
