"""Towers of pictures against Hugging Face's eager code: features, names in every layout, keys."""

import json
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file
from tiny import HUB_NAMES, gap
from tiny.towers import TEXT, TOWERS, Tiny, tables
from torch import Tensor

from lmcast.exporter import passes
from lmcast.exporter.backends.ort import ort
from lmcast.exporter.graph.lowering import PARTS
from lmcast.exporter.graph.tower import tower_graph
from lmcast.graphs import ConfigError, WeightError, archs, define
from lmcast.graphs.archs.multimodal import Multimodal
from lmcast.graphs.blocks.tower import Tower
from lmcast.graphs.towers.record import TowerArch
from lmcast.graphs.weights.sources import load_into

Tensors = dict[str, Tensor]
BY_TINY = pytest.mark.parametrize("tiny", TOWERS, ids=lambda tiny: tiny.arch)
BESIDE = ("language_model.", "model.language_model.", "lm_head.")
# A few 1e-6 of features up to 5, of which as much is Hugging Face's own distance from fp64.
FP32 = 2e-5


def kind(arch: str) -> TowerArch:
    found = archs.get(arch)
    assert isinstance(found, Multimodal) and found.tower is not None
    return found.tower


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Tiny], tuple[Any, dict, Tensors]]:
    """Hugging Face's model, its config.json, and its tensors as the hub has them."""

    @cache
    def get(tiny: Tiny) -> tuple[Any, dict, Tensors]:
        with torch.no_grad():
            model = tiny.make()
        directory: Path = tmp_path_factory.mktemp(tiny.arch)
        model.save_pretrained(directory)
        config = json.loads((directory / "config.json").read_text())
        tensors = load_file(directory / "model.safetensors")
        return model, config, {hub_name(tiny.arch, name): t for name, t in tensors.items()}

    return get


def hub_name(arch: str, name: str) -> str:
    """Return a name that Hugging Face writes as files of the hub have it."""
    if arch == "gemma3" and name.startswith("vision_tower."):
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return HUB_NAMES[arch](name) if arch in HUB_NAMES else name


def built(kind: TowerArch, config: dict[str, Any], family: str = "mistral3") -> Tower:
    read = kind.read(config, family)
    text = SimpleNamespace(hidden_size=TEXT["hidden_size"], rms_norm_eps=1e-6)
    text.rms_norm_eps = config.get("text_config", {}).get("rms_norm_eps", 1e-6)
    with torch.device("meta"):
        return kind.build(read, text).eval()


def filled(arch: str, config: dict[str, Any], tensors: Tensors) -> Tower:
    """Return a tower with weights from these tensors."""
    own = kind(arch).as_stored(tensors)
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    own.require_stored(own.read(config, arch), shapes)
    tower = built(own, config, arch)
    binding = own.bind(own.read(config, arch), tower, shapes)
    tower = tower.to_empty(device="cpu")
    for name, parameter in tower.named_parameters():
        load_into(parameter.data, binding.sources[name], tensors.__getitem__)
    return tower


def features(tiny: Tiny, config: dict[str, Any], tower: Tower, call: int) -> Tensor:
    count, grid = tiny.calls[call]
    given = {"patches": tiny.patches(tiny.pixels(count, grid)), **tables(tiny, config, grid)}
    found: Tensor = tower(**{name: given[name] for name in tower.inputs})
    return found


@BY_TINY
@torch.no_grad()
def test_features_match_hugging_face(tiny, made, report):
    model, config, tensors = made(tiny)
    tower, exact = filled(tiny.arch, config, tensors), deepcopy(model).double()
    for call, (count, grid) in enumerate(tiny.calls):
        pixels = tiny.pixels(count, grid)
        want, true = tiny.theirs(model, pixels), tiny.theirs(exact, pixels.double())
        mine = features(tiny, config, tower, call)
        bound = min(1e-3, 4 * gap(want, true) + FP32)
        row = {"tower": tiny.arch, "grid": str(grid), "error": gap(mine, want), "bound": bound}
        report("Features against Hugging Face, fp32", row)
        assert mine.shape == want.shape
        assert want.std() > 0.1  # features that could hide nothing
        assert gap(mine, want) <= bound


@BY_TINY
@torch.no_grad()
def test_pictures_of_a_call_do_not_see_each_other(tiny, made):
    _, config, tensors = made(tiny)
    tower = filled(tiny.arch, config, tensors).double()
    count, grid = tiny.calls[0]
    given = {"patches": tiny.patches(tiny.pixels(count, grid)), **tables(tiny, config, grid)}
    given = {name: given[name] for name in tower.inputs}
    whole = features(tiny, config, tower, 0)
    last = tower(**{**given, "patches": given["patches"][-1:]})
    # In fp64 another order of the same sums is about 1e-14 of features up to 5.
    assert gap(whole[-len(last) :], last) < 1e-10


def below_model(name: str) -> str:
    return f"model.{name}"


def without_vision_model(name: str) -> str:
    return name.replace("vision_tower.vision_model.", "vision_tower.")


LAYOUTS: list[tuple[str, Callable[[str], str]]] = [
    *((arch, below_model) for arch in ("mistral3", "gemma3", "llama4", "kimi_k25")),
    ("gemma3", without_vision_model),
    ("gemma3", lambda name: below_model(without_vision_model(name))),
    ("qwen3_5", lambda name: name.removeprefix("model.")),
]


@pytest.mark.parametrize(("arch", "rename"), LAYOUTS)
@torch.no_grad()
def test_names_in_other_layouts_are_read(arch, rename, made):
    (tiny,) = (tiny for tiny in TOWERS if tiny.arch == arch)
    _, config, tensors = made(tiny)
    renamed = {rename(n): t for n, t in tensors.items() if not n.startswith(BESIDE)}
    want = features(tiny, config, filled(arch, config, tensors), 0)
    assert torch.equal(features(tiny, config, filled(arch, config, renamed), 0), want)


@BY_TINY
@torch.no_grad()
def test_names_of_hugging_faces_modules_are_read(tiny, made):
    """Kimi's modules have queries and keys in halves, files of the hub in pairs."""
    model, config, tensors = made(tiny)
    for call in range(len(tiny.calls)):
        want = features(tiny, config, filled(tiny.arch, config, tensors), call)
        got = features(tiny, config, filled(tiny.arch, config, dict(model.state_dict())), call)
        assert gap(got, want) <= FP32


def without(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: t for n, t in tensors.items() if not n.startswith(prefix)}


WRONG_TENSORS: dict[str, tuple[str, Callable[[Tensors], Tensors], str]] = {
    "one is missing": ("mistral3", without("vision_tower.ln_pre"), r"ln_pre.weight is missing"),
    "one too many": (
        "mistral3", lambda t: {**t, "vision_tower.ln_post.weight": torch.ones(32)},
        r"vision_tower.ln_post.weight \[32\] belongs to the vision tower, but nothing reads it",
    ),
    "of another shape": (
        "qwen3_5", lambda t: {**t, "model.visual.pos_embed.weight": torch.ones(9, 32)},
        r"model.visual.pos_embed.weight has shape \[9, 32\]; config.json asks for \[25, 32\]",
    ),
    "none is stored": (
        "gemma3", lambda t: {"language_model.model.norm.weight": torch.ones(20)},
        r"no tensor of vision_tower or multi_modal_projector is stored, but config.json",
    ),
    "in two layouts": (
        "llama4", lambda t: {**t, "model.vision_model.extra": torch.ones(1)},
        r"model.vision_model.extra are named in two ways",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_tensors_that_do_not_fit_are_refused(case, made):
    arch, change, message = WRONG_TENSORS[case]
    (tiny,) = (tiny for tiny in TOWERS if tiny.arch == arch)
    _, config, tensors = made(tiny)
    with pytest.raises(WeightError, match=message):
        filled(arch, config, change(tensors))


# What shapes of later values would depend on, or a runtime would run apart.
DYNAMIC = {"If", "Loop", "Scan", "NonZero", "Unique", "Compress", "ScatterND", "ScatterElements"}


@BY_TINY
@torch.no_grad()
def test_a_graph_has_each_part_once_and_computes_the_same(tiny, made):
    """As any runtime gets it, and as ONNX Runtime's CPU does."""
    _, config, tensors = made(tiny)
    tower = filled(tiny.arch, config, tensors)
    portable = tower_graph(deepcopy(tower).to("meta"), "vision.")
    kinds = [name for domain, name, _ in portable.functions if domain == PARTS]
    assert len(kinds) == len(set(kinds)) <= 4
    calls = [node.op_type for node in portable.graph if node.domain == PARTS]
    assert calls.count("Block0") == len(tower.blocks) > 1
    for name, parameter in tower.named_parameters():
        value = portable.graph.initializers[f"vision.{name}"]
        value.const_value = ir.tensor(parameter.numpy(), name=value.name)
    for rewrites in (passes.PORTABLE, passes.CPU):
        model = portable.clone()
        passes.run(model, rewrites)
        nodes = [n for part in (model.graph, *model.functions.values()) for n in part.all_nodes()]
        assert not DYNAMIC & {node.op_type for node in nodes}
        session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
        for call, (count, grid) in enumerate(tiny.calls):
            given = {"patches": tiny.patches(tiny.pixels(count, grid))}
            given |= tables(tiny, config, grid)
            (got,) = session.run(None, {name: given[name].numpy() for name in tower.inputs})
            assert gap(torch.from_numpy(got), features(tiny, config, tower, call)) <= FP32


@pytest.mark.parametrize(("arch", "key"), [("gemma3", "num_hidden_layers"), ("qwen3_5", "depth")])
def test_more_layers_than_tensors_are_refused_before_they_are_built(arch, key, made):
    (tiny,) = (tiny for tiny in TOWERS if tiny.arch == arch)
    _, config, tensors = made(tiny)
    config = {**config, "vision_config": {**config["vision_config"], key: 4096}}
    with pytest.raises(ConfigError, match=rf"vision_config.{key} is 4096, but the checkpoint has"):
        define(config, {name: tuple(t.shape) for name, t in tensors.items()})
