"""What towers read of the config.json of a case, and what files say of its processor."""

from dataclasses import replace
from typing import Any

import oracle

from lmcast.exporter.vision.files import ProcessorFiles
from lmcast.graphs.towers import (
    llama4_vision,
    mobilenet_v5,
    moonvit,
    pixtral,
    qwen_vision,
    siglip,
    usm,
)

TOWERS = {
    "gemma3": siglip.TOWER,
    "gemma3n": mobilenet_v5.TOWER,
    "kimi_k25": moonvit.TOWER,
    "llama4": llama4_vision.TOWER,
    "mistral3": pixtral.TOWER,
    "qwen3_5": qwen_vision.TOWER,
    "qwen3_vl": qwen_vision.DEEPSTACK,
}


def configs(kind: str, **vision: Any) -> tuple[Any, Any]:
    """Return the Config of the tower of pictures, with these keys of vision_config, and that of
    sound, None where a family has none."""
    case = oracle.CASES[kind]
    raw = {**case["config"], "vision_config": {**case["config"]["vision_config"], **vision}}
    audio = usm.TOWER.read(case["audio"], kind) if "audio" in case else None
    return TOWERS[kind].read(raw, kind), audio


PICTURES, WHOLE = "preprocessor_config.json", "processor_config.json"
HUB = {  # as the repository on the Hub has it
    "media_proc_cfg": {
        "in_patch_limit": 64, "patch_size": 4, "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5], "merge_kernel_size": 2, "fixed_output_tokens": None,
        "patch_limit_on_one_side": 16, "in_patch_limit_each_frame": 20,
        "in_patch_limit_video": None, "sample_fps": 2.0, "max_num_frames_each_video": None,
        "temporal_merge_kernel_size": 4, "timestamp_mode": "hh:mm:ss.fff", "config_type": "a.B",
    },
    "auto_map": {"AutoProcessor": "a.B"},
}  # fmt: skip
SAID: dict[str, dict[str, dict[str, Any]]] = {
    "mistral3": {
        PICTURES: {"size": {"longest_edge": 112}},
        WHOLE: {"patch_size": 14, "spatial_merge_size": 2},
    },
    "gemma3": {
        PICTURES: {"size": {"height": 56, "width": 56}, "do_pan_and_scan": None},
        WHOLE: {"image_seq_length": 4},
    },
    "gemma3n": {
        PICTURES: {"size": {"height": 96, "width": 96}, "do_normalize": False},
        WHOLE: {"image_seq_length": 4, "audio_seq_length": 6},
    },
    "llama4": {PICTURES: {"size": {"height": 56, "width": 56}}},
    "qwen3_5": {
        PICTURES: {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 900}},
        "video_preprocessor_config.json": {"patch_size": 4},
    },
    "kimi_k25": {PICTURES: HUB},
}


def files(kind: str, **changes: Any) -> ProcessorFiles:
    """changes: of the ProcessorFiles; `said`: of the picture's file, `own`: of the whole one's."""
    said = {name: dict(held) for name, held in SAID[kind].items()}
    said.setdefault(PICTURES, {}).update(changes.pop("said", {}))
    said.setdefault(WHOLE, {}).update(changes.pop("own", {}))
    config, audio = configs(kind)
    image = oracle.image_id(oracle.CASES[kind]["config"])
    found = ProcessorFiles(
        files=said,
        config=config,
        named={"image_token": next(text for text, id in oracle.IDS.items() if id == image)},
        token_id=oracle.IDS.get,
        audio=audio,
    )
    return replace(found, **changes)
