"""Engines with quantized weights: their bytes, their arithmetic, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from files.fp8 import CONFIG
from files.quantized import compressed, small, write
from files.quantized import quantized as files_of
from files.rounded import round_weights
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file
from tiny import CLASSES, VOCABULARY, Case, make
from torch import Tensor, nn

from lmcast.calib.formats import WEIGHTS
from lmcast.calib.recipe import tensors
from lmcast.exporter import export
from lmcast.exporter.checkpoint import identified
from lmcast.exporter.engine.manifest import EngineError, write_manifest
from lmcast.exporter.passes.nbits_matmul import rounded_products
from lmcast.exporter.pipeline import understand
from lmcast.exporter.prove import rounding_cost
from lmcast.exporter.prove.parity import parity
from lmcast.exporter.runtime.engine import Engine
from lmcast.exporter.weights.integer_forms import KERNEL_CODES
from lmcast.exporter.weights.place import WeightsError
from lmcast.exporter.weights.recipe_files import RecipeFiles, open_recipe
from lmcast.graphs import Definition
from lmcast.graphs.blocks.quantized import InputFormat
from lmcast.graphs.weights.elements import E2M1, E4M3, ELEMENTS, INT4, Element
from lmcast.graphs.weights.quantized import Quantized
from lmcast.plugins.quantize.quantize_input import BLOCKS

WIDE = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 3, "head_dim": 32}
ROUTED = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
MODELS = {
    "qwen3": WIDE,
    "qwen3_moe": {**WIDE, **ROUTED},
    "gemma3_text": {**WIDE, "sliding_window": 8, "layer_types": ["full_attention"] * 3},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints whose matrices have 128 columns, as the widest blocks need."""
    return {
        name: make(Case(name, name, *CLASSES[name], settings), tmp_path_factory.mktemp("wide"))
        for name, settings in MODELS.items()
    }


def every_format(only: Callable[[str], bool] = lambda format: True) -> Any:
    """Return what gives the matrices of a model one format after the other, embeddings too."""
    formats = cycle(name for name in WEIGHTS if only(name))

    def choose(name: str, parameter: nn.Parameter) -> str | None:
        return next(formats) if parameter.dim() > 1 and "router" not in name else None

    return choose


@pytest.fixture(scope="module")
def recipes(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recipes")
    return {n: round_weights(models[n], folder / n, every_format()) for n in MODELS}


def opened(model: Path, recipe: Path) -> tuple[Definition, RecipeFiles]:
    source, identities = identified(model)
    return understand(source, (), False), open_recipe(recipe, identities)


def quantized(recipe: Path) -> dict[str, Quantized]:
    """Return what a recipe holds, by parameter."""
    stored: dict[str, Tensor] = {}
    for file in (recipe / "weights").iterdir():
        stored |= load_file(file)
    fields = json.loads((recipe / "recipe.json").read_text())["weights"]
    found = {}
    for name, scheme in fields.items():
        known = next(
            f.scheme
            for f in WEIGHTS.values()
            if [
                f.scheme.element.name,
                list(f.scheme.block),
                f.scheme.shared,
                str(f.scheme.scale)[6:],
            ]
            == [scheme["element"], scheme["block"], scheme["shared"], scheme["scale"]]
        )
        at = tensors(name, known)
        shared = stored[at.shared] if at.shared else None
        found[name] = Quantized(known, stored[at.packed], stored[at.scales], shared)
    return found


def written(engine: Engine) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in (engine.directory / "weights").iterdir():
        found |= load_file(file)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_cpu_engine_has_every_number_exactly(name: str, models, recipes, tmp_path: Path):
    # The export proves parity, or nothing would be written.
    engine = export(models[name], tmp_path / "engine", recipe=recipes[name], tokenizer=False)
    assert engine.manifest.fields["graph"]["prepack"]
    held, seen = written(engine), set[Element]()
    for parameter, weight in quantized(recipes[name]).items():
        element = weight.scheme.element
        seen.add(element)
        codes, scales = held[f"{parameter}.codes"], held[f"{parameter}.scales"]
        numbers = element.decode(weight.codes)
        if element == E4M3:
            assert codes.dtype == torch.float16
            stored, half = codes.float(), 1.0
        else:
            if element == INT4:
                codes = torch.stack([codes & 15, codes >> 4], -1)
            half = 0.5 if element == E2M1 else 1.0
            stored = (codes.float() - KERNEL_CODES[element].zero) * half
        assert torch.equal(stored.reshape(numbers.shape), numbers)
        of_row = weight.spread(weight.factors()).expand(numbers.shape)
        assert scales.dtype == torch.float32
        each = scales.reshape(-1, 1).expand(-1, numbers.numel() // scales.numel())
        assert torch.equal(each.reshape(numbers.shape), of_row * half)
    assert seen == set(ELEMENTS.values())


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe"])
def test_portable_graph_says_the_same(name: str, models, recipes, tmp_path: Path):
    engine = export(
        models[name], tmp_path / "engine", "onnx", recipe=recipes[name], parity=False,
        tokenizer=False,
    )  # fmt: skip
    onnx.checker.check_model(str(engine.directory / "engine.onnx"), full_check=True)
    graph, held = ir.load(engine.directory / "engine.onnx"), written(engine)
    for parameter, weight in quantized(recipes[name]).items():
        codes = held[f"{parameter}.codes"].view(torch.uint8)
        assert torch.equal(codes.flatten(), weight.codes.flatten()), "the bits of the recipe"
        assert torch.equal(evaluated(graph, parameter), weight.dequantize())


def evaluated(graph: ir.Model, name: str) -> Tensor:
    """Return a value of a graph that weights alone make, by ONNX's reference evaluator."""
    value = next(v for node in graph.graph for v in node.outputs if v.name == name)
    nodes, waiting = [], [value]
    while waiting:
        maker = waiting.pop().producer()
        if maker is not None:
            nodes.insert(0, maker)
            waiting += [v for v in maker.inputs if v is not None]
    weights = [v for v in graph.graph.initializers.values() if v.name.startswith(f"{name}.")]
    proto = onnx.helper.make_graph(
        [ir.to_proto(node) for node in nodes], "weight", [],
        [onnx.helper.make_value_info(name, onnx.TypeProto())],
        [ir.to_proto(ir.Tensor(v.const_value.numpy(), name=v.name)) for v in weights],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 24)]
    model = onnx.helper.make_model(proto, ir_version=11, opset_imports=opsets)
    return torch.from_numpy(np.array(ReferenceEvaluator(model).run(None, {})[0]))


def rounded_layers(found: Definition) -> tuple[dict[str, InputFormat], dict[str, Tensor]]:
    """Give the linear layers of a model all ways of rounding inputs, one after the other."""
    ways = [*map(InputFormat, BLOCKS)]
    ways += [
        InputFormat("fp8", static=True, smooth=True),
        InputFormat("int8", static=True),
        InputFormat("nvfp4", static=True),
        InputFormat("mxfp4", rotation=32),
        InputFormat(smooth=True),
    ]
    inputs, more, way = {}, {}, cycle(ways)
    for name, module in found.model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("layers"):
            given = inputs[name] = next(way)
            if given.static:
                more[f"{name}.input_scale"] = torch.tensor(0.02)
            if given.smooth:
                more[f"{name}.smooth"] = torch.linspace(0.5, 1.5, module.weight.shape[1])
    return inputs, more


@pytest.mark.parametrize("target", ["cpu", "onnx"])
def test_inputs_are_rounded_in_every_way(target: str, models, tmp_path: Path):
    source, _ = identified(models["qwen3"])
    inputs, more = rounded_layers(understand(source, (), False))
    runs = every_format(lambda format: format in ("fp8-channel", "int8", "int4"))
    recipe = round_weights(models["qwen3"], tmp_path / "recipe", runs, inputs, more)
    engine = export(models["qwen3"], tmp_path / "engine", target, recipe=recipe, tokenizer=False)
    proto = onnx.load(engine.directory / "engine.onnx", load_external_data=False)
    assert "\n  without rounding of inputs: within " in engine.summary().text()
    bodies = [f for f in proto.functions if f.name.startswith("quantize_input")]
    assert len(bodies) == len(BLOCKS) + 4
    report = parity(engine.directory, models["qwen3"], recipe=recipe, tokens=8)
    assert report.passed
    assert report.results[0].scenario == "exact"


def test_products_in_fp16(models, recipes, tmp_path: Path):
    given = {"recipe": recipes["gemma3_text"], "tokenizer": False, "dtype": "float16"}
    engine = export(models["gemma3_text"], tmp_path / "engine", **given)
    operators = {n.op_type for n in ir.load(engine.directory / "engine.onnx").graph}
    assert {"MatMulNBits", "GatherBlockQuantized"} & operators


def test_a_wrong_number_is_found(models, recipes, tmp_path: Path):
    engine = export(
        models["qwen3"], tmp_path / "engine", recipe=recipes["qwen3"], parity=False, tokenizer=False
    )
    (file,) = (engine.directory / "weights").iterdir()
    data = bytearray(file.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    begin, end = header["layers.1.ffn.up.weight.scales"]["data_offsets"]
    at = 8 + int.from_bytes(data[:8], "little") + begin
    scales = np.frombuffer(data, np.float32, (end - begin) // 4, at).copy()
    scales[0] *= 1.5
    data[at : at + len(scales.tobytes())] = scales.tobytes()
    file.write_bytes(data)
    write_manifest(engine.directory, engine.manifest.fields)  # else its hash says so
    report = parity(engine.directory, models["qwen3"], recipe=recipes["qwen3"])
    assert not report.results[0].passed, "exact"


def test_engine_says_what_it_is(models, recipes, tmp_path: Path, lmcast):
    engine = tmp_path / "engine"
    options = ["--recipe", recipes["qwen3"], "--no-tokenizer", "--no-parity", "-o", engine]
    assert lmcast("export", models["qwen3"], *options)[0] == 0
    status, out, _ = lmcast("inspect", engine, "--json")
    assert status == 0
    assert set(WEIGHTS) < set(json.loads(out)["weights"])
    made_with = json.loads((engine / "engine.json").read_text())["recipe"]
    assert made_with["formats"].keys() == WEIGHTS.keys()
    assert made_with["inputs"] == {}
    status, _, err = lmcast("parity", engine, "--against", models["qwen3"])
    assert status == 2
    assert "--recipe" in err
    other = round_weights(models["qwen3"], tmp_path / "other", every_format(lambda f: f == "int8"))
    status, _, err = lmcast("parity", engine, "--against", models["qwen3"], "--recipe", other)
    assert status == 2
    assert "another recipe" in err


def test_activations(models, recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rounding_cost, "text_of", lambda source: None)
    text = torch.randint(VOCABULARY, (1, 128), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(rounding_cost, "chunks", lambda *given: text)
    given = {"recipe": recipes["qwen3_moe"], "tokenizer": False, "parity": False, "context": 128}
    engine = export(models["qwen3_moe"], tmp_path / "int8", **given)
    other = export(models["qwen3_moe"], tmp_path / "exact", activations="exact", **given)
    fields = [each.manifest.fields["activations"] for each in (engine, other)]
    assert fields == ["int8", "exact"]
    assert rounded_products(ir.load(engine.directory / "engine.onnx"))
    assert not rounded_products(ir.load(other.directory / "engine.onnx"))
    assert "kernels round inputs" in engine.summary().text()
    assert "kernels round inputs" not in other.summary().text()
    exact = Engine(engine.directory, exact=True)
    found = {name: each.logits(text.numpy()) for name, each in
             (("int8", engine), ("exact", other), ("run exact", exact))}  # fmt: skip
    spread = float(np.ptp(found["exact"], -1).mean())
    assert np.abs(found["run exact"] - found["exact"]).max() < 1e-5 * spread
    assert np.abs(found["int8"] - found["exact"]).max() > 1e-3 * spread
    report = parity(engine.directory, models["qwen3_moe"], recipe=given["recipe"], exact=True)
    assert report.passed and report.results[0].scenario == "prefill"
    assert max(result.bound for result in report.results) < 1e-3 * spread  # as nothing rounds
    source, _ = identified(models["qwen3_moe"])
    assert rounding_cost.rounding_cost(engine, source) is None  # it has no text
    source = replace(source, texts=replace(source.texts, tokenizer=b"{}"))
    cost = rounding_cost.rounding_cost(engine, source)
    assert cost is not None and cost.tokens == 128 and 0 < cost.kl < 0.1
    with pytest.raises(EngineError, match=r"does not read --activations; .*--target cpu"):
        export(models["qwen3"], tmp_path / "onnx", "onnx", activations="exact", tokenizer=False)
    with pytest.raises(EngineError, match="--activations int8 changes nothing"):
        export(models["qwen3"], tmp_path / "plain", activations="int8", tokenizer=False)
    with pytest.raises(EngineError, match="exact changes nothing"):
        Engine(other.directory, exact=True)
    with pytest.raises(EngineError, match="exact and prepack"):
        Engine(engine.directory, prepack=True, exact=True)


def test_refused(models, recipes, tmp_path: Path):
    model, recipe = models["qwen3"], recipes["qwen3"]
    for target, more, error, words in (
        ("onnx", {}, EngineError, "E2M1.*--target cpu, or --no-parity"),
        ("cpu", {"weights": "link"}, WeightsError, "is quantized.*--weights copy"),
    ):
        with pytest.raises(error, match=words):
            export(model, tmp_path / "engine", target, recipe=recipe, tokenizer=False, **more)
        assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("preset", ["W4A16_ASYM", "NVFP4"])
def test_what_others_quantized_stays_as_it_is(preset: str, tmp_path: Path):
    """Zero points, and scales that are divided by the one they share."""
    config, plain = small("qwen3/plain", tmp_path / "plain")
    settings, pack = compressed(preset, **({"group_size": 32} if preset == "W4A16_ASYM" else {}))
    stored, exact = files_of(plain, pack)
    made = write(tmp_path / "made", config | {CONFIG: settings}, stored)
    export(made, tmp_path / "cpu", tokenizer=False)
    engine = export(made, tmp_path / "onnx", "onnx", parity=False, tokenizer=False)
    graph = ir.load(engine.directory / "engine.onnx")
    for layer, theirs in (("mixer.q", "self_attn.q_proj"), ("ffn.down", "mlp.down_proj")):
        value = evaluated(graph, f"layers.1.{layer}.weight")
        assert torch.equal(value, exact[f"model.layers.1.{theirs}.weight"])
