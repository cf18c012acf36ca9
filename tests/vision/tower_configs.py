"""What towers read of the config.json of a case, which processors are made for."""

from typing import Any

import oracle

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
