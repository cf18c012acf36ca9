"""Sizes that transformers' own rules give pictures of many shapes, with the numbers of released
models; imported where `stand_in` is on the path."""

import numpy as np

SHAPES = [
    (int(height), int(width), int(frames))
    for height, width, frames in np.exp(
        np.random.default_rng(0).uniform(np.log([4, 4, 2]), np.log([9000, 9000, 200]), (400, 3))
    )
    if max(height, width) < 199 * min(height, width)
]
EDGE, TILE = 1540, 336
PICTURES, VIDEOS = (65536, 16777216), (131072, 786432)  # pixels
PATCHES, SIDE = 16384, 512


def sizes() -> dict[str, np.ndarray]:
    """Return by rule int64 [shapes, 2]: height and width of what a picture becomes."""
    import torch
    from transformers.image_utils import SizeDict
    from transformers.models.kimi_k25.image_processing_kimi_k25 import navit_resize
    from transformers.models.llama4 import image_processing_llama4 as llama4
    from transformers.models.pixtral.image_processing_pixtral import get_resize_output_image_size
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
    from transformers.models.qwen3_vl import video_processing_qwen3_vl as qwen3_vl

    tile = SizeDict(height=TILE, width=TILE)
    canvases = torch.tensor(llama4.find_supported_resolutions(16, tile))

    def fitted(shape: tuple[int, int]) -> tuple[int, int]:
        canvas = llama4.get_best_fit(shape, canvases).tolist()
        within = [min(max(n, TILE), most) for n, most in zip(shape, canvas, strict=True)]
        height, width = llama4.get_max_res_without_distortion(shape, within)
        return max(height, 1), max(width, 1)

    found: dict[str, list[tuple[int, int]]] = {}
    for height, width, frames in SHAPES:
        shape = height, width
        empty = np.broadcast_to(np.uint8(0), (*shape, 3))
        kimi = navit_resize(*shape, 14, 2, PATCHES, SIDE)
        made = {
            "mistral3": get_resize_output_image_size(empty, (EDGE,) * 2, (28, 28), "channels_last"),
            "llama4, canvas": llama4.get_best_fit(shape, canvases).tolist(),
            "llama4, enlarged": llama4.get_best_fit(shape, canvases, True).tolist(),
            "llama4, picture": fitted(shape),
            "qwen3_5": smart_resize(*shape, 32, *PICTURES),
            "qwen3_5, video": qwen3_vl.smart_resize(frames, *shape, 2, 32, *VIDEOS),
            "kimi_k25": kimi[0],
            "kimi_k25, filled": kimi[1],
        }
        for rule, size in made.items():
            found.setdefault(rule, []).append(size)
    return {rule: np.array(each, np.int64) for rule, each in found.items()}
