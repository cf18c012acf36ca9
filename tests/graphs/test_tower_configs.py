"""What config.json says of towers: what is read, in every spelling, and what is refused."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lmcast.graphs import ConfigError, archs
from lmcast.graphs.archs.multimodal import Multimodal
from lmcast.graphs.config.reading import UnreadKeys
from lmcast.graphs.towers.record import TowerArch

Raw = dict[str, Any]


def kind(arch: str) -> TowerArch:
    found = archs.get(arch)
    assert isinstance(found, Multimodal) and found.tower is not None
    return found.tower


# Of released files, whole, and the width of their texts; `parameters` are what Hugging Face's
# classes of the same config count on meta beside the text, without a head that gives no feature.
REAL: dict[str, tuple[str, Raw, int, int]] = {
    "google/gemma-3-4b-it": (
        "gemma3",
        {
            "boi_token_index": 255999, "eoi_token_index": 256000, "image_token_index": 262144,
            "initializer_range": 0.02, "mm_tokens_per_image": 256,
            "vision_config": {
                "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
                "model_type": "siglip_vision_model", "num_attention_heads": 16,
                "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
            },
        },
        2560, 419816304,
    ),
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": (
        "mistral3",
        {
            "image_token_index": 10, "multimodal_projector_bias": False,
            "projector_hidden_act": "gelu", "spatial_merge_size": 2, "vision_feature_layer": -1,
            "vision_config": {
                "attention_dropout": 0.0, "head_dim": 64, "hidden_act": "silu",
                "hidden_size": 1024, "image_size": 1540, "initializer_range": 0.02,
                "intermediate_size": 4096, "model_type": "pixtral", "num_attention_heads": 16,
                "num_channels": 3, "num_hidden_layers": 24, "patch_size": 14,
                "rope_theta": 10000.0,
            },
        },
        5120, 438958080,
    ),
    "mistralai/Devstral-Small-2-24B-Instruct-2512": (
        "mistral3",
        {
            "image_token_index": 10, "multimodal_projector_bias": False,
            "projector_hidden_act": "gelu", "spatial_merge_size": 2, "vision_feature_layer": -1,
            "vision_config": {
                "attention_dropout": 0.0, "head_dim": 64, "hidden_act": "silu",
                "hidden_size": 1024, "image_size": 1540, "initializer_range": 0.02,
                "intermediate_size": 4096, "model_type": "pixtral", "num_attention_heads": 16,
                "num_channels": 3, "num_hidden_layers": 24, "patch_size": 14,
                "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            },
        },
        5120, 438958080,
    ),
    "meta-llama/Llama-4-Scout-17B-16E": (
        "llama4",
        {
            "boi_token_index": 200080, "eoi_token_index": 200081, "image_token_index": 200092,
            "vision_config": {
                "_attn_implementation_autoset": True, "attention_dropout": 0.0,
                "hidden_act": "gelu", "hidden_size": 1408, "image_size": 336,
                "initializer_range": 0.02, "intermediate_size": 5632,
                "model_type": "llama4_vision_model", "multi_modal_projector_bias": False,
                "norm_eps": 1e-05, "num_attention_heads": 16, "num_channels": 3,
                "num_hidden_layers": 34, "patch_size": 14, "pixel_shuffle_ratio": 0.5,
                "projector_dropout": 0.0, "projector_input_dim": 4096,
                "projector_output_dim": 4096, "rope_theta": 10000, "vision_feature_layer": -1,
                "vision_feature_select_strategy": "default", "vision_output_dim": 4096,
            },
        },
        5120, 871932416,
    ),
    "Qwen/Qwen3.5-27B": (
        "qwen3_5",
        {
            "image_token_id": 248056, "video_token_id": 248057, "vision_start_token_id": 248053,
            "vision_end_token_id": 248054,
            "vision_config": {
                "deepstack_visual_indexes": [], "depth": 27, "hidden_act": "gelu_pytorch_tanh",
                "hidden_size": 1152, "in_channels": 3, "initializer_range": 0.02,
                "intermediate_size": 4304, "model_type": "qwen3_5", "num_heads": 16,
                "num_position_embeddings": 2304, "out_hidden_size": 5120, "patch_size": 16,
                "spatial_merge_size": 2, "temporal_patch_size": 2,
            },
        },
        5120, 460730096,
    ),
    "moonshotai/Kimi-K2.5": (
        "kimi_k25",
        {
            "ignore_index": -100, "media_placeholder_token_id": 163605,
            "use_unified_vision_chunk": True,
            "video_placeholder": "<|kimi_k25_video_placeholder|>",
            "vision_config": {
                "_attn_implementation": "flash_attention_2", "init_pos_emb_height": 64,
                "init_pos_emb_time": 4, "init_pos_emb_width": 64, "merge_kernel_size": [2, 2],
                "merge_type": "sd2_tpool", "mm_hidden_size": 1152,
                "mm_projector_type": "patchmerger", "model_type": "", "patch_size": 14,
                "pos_emb_type": "divided_fixed", "projector_hidden_act": "gelu",
                "projector_ln_eps": 1e-05, "text_hidden_size": 7168,
                "video_attn_type": "spatial_temporal", "vt_hidden_size": 1152,
                "vt_intermediate_size": 4304, "vt_num_attention_heads": 16,
                "vt_num_hidden_layers": 27,
            },
        },
        7168, 471143920,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_released_files_are_read_whole(name):
    arch, raw, width, parameters = REAL[name]
    text = SimpleNamespace(hidden_size=width, rms_norm_eps=1e-5)
    with torch.device("meta"):
        tower = kind(arch).build(kind(arch).read(raw, arch), text)
    assert sum(p.numel() for p in tower.parameters()) == parameters


def vision(**settings: Any) -> Raw:
    return {"vision_config": settings}


LLAMA4 = {
    "image_size": 56, "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2,
    "projector_input_dim": 8, "projector_output_dim": 8, "vision_output_dim": 8,
}  # fmt: skip
SIGLIP = {"image_size": 256}  # by default, 256 tokens of 14 patches in a row
NEEDED = {"llama4": LLAMA4, "gemma3": SIGLIP}

# Two files that mean the same: arch, one, the other.
ALIKE: dict[str, tuple[str, Raw, Raw]] = {
    "theta of today": (
        "mistral3",
        vision(rope_theta=500.0),
        vision(rope_parameters={"rope_type": "axial", "rope_theta": 500.0}),
    ),
    "a type that transformers takes for axial": (
        "mistral3",
        vision(rope_theta=500.0),
        vision(rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    ),
    "theta of Llama 4": (
        "llama4",
        vision(**LLAMA4, rope_theta=500.0),
        vision(**LLAMA4, rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    ),
    "a layer from behind": (
        "mistral3", {"vision_feature_layer": -2}, {"vision_feature_layer": [-2]}
    ),
    "the token of a picture": ("mistral3", {"image_token_id": 7}, {"image_token_index": 7}),
    "tokens of Gemma": (
        "gemma3",
        {"boi_token_id": 7, "eoi_token_id": 8, "image_token_id": 9, **vision(**SIGLIP)},
        {"boi_token_index": 7, "eoi_token_index": 8, "image_token_index": 9, **vision(**SIGLIP)},
    ),
    "Kimi's of the hub": (
        "kimi_k25",
        {
            "media_placeholder_token_id": 7,
            **vision(
                model_type="", init_pos_emb_height=5, init_pos_emb_width=5, init_pos_emb_time=3,
                vt_hidden_size=32, vt_intermediate_size=40, vt_num_attention_heads=2,
                vt_num_hidden_layers=3, mm_hidden_size=32, projector_ln_eps=1e-3,
            ),
        },
        {
            "image_token_id": 7,
            "projection_hidden_size": 32,
            "projection_layer_norm_eps": 1e-3,
            **vision(
                model_type="", pos_emb_height=5, pos_emb_width=5, pos_emb_time=3, hidden_size=32,
                intermediate_size=40, num_attention_heads=2, num_hidden_layers=3,
            ),
        },
    ),
    "a type that is null": ("kimi_k25", vision(model_type=None), {}),
    "what only notes": (
        "qwen3_5", {"transformers_version": "5.0", **vision(initializer_range=0.5)}, {}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ALIKE)
def test_other_spellings_mean_the_same(case):
    arch, one, other = ALIKE[case]
    assert kind(arch).read(one, arch) == kind(arch).read(other, arch)


# arch, config.json, what the error says behind 'arch: config.json: '.
REFUSED: dict[str, tuple[str, Raw, str]] = {
    "another tower": (
        "gemma3", vision(model_type="clip_vision_model"),
        r"vision_config.model_type is 'clip_vision_model'; implemented: 'siglip_vision_model'",
    ),
    "a text of a number": (
        "gemma3", vision(hidden_size="1152"), r"vision_config.hidden_size is '1152'"
    ),
    "no vision_config": ("llama4", {}, r"vision_config is missing"),
    "a vision_config that is none": (
        "qwen3_5", {"vision_config": [1]}, r"vision_config is \[1\]; accepted: an object"
    ),
    "null": ("gemma3", {"vision_config": None}, r"vision_config is None"),
    "channels": ("mistral3", vision(num_channels=4), r"vision_config.num_channels is 4"),
    "a rope that is not axial": (
        "mistral3", vision(rope_parameters={"rope_type": "yarn"}),
        r"vision_config.rope_parameters.rope_type is 'yarn'; implemented: 'axial', 'default'",
    ),
    "two thetas": (
        "mistral3",
        vision(rope_theta=1e4, rope_parameters={"rope_theta": 1e5}),
        r"vision_config.rope_parameters.rope_theta is 100000.0, but rope_theta is 10000.0",
    ),
    "a width of heads": (
        "mistral3", vision(head_dim=32), r"vision_config.head_dim is 32.*hidden_size /"
    ),
    "several layers": (
        "mistral3", {"vision_feature_layer": [-1, -2]}, r"vision_feature_layer is \[-1, -2\]"
    ),
    "the embedding": ("mistral3", {"vision_feature_layer": 0}, r"vision_feature_layer is 0; acc"),
    "a layer too many": ("mistral3", {"vision_feature_layer": -25}, r"the 24 layers, 1 to 24 or"),
    "another activation": ("mistral3", {"projector_hidden_act": "swiglu"}, r"projector_hidden_act"),
    "two ids": (
        "mistral3", {"image_token_id": 7, "image_token_index": 8},
        r"image_token_index is 8, but image_token_id, which means the same, is 7",
    ),
    "tokens that are no square": (
        "gemma3", {"mm_tokens_per_image": 200}, r"mm_tokens_per_image is 200, of an image_size"
    ),
    "tokens among which patches do not divide": (
        "gemma3", {"mm_tokens_per_image": 9, **vision(image_size=224)}, r"patches divide"
    ),
    "a ratio": (
        "llama4", vision(**LLAMA4, pixel_shuffle_ratio=0.25), r"pixel_shuffle_ratio is 0.25"
    ),
    "widths that do not meet": (
        "llama4", vision(**{**LLAMA4, "vision_output_dim": 9}), r"are 8, 8 and 9; accepted: one"
    ),
    "a feed-forward that is not the merge": (
        "llama4", vision(**{**LLAMA4, "intermediate_size": 64}),
        r"vision_config.intermediate_size is 64; accepted: 4 times hidden_size, 128",
    ),
    "an odd number of patches": (
        "llama4", vision(**{**LLAMA4, "image_size": 42}), r"image_size is 42 in patches of 14"
    ),
    "an activation that is not run": (
        "llama4", vision(**LLAMA4, hidden_act="silu"), r"vision_config.hidden_act is 'silu'"
    ),
    "positions on no square": (
        "qwen3_5", vision(num_position_embeddings=2000), r"num_position_embeddings is 2000"
    ),
    "heads on one axis": ("qwen3_5", vision(num_heads=64), r"a multiple of 4 times num_heads, 256"),
    "positions by height and width": (
        "kimi_k25", vision(pos_emb_height=5), r"pos_emb_height is 5, pos_emb_width 64"
    ),
    "another merge": ("kimi_k25", vision(merge_kernel_size=[3, 3]), r"merge_kernel_size\[0\] is 3"),
    "another attention": (
        "kimi_k25", vision(video_attn_type="temporal"), r"vision_config.video_attn_type is 'temp"
    ),
    "a projector of another width": (
        "kimi_k25", {"projection_hidden_size": 8}, r"projection_hidden_size is 8; accepted: the hid"
    ),
    "null of the hub": (
        "kimi_k25", vision(vt_hidden_size=None), r"vision_config.vt_hidden_size is None; leave it"
    ),
    "two spellings that differ": (
        "kimi_k25", vision(vt_hidden_size=8, hidden_size=16),
        r"vision_config.hidden_size is 16, but vt_hidden_size, which means the same, is 8",
    ),
    "two epsilons": (
        "kimi_k25", {"projection_layer_norm_eps": 1e-5, **vision(projector_ln_eps=1e-6)},
        r"projection_layer_norm_eps is 1e-05, but vision_config.projector_ln_eps, which",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_tower_is_built_of_is_refused_by_name(case):
    arch, raw, message = REFUSED[case]
    with pytest.raises(ConfigError, match=rf"^{arch}: config.json: .*{message}"):
        kind(arch).read(raw, arch)


@pytest.mark.parametrize("arch", ["gemma3", "llama4", "mistral3", "qwen3_5", "kimi_k25"])
def test_keys_that_nothing_reads_are_refused_at_both_depths(arch):
    raw = {"use_thumbnail": 1, **vision(**NEEDED.get(arch, {}), drop_path=0.5)}
    with pytest.raises(UnreadKeys, match=r"vision_config.drop_path = 0.5, which nothing reads"):
        kind(arch).read({"vision_config": raw["vision_config"]}, arch)
    with pytest.raises(UnreadKeys, match=r"use_thumbnail = 1, which nothing reads"):
        kind(arch).read(raw, arch)
    inert = {"use_thumbnail", "vision_config.drop_path"}
    without = {"vision_config": {**raw["vision_config"]}}
    del without["vision_config"]["drop_path"]
    assert kind(arch).read(raw, arch, inert) == kind(arch).read(without, arch)


# What only shows beside the text.
UNFIT: dict[str, tuple[str, Raw, str]] = {
    "features of another width": (
        "qwen3_5", vision(out_hidden_size=64), r"out_hidden_size is 64; accepted: the hidden_size"
    ),
    "a text of another width": (
        "kimi_k25", vision(text_hidden_size=64), r"text_hidden_size is 64; accepted: the hidden_si"
    ),
    "heads that do not divide": (
        "gemma3", vision(**SIGLIP, num_attention_heads=5), r"width of 768 does not divide among 5"
    ),
    "heads of which half turn": (
        "mistral3", vision(hidden_size=32, num_attention_heads=16), r"do not divide among two axes"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_the_text_is_refused(case):
    arch, raw, message = UNFIT[case]
    text = SimpleNamespace(hidden_size=48, rms_norm_eps=1e-6)
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        kind(arch).build(kind(arch).read(raw, arch), text)
