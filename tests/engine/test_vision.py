"""The second graph of an engine: its weights, files and record; packed, relinked, compared, proven;
and what leaves it out."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from files.fp8 import RAGGED, blocks, in_fp8
from files.rounded import round_weights
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny.llama import write_json
from tiny.pictures import pixels, tiny_mistral3, tower_shapes

from lmcast.exporter import Engine, export
from lmcast.exporter.checkpoint import open_checkpoint
from lmcast.exporter.diff.engines import diff
from lmcast.exporter.engine.inspect import inspect
from lmcast.exporter.engine.manifest import EngineError, verify
from lmcast.exporter.engine.names import MODEL, VISION
from lmcast.exporter.engine.own_weights import own_weights
from lmcast.exporter.engine.relink import relink
from lmcast.exporter.pack import pack
from lmcast.exporter.prove import pictures as seen
from lmcast.exporter.prove.parity import parity
from lmcast.exporter.prove.scenarios import FEATURES, PICTURES
from lmcast.exporter.runtime.images import Picture
from lmcast.exporter.runtime.session import Session
from lmcast.graphs import Definition, defined, of_tower
from lmcast.plugins.errors import InputError

PARAMETERS = sum(math.prod(shape) for shape in tower_shapes().values())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint; a proven engine that links to it, that packed, and one of its text alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("vision")
    tiny_mistral3(folder / "checkpoint")
    export(folder / "checkpoint", folder / "linked")
    pack(folder / "linked", folder / "packed")
    export(folder / "checkpoint", folder / "text", parity=False, text_only=True)
    torch.set_num_threads(before)
    return folder


@pytest.fixture(scope="module")
def found(made: Path) -> Definition:
    source = open_checkpoint(made / "checkpoint")
    return defined(source.config, source.tensors)


def features(engine: Engine) -> np.ndarray:
    picture = engine.picture(pixels(20, 30))
    engine.tower.see([picture])
    assert picture.features is not None
    return picture.features


def external(engine: Path, file: str) -> dict[str, str]:
    """Return where each weight of a graph lies that lies in a file."""
    weights = ir.load(engine / file).graph.initializers
    stored = {name: value.const_value for name, value in weights.items()}
    return {n: str(t.location) for n, t in stored.items() if isinstance(t, ir.ExternalTensor)}


def test_weights_of_both_graphs_are_placed_together(made: Path, found: Definition):
    assert found.tower is not None
    own = {of_tower("vision", name) for name, _ in found.tower.model.named_parameters()}
    for kind, file in (("linked", "checkpoint/model.safetensors"), ("packed", "packed/weights/")):
        text, vision = (external(made / kind, graph) for graph in (MODEL, VISION))
        assert own == set(vision), "all are where they were stored: no layout needs a copy"
        assert not text.keys() & vision.keys()
        places = {str((made / kind / "/" / where).resolve()) for where in vision.values()}
        if kind == "packed":
            places = {str(made / kind / where) for where in vision.values()}
        assert all(str(made / file) in place for place in places)
    manifest = Engine(made / "linked").manifest
    stored = sum(each.tensors for each in manifest.about.weights.values())
    assert stored == len(found.named_parameters())
    assert own_weights(manifest) == own_weights(manifest, VISION) == {}


def test_what_the_record_says(made: Path, found: Definition):
    about = Engine(made / "linked").manifest.about
    assert about.vision is not None
    assert found.tower is not None
    assert about.parameters == found.parameters
    assert about.vision.parameters == found.tower.parameters == PARAMETERS
    assert dict(about.vision.inputs)["patches"] == ("N", "M", "4", "48")
    assert about.vision.outputs == (("features", ("F", "32")),)
    assert about.vision.text_inputs == ("image_features", "image_rows")
    assert dict(about.graph.inputs)["image_features"] == ("F", "32")
    assert about.vision.processor.kind == "mistral3"
    text = inspect(made / "linked").text()
    assert f"pictures      {PARAMETERS:,} parameters besides\n" in text
    assert "16 tokens for 1024 x 1024 pixels" in text  # of 32 x 32, the most
    assert inspect(made / "checkpoint").tower == inspect(made / "linked").tower
    assert f"and {PARAMETERS:,} for pictures, computes" in Engine(made / "packed").summary().text()


def test_packed_and_linked_compute_the_same(made: Path):
    engines = [Engine(made / kind, threads=1) for kind in ("linked", "packed")]
    assert np.array_equal(*map(features, engines))
    assert verify(made / "packed") == []
    told = diff(made / "linked", made / "packed").sections
    changed = [change for section in ("graph", "numbers", "formats") for change in told[section]]
    assert changed == []


def test_the_graph_is_the_same_in_every_export(made: Path, tmp_path: Path):
    export(made / "checkpoint", tmp_path / "again", parity=False)
    for file in (MODEL, VISION):
        assert (tmp_path / "again" / file).read_bytes() == (made / "linked" / file).read_bytes()


def test_a_changed_graph_is_refused_at_load(made: Path, tmp_path: Path):
    engine = tmp_path / "engine"
    shutil.copytree(made / "packed", engine)
    graph = bytearray((engine / VISION).read_bytes())
    graph[len(graph) // 2] ^= 1
    (engine / VISION).write_bytes(graph)
    with pytest.raises(EngineError, match=r"vision\.onnx: sha256 differs"):
        Engine(engine)


def test_relinking_keeps_it(made: Path, tmp_path: Path):
    shutil.copytree(made / "checkpoint", tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "engine", parity=False)
    before = features(Engine(tmp_path / "engine"))
    os.utime(tmp_path / "checkpoint/model.safetensors", (1, 1))
    with pytest.raises(EngineError, match="--relink"):
        Engine(tmp_path / "engine")
    assert relink(tmp_path / "engine") == []
    assert np.array_equal(features(Engine(tmp_path / "engine")), before)


def test_a_difference_in_the_tower_is_told(made: Path):
    told = diff(made / "linked", made / "text")
    assert not told.equal
    assert f"{VISION}: removed, 'present'" in [c.text() for c in told.sections["graph"]]
    formats = {change.text() for change in told.sections["formats"]}
    assert any(f"{VISION}: vision.embed.weight: removed" in text for text in formats)


def test_parity_holds_features_and_rows_with_pictures(made: Path):
    results = json.loads((made / "linked/parity.json").read_text())["results"]
    told = {one["scenario"]: one for one in results}
    assert told[FEATURES]["positions"] == sum(n * m for n, m in seen.CALLS)
    assert told[PICTURES]["positions"] == 3 * (17 + 9)
    for name in (FEATURES, PICTURES):
        assert told[name]["passed"]
        assert not told[name]["vacuous"]
        assert told[name]["nothing"] > 1000 * told[name]["bound"]


def off(outputs: Any) -> Any:
    return [outputs[0] + np.float32(3e-4) * (np.arange(len(outputs[0])) == 0)[:, None]]


def test_parity_finds_a_tower_that_computes_another_thing(made: Path, found: Definition):
    engine, source = Engine(made / "packed", threads=1), open_checkpoint(made / "checkpoint")
    assert seen.compare_features(engine, found, source).passed
    run = engine.__dict__["_run_tower"]
    engine.__dict__["_run_tower"] = lambda inputs: off(run(inputs))
    assert not seen.compare_features(engine, found, source).passed


BLIND = {
    "no picture": lambda images: None,
    "another's features": lambda images: [
        type(one)(
            tuple(Picture.of_features(p.features[::-1]) for p in one.pictures), one.image_rows
        )
        for one in images
    ],
    "a token late": lambda images: [
        type(one)(one.pictures, np.roll(one.image_rows, 1)) for one in images
    ],
}


@pytest.mark.parametrize("how", BLIND)
def test_parity_finds_an_engine_that_does_not_see(
    how: str, made: Path, found: Definition, monkeypatch: pytest.MonkeyPatch
):
    engine, source = Engine(made / "packed", threads=1), open_checkpoint(made / "checkpoint")
    run = Session.run
    monkeypatch.setattr(
        Session, "run", lambda self, *given, images: run(self, *given, images=BLIND[how](images))
    )
    assert not seen.compare_rows(engine, found, found, source).passed


def test_other_programs_read_its_text(made: Path):
    assert set(Engine(made / "packed").manifest.about.clients.values()) == {""}
    report = parity(made / "packed", made / "checkpoint", client="hub", tokens=12)
    assert report.computes
    assert not {FEATURES, PICTURES} & {result.scenario for result in report.results}
    assert "open it too for text alone: genai, hub" in inspect(made / "packed").text()
    card = (made / "packed/README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card
    assert f"{PARAMETERS:,} for pictures besides" in card
    assert "- ONNX Runtime GenAI: `genai.onnx`, for text alone" in card


def test_text_alone(made: Path, lmcast: Any):
    about = Engine(made / "text").manifest.about
    assert about.vision is None
    assert [name for name, _ in about.graph.inputs[:5]][4].endswith(".past")
    assert not (made / "text" / VISION).exists()
    assert parity(made / "text", made / "checkpoint", tokens=12).passed
    status, out, _ = lmcast("inspect", made / "checkpoint", "--text-only")
    assert status == 0
    assert "pictures  " not in out
    assert "of vision_tower" in out
    status, _, told = lmcast("inspect", made / "linked", "--text-only")
    assert status == 2
    assert "--text-only are for checkpoints" in told


def without_files(folder: Path) -> None:
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink()


def strange_resize(folder: Path) -> None:
    file = folder / "preprocessor_config.json"
    write_json(file, {**json.loads(file.read_text()), "do_resize": False})


def strange_tower(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["window_size"] = 7
    write_json(folder / "config.json", config)


REFUSED = {
    "no files of a processor": (
        without_files, "preprocessor_config.json is missing, and processor_config.json too",
    ),
    "a processor that does something else": (strange_resize, "do_resize is False"),
    "a tower of more keys": (strange_tower, "vision_config.window_size"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_understood_is_refused_with_the_way_out(what: str, tmp_path: Path):
    change, named = REFUSED[what]
    tiny_mistral3(tmp_path / "checkpoint")
    change(tmp_path / "checkpoint")
    with pytest.raises(InputError) as refused:
        export(tmp_path / "checkpoint", tmp_path / "engine", parity=False)
    assert named in str(refused.value)
    assert "--text-only" in str(refused.value)
    assert os.listdir(tmp_path) == ["checkpoint"]
    export(tmp_path / "checkpoint", tmp_path / "engine", parity=False, text_only=True)


def test_a_recipe_quantizes_the_text_alone(made: Path, tmp_path: Path):
    def choose(name: str, weight: torch.nn.Parameter) -> str | None:
        return "int8" if name.endswith(("ffn.gate.weight", "ffn.up.weight")) else None

    recipe = round_weights(made / "checkpoint", tmp_path / "recipe", choose)
    engine = export(made / "checkpoint", tmp_path / "engine", recipe=recipe)
    quantized = engine.manifest.about.weights
    assert sum(each.tensors for name, each in quantized.items() if name != "float32") == 4
    assert np.array_equal(features(engine), features(Engine(made / "packed")))
    told = {one["scenario"]: one for one in (engine.summary().parity or {})["results"]}
    assert told[FEATURES]["passed"]
    assert told[PICTURES]["passed"]


# Lists name modules as the classes of tools had them, not as files do.
LISTED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


def test_a_text_in_fp8_has_its_tower_beside_it(made: Path, tmp_path: Path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(made / "checkpoint", folder)
    packed, _ = in_fp8(load_file(folder / "model.safetensors"), RAGGED)
    save_file(packed, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    section = blocks(RAGGED, modules_to_not_convert=LISTED)
    write_json(folder / "config.json", {**config, "quantization_config": section})
    engine = export(folder, tmp_path / "engine")
    assert engine.manifest.about.weights.keys() == {"e4m3 24x20", "float32"}
    assert (engine.summary().parity or {})["passed"]
    assert np.array_equal(features(engine), features(Engine(made / "packed")))


def test_parity_takes_pictures_in_files(made: Path, tmp_path: Path, lmcast: Any):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file, size in zip(files, [(20, 30), (9, 8)], strict=True):
        Image.fromarray(pixels(*size)).save(file)
    report = parity(made / "packed", made / "checkpoint", tokens=12, images=files)
    told = {result.scenario: result for result in report.results}
    assert told[FEATURES].positions == 12 + 2  # of 24x32 and 16x8 pixels, each 8x8 a token
    assert report.passed
    given = ("--against", made / "checkpoint", "--image", files[0])
    for engine, more, named in (
        ("text", (), "takes no pictures"),
        ("packed", ("--client", "hub"), "client and image"),
        ("packed", ("--image", tmp_path / "none.png"), "none.png"),
    ):
        status, _, error = lmcast("parity", made / engine, *given, *more)
        assert status == 2
        assert named in error
