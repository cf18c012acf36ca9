"""Pictures of Mistral Large 3 and Small 3.2 as Mistral stores them: vision_encoder, its names."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from files.mistral import PARAMS, changed, native, oracle, write
from tiny.pictures import tiny_mistral3
from tiny.towers import TOWERS, tables
from torch import Tensor

from lmcast import graphs
from lmcast.exporter.checkpoint import CheckpointError, open_checkpoint
from lmcast.exporter.checkpoint.processors import PICTURES, WHOLE
from lmcast.exporter.pipeline import processor_of
from lmcast.graphs import ConfigError, define, defined

VISION = {
    "vision_encoder.transformer.layers.0.attention.wq.weight": torch.ones(4, 4),
    "vision_language_adapter.w_in.weight": torch.ones(4, 4),
    "patch_merger.merging_layer.weight": torch.ones(4, 4),
    "pre_mm_projector_norm.weight": torch.ones(4),
}
ENCODER = {
    "adapter_bias": True, "add_pre_mm_projector_layer_norm": True, "hidden_size": 32,
    "image_break_token_id": 12, "image_end_token_id": 13, "image_size": 64, "image_token_id": 10,
    "intermediate_size": 40, "max_image_size": 32, "mm_projector_id": "patch_merge",
    "num_attention_heads": 2, "num_channels": 3, "num_hidden_layers": 2, "patch_size": 4,
    "rope_theta": 10000.0, "spatial_merge_size": 2,
}  # fmt: skip
OWN_NAMES = {
    "multi_modal_projector.norm": "pre_mm_projector_norm",
    "multi_modal_projector.patch_merger": "patch_merger",
    "multi_modal_projector.linear_1": "vision_language_adapter.w_in",
    "multi_modal_projector.linear_2": "vision_language_adapter.w_out",
    "vision_tower.": "vision_encoder.",
    "gate_proj": "w1", "down_proj": "w2", "up_proj": "w3",
    **{f"attention.{n}_proj": f"attention.w{n}" for n in "qkvo"},
}  # fmt: skip


def in_pairs(name: str, tensor: Tensor) -> Tensor:
    """Return queries and keys, which Hugging Face has in halves, in pairs, as Mistral has them."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return tensor
    heads = ENCODER["num_attention_heads"]
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()


@torch.no_grad()
def test_its_tower_is_hugging_faces(tmp_path):
    (tiny,) = (tiny for tiny in TOWERS if tiny.arch == "mistral3")
    vision = {**tiny.settings["vision_config"], "num_hidden_layers": 2, "hidden_act": "silu"}
    text = {**tiny.settings["text_config"], "hidden_size": 32, "rms_norm_eps": PARAMS["norm_eps"]}
    more = {"text_config": text, "vision_config": vision, "vision_feature_layer": -1}
    theirs = replace(tiny, settings={**tiny.settings, **more}).make()
    tensors = native(oracle({}))
    for name, tensor in theirs.model.state_dict().items():
        if not name.startswith("language_model"):
            own = name
            for hub, other in OWN_NAMES.items():
                own = own.replace(hub, other)
            tensors[own] = in_pairs(name, tensor)
    folder = write(tmp_path, changed(vision_encoder=ENCODER), tensors)
    source = open_checkpoint(folder)
    found = defined(source.config, source.tensors)
    assert found.tower is not None
    assert not found.left_out
    graphs.fill(found.tower, found.tower.model, source.read, torch.float32)
    for count, grid in tiny.calls:
        pixels = tiny.pixels(count, grid)
        given = {"patches": tiny.patches(pixels), **tables(tiny, {}, grid)}
        got = found.tower.model(**{name: given[name] for name in found.tower.model.inputs})
        # Sums in another order, of features up to 5, whose last place is 5e-7.
        torch.testing.assert_close(got, tiny.theirs(theirs, pixels), atol=2e-5, rtol=0)
    files = source.texts.processors
    assert files["preprocessor_config.json"]["size"] == {"longest_edge": 32}
    assert files["processor_config.json"] == {"patch_size": 4, "spatial_merge_size": 2}


def test_pictures_of_a_config_of_hugging_face_are_as_mistrals_own_says(tmp_path: Path):
    """Mistral Small 3.2 has no other file that tells of them; where there is one, it counts."""
    tiny_mistral3(tmp_path)
    files = {n: json.loads((tmp_path / n).read_text()) for n in (PICTURES, WHOLE)}
    (tmp_path / "params.json").write_text(
        json.dumps({"vision_encoder": {**ENCODER, "patch_size": 9}})
    )
    assert open_checkpoint(tmp_path).texts.processors == files
    for name in files:
        (tmp_path / name).unlink()
    (tmp_path / "params.json").write_text(json.dumps({"vision_encoder": ENCODER}))
    source = open_checkpoint(tmp_path)
    found = defined(source.config, source.tensors)
    processor = processor_of(found, source)
    assert processor is not None
    assert processor.image.sizes == {"longest": 32, "patch": 4, "merge": 2}
    (tmp_path / "params.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json is missing"):
        processor_of(found, open_checkpoint(tmp_path))


WRONG_ENCODERS = {
    "another projector": ({"mm_projector_id": ""}, "vision_encoder.mm_projector_id is ''"),
    "no norm": (
        {"add_pre_mm_projector_layer_norm": False}, "add_pre_mm_projector_layer_norm is False"
    ),
    "a key": ({"window": 8}, "vision_encoder.window = 8, which nothing reads"),
    "a missing key": ({"adapter_bias": None}, "vision_encoder.adapter_bias is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_ENCODERS)
def test_another_vision_encoder_is_refused(case, tmp_path):
    change, message = WRONG_ENCODERS[case]
    encoder = {k: v for k, v in {**ENCODER, **change}.items() if v is not None}
    params = changed(vision_encoder=encoder)
    source = open_checkpoint(write(tmp_path, params, {**native(oracle({})), **VISION}))
    with pytest.raises(ConfigError, match=re.escape(message)):
        defined(source.config, source.tensors)
    assert defined(source.config, source.tensors, text_only=True).tower is None


def test_the_vision_model_is_named_and_left_out(tmp_path):
    tensors = native(oracle({}))
    scale = {"layers.0.attention.k_fake_quantizer.qscale_act": torch.ones(())}
    params = changed(vision_encoder={"hidden_size": 4, "adapter_bias": False})
    source = open_checkpoint(write(tmp_path, params, {**tensors, **VISION, **scale}))
    shapes = {n: t.shape for n, t in source.tensors.items()}
    found = define(source.config, shapes, text_only=True)
    assert set(found.binding.ignored) == {*VISION, *scale}
    for module in ("vision_encoder", "vision_language_adapter", "patch_merger", "pre_mm_projector"):
        assert module in found.left_out
