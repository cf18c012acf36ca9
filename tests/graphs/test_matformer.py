"""Slices of a MatFormer: against Hugging Face's model of the same sliced weights, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from engine_errors import errors
from safetensors.torch import load_file, save_file
from tiny import Case, case, make, prompt
from tiny.gemma3n import FAMILY, FULL, PLAIN, SLIDING, SMALL
from torch import Tensor

from lmcast.exporter import export
from lmcast.exporter.cli import cli
from lmcast.exporter.prove.parity import parity
from lmcast.graphs import ConfigError, Definition, define, fill
from lmcast.graphs.blocks.decoder import Decoder
from lmcast.graphs.matformer import sliced

LAYERS, WIDTH = 12, SMALL["hidden_size_per_layer_input"]
WHOLE: dict[str, Any] = {
    **SMALL,
    "activation_sparsity_pattern": [0.5, 0.95] + [0.0] * 10,
    "altup_num_inputs": 2,
    "intermediate_size": [48, 56] * 6,
    "layer_types": [SLIDING, SLIDING, FULL] * 4,
    "num_hidden_layers": LAYERS,
    "num_kv_shared_layers": 6,
    "rms_norm_eps": 0.5,  # see tiny_gemma3n
    "rope_parameters": {FULL: {**PLAIN, "rope_theta": 5000.0}, SLIDING: PLAIN},
    "vocab_size_per_layer_input": 90,
}
# Slice -> the layers it keeps. The last ones use keys and values of 4 (windowed) and 5.
SLICES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "one width": ({"intermediate_size": 20}, list(range(LAYERS))),
    "widths": ({"intermediate_size": [48, 7, 1, 56] + [24] * 8}, list(range(LAYERS))),
    "shared layers out": ({"skip": [6, 7, 8]}, [*range(6), 9, 10, 11]),
    "first out, widths": (
        {"layers": list(range(3, LAYERS)), "intermediate_size": [40, 48] * 4 + [8]},
        list(range(3, LAYERS)),
    ),
    "runs of 1 and 8": ({"skip": [1, 2, 3]}, [0, *range(4, LAYERS)]),
    "nothing shared": ({"layers": [0, 1, 2, 3]}, [0, 1, 2, 3]),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Case("gemma3n_text/matformer", "gemma3n_text", *FAMILY.classes["gemma3n_text"], WHOLE)
    return make(made, tmp_path_factory.mktemp("whole"))


def theirs(directory: Path, given: dict[str, Any], kept: list[int]) -> torch.nn.Module:
    """Return Hugging Face's model of the sliced config, with weights cut by hand."""
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    config = json.loads((directory / "config.json").read_text())
    widths = given.get("intermediate_size", [config["intermediate_size"][i] for i in kept])
    config |= {
        "num_hidden_layers": len(kept),
        "intermediate_size": widths if isinstance(widths, list) else [widths] * len(kept),
        "layer_types": [config["layer_types"][i] for i in kept],
        "activation_sparsity_pattern": [config["activation_sparsity_pattern"][i] for i in kept],
        "num_kv_shared_layers": sum(i >= 6 for i in kept),
    }
    model = Gemma3nForCausalLM(Gemma3nTextConfig.from_dict(config))
    stored = load_file(directory / "model.safetensors")
    columns = torch.cat([torch.arange(i * WIDTH, (i + 1) * WIDTH) for i in kept])
    cut: dict[str, Tensor] = {}
    for name, parameter in model.state_dict().items():
        old = name
        if name.startswith("model.layers."):
            number, _, rest = name.removeprefix("model.layers.").partition(".")
            old = f"model.layers.{kept[int(number)]}.{rest}"
        value = stored["model.embed_tokens.weight" if name == "lm_head.weight" else old]
        if "embed_tokens_per_layer" in name:
            value = value[:, columns]
        elif "per_layer_model_projection" in name:
            value = value[columns]
        elif ".mlp.down_proj" in name:
            value = value[:, : parameter.shape[1]]
        elif ".mlp." in name:
            value = value[: parameter.shape[0]]
        cut[name] = value
    model.load_state_dict(cut)
    model.set_attn_implementation("eager")
    return model.eval()


def understood(directory: Path) -> Definition:
    config = json.loads((directory / "config.json").read_text())
    tensors = load_file(directory / "model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return define(config, shapes, text_only=True)


def ours(directory: Path, given: dict[str, Any], dtype: torch.dtype = torch.float32) -> Decoder:
    part = sliced(understood(directory), given)
    fill(part, part.model, load_file(directory / "model.safetensors").__getitem__, dtype)
    return part.model


@pytest.mark.parametrize("name", SLICES)
@torch.no_grad()
def test_slice_is_hugging_faces_model_of_the_sliced_weights(name: str, whole: Path):
    given, kept = SLICES[name]
    ids = prompt()
    want = theirs(whole, given, kept)(ids, use_cache=False).logits
    # 1e-5: both sides run the same operations in fp32, on logits near 2
    torch.testing.assert_close(ours(whole, given)(ids), want, atol=1e-5, rtol=0)
    assert (want - ours(whole, {"skip": []})(ids)).abs().max() > 1e-3


@pytest.mark.parametrize("weights", ["copy", "link"])
@torch.no_grad()
def test_engine_of_a_slice(weights: Any, whole: Path, tmp_path: Path):
    given, _ = SLICES["runs of 1 and 8"]
    given = {**given, "intermediate_size": 20}
    (tmp_path / "slice.json").write_text(json.dumps(given))
    engine = export(
        whole,
        tmp_path / "engine",
        weights=None if weights == "copy" else weights,
        tokenizer=False,
        context=64,
        matformer=tmp_path / "slice.json",
    )
    assert engine.linked == (weights == "link")
    rough, exact = ours(whole, given), ours(whole, given, torch.float64)
    assert errors(engine, rough, exact).share <= 1
    assert parity(tmp_path / "engine", whole, tokens=12).passed
    assert engine.summary().parameters == sum(p.numel() for p in rough.parameters())
    assert engine.manifest.fields["layers"] == 9


@torch.no_grad()
def test_rows_of_the_slice_come_from_where_they_are_stored(whole: Path):
    part = sliced(understood(whole), SLICES["shared layers out"][0])
    assert "tensors" in part.left_out
    assert not {name for name in part.binding.tensors() if ".layers.7." in name}
    assert {name for name in part.binding.ignored if ".layers.7." in name}
    assert part.config.num_kv_shared_layers == 3
    assert [bool(states) for states in part.model.states()] == [True] * 6 + [False] * 3


REFUSED: list[tuple[Any, str]] = [
    ({}, "says nothing"),
    ({"width": 8}, "width; accepted: intermediate_size, layers, skip"),
    ({"intermediate_size": [8] * 11}, "intermediate_size has 11 entries for 12 layers"),
    ({"skip": [6, 7, 8], "intermediate_size": [8] * 12}, "has 12 entries for 9 layers"),
    ({"intermediate_size": [48, 57] + [8] * 10}, "intermediate_size of layer 1 is 57; it has 56"),
    ({"intermediate_size": 49}, "intermediate_size of layer 0 is 49; it has 48"),
    ({"intermediate_size": 0}, "intermediate_size is 0"),
    ({"intermediate_size": [8.5] * 12}, "intermediate_size is .8.5, .*an integer"),
    ({"intermediate_size": "2_048 * 4"}, "intermediate_size is '2_048 [*] 4'"),
    ({"skip": [12]}, "skip is .12.; accepted: rising numbers below 12"),
    ({"skip": [-1]}, r"skip\[0\] is -1"),
    ({"layers": [2, 1]}, "layers is .2, 1.; accepted"),
    ({"layers": [0, 0]}, "layers is .0, 0.; accepted"),
    ({"layers": [0], "skip": [1]}, "layers and skip"),
    ({"skip": list(range(12))}, "no layer is left"),
    ({"layers": []}, "no layer is left"),
    ({"skip": [6]}, "layer 8 breaks the pattern"),
    ({"skip": [3, 4, 5]}, "layer 4 is left out, whose keys and values layer 6 uses"),
]


@pytest.mark.parametrize(("given", "named"), REFUSED, ids=[str(g)[:50] for g, _ in REFUSED])
def test_a_slice_that_does_not_fit_is_refused_by_name(given: Any, named: str, whole: Path):
    with pytest.raises(ConfigError, match=named) as error:
        sliced(understood(whole), given, "e2b.json")
    assert str(error.value).startswith("e2b.json: ")
    assert "\n" not in str(error.value)


def test_other_architectures_have_no_slices(tmp_path: Path):
    found = understood(make(case("gemma3_text/derived types"), tmp_path))
    with pytest.raises(ConfigError, match="gemma3_text is no MatFormer; accepted: gemma3n"):
        sliced(found, {"intermediate_size": 8})


@pytest.mark.parametrize(("text", "named"), [("[1]", "object"), ("{", "JSON"), (None, "opened")])
def test_command_line_names_a_slice_it_cannot_read(text: Any, named: str, whole: Path, tmp_path):
    file = tmp_path / "slice.json"
    if text is not None:
        file.write_text(text)
    command = ["export", str(whole), "-o", str(tmp_path / "e"), "--no-tokenizer"]
    result = CliRunner().invoke(cli, [*command, "--matformer-config", str(file)])
    assert result.exit_code != 0
    assert named in str(result.exception or result.output)
    assert str(file) in str(result.exception or result.output)
    assert not (tmp_path / "e").exists()


@torch.no_grad()
def test_slice_of_the_text_of_a_multimodal_checkpoint(whole: Path, tmp_path: Path):
    config = json.loads((whole / "config.json").read_text())
    tensors = load_file(whole / "model.safetensors")
    named = {n.replace("model.", "model.language_model.", 1): t for n, t in tensors.items()}
    named["model.vision_tower.stem.weight"] = torch.zeros(3)
    save_file(named, tmp_path / "model.safetensors")
    outer = {"model_type": "gemma3n", "text_config": config, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    given, _ = SLICES["shared layers out"]
    ids = prompt()
    assert torch.equal(ours(tmp_path, given)(ids), ours(whole, given)(ids))
