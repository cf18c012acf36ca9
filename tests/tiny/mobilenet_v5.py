"""A small tower of Gemma 3n's pictures with weights that anybody can draw, and its features.

The features were computed by timm in fp64. Where timm and torchvision are installed,
`python tests/tiny/mobilenet_v5.py` computes them again.
"""

import math
import re
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lmcast.graphs.blocks.tower import Tower
from lmcast.graphs.towers.record import TowerArch

HIDDEN = 6  # of the text
MULTIPLIER, RESOLUTION = 0.04, 2
PIXELS = 96
CONFIG: dict[str, Any] = {
    "vision_soft_tokens_per_image": RESOLUTION**2,
    "vision_config": {
        "model_args": {"channel_multiplier": MULTIPLIER, "msfa_output_resolution": RESOLUTION},
        "rms_norm_eps": 1e-5,
        "vocab_offset": 80,
        "vocab_size": 4,
    },
}
TIMM = "model.vision_tower.timm_model."
OURS = {  # what Hugging Face puts behind timm's
    "model.embed_vision.soft_embedding_norm.weight": (2048,),
    "model.embed_vision.embedding_projection.weight": (HIDDEN, 2048),
}
# Of two pictures, 4 tokens each.
FEATURES: list[list[float]] = [
    [1.0312609110, 1.1452281804, 1.3086829634, 0.6582004902, -0.9489202947, 0.7606294217],
    [0.8325005489, 0.8049290526, 1.3195307953, 0.7701238316, -1.1388811763, 1.0137209746],
    [0.6289863534, 0.8682923693, 1.4156454805, 0.2106187959, -1.4890040458, 0.7647363241],
    [0.7088812187, 0.1708392764, 1.3459398974, 0.6138720512, -1.5084181726, 1.0022476157],
    [1.3672179970, 0.7588034859, 0.8384279013, 0.5814320423, -1.3954515306, 0.7526858372],
    [1.2250460726, 0.4286190768, 0.4821994120, 0.8560397161, -1.6978990807, 0.6835719701],
    [1.5239835061, 0.9385346975, 0.7106368064, 0.2497985698, -1.2827610420, 0.7639706747],
    [1.3731546836, 0.6480096042, 0.5451894989, 0.6409067855, -1.5744075777, 0.7125098482],
]


def stored(arch: TowerArch, tower: Tower) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a tower's tensors by the names that its weight table has for them."""
    assert isinstance(arch.weights, dict)
    found = {}
    for name, parameter in tower.named_parameters():
        number = next(iter(re.findall(r"\.(\d+)(?=\.|$)", name)), "")
        plain = name.replace(f".{number}", ".{i}", 1) if number else name
        for known in (name, plain):
            module, _, leaf = known.rpartition(".")
            if known in arch.weights:
                entry = arch.weights[known].tensor
            elif module in arch.weights:
                entry = f"{arch.weights[module]}.{leaf}"
            else:
                continue
            break
        found["model." + entry.replace("{i}", number)] = tuple(parameter.shape)
    return found


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the weight of this name in fp64: RandomState draws the same in every numpy."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        return torch.from_numpy(values * 1.4 / math.sqrt(math.prod(shape[1:])))
    if name.endswith("gamma"):
        return torch.from_numpy(0.6 + 0.1 * values)
    return torch.from_numpy(0.1 * values if name.endswith("bias") else 1 + 0.15 * values)


def pixels() -> Tensor:
    """Return two pictures, 2,3,PIXELS,PIXELS in fp64 from 0 to 1."""
    return torch.from_numpy(np.random.RandomState(7).uniform(size=(2, 3, PIXELS, PIXELS)))


def of_timm() -> Tensor:
    """Return the features as timm and the formulas of Hugging Face's code make them."""
    import timm

    model = timm.create_model(
        "mobilenetv5_300m_enc",
        channel_multiplier=MULTIPLIER,
        msfa_output_resolution=RESOLUTION,
    )
    model = model.double().eval()
    for name, parameter in model.named_parameters():
        parameter.data = drawn(TIMM + name, tuple(parameter.shape))
    norm, projection = (drawn(name, shape) for name, shape in OURS.items())
    with torch.no_grad():
        x = model(pixels()).flatten(2).mT * 2048**0.5
        x = F.rms_norm(x, (2048,), norm, CONFIG["vision_config"]["rms_norm_eps"])
        x = F.rms_norm(x @ projection.T, (HIDDEN,), None, CONFIG["vision_config"]["rms_norm_eps"])
    return x.flatten(0, 1)


if __name__ == "__main__":
    for row in of_timm().tolist():
        print(f"    [{', '.join(f'{number:.10f}' for number in row)}],")
