"""Resizing against PyTorch's, which torchvision calls: equal to the bit."""

import numpy as np
import pytest
import torch

from lmcast.exporter.vision import resize

SIZES = [  # of the picture, then of what it becomes
    ((1, 1), (7, 5)), ((5, 9), (5, 30)), ((40, 9), (3, 9)), ((37, 64), (64, 37)),
    ((211, 150), (28, 84)), ((90, 301), (91, 60)), ((3, 400), (56, 56)), ((64, 64), (63, 65)),
]  # fmt: skip


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="PyTorch resizes uint8 otherwise without AVX2",
)
@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_resize(how: resize.Filter, before: tuple[int, int], after: tuple[int, int]) -> None:
    random = np.random.default_rng(before[0])
    # Noise, and black and white, which overshoots at every edge.
    noise = random.integers(0, 256, (*before, 3), dtype=np.uint8)
    for picture in (noise, (noise > 127).astype(np.uint8) * np.uint8(255)):
        planes = torch.from_numpy(picture).permute(2, 0, 1)[None]
        theirs = torch.nn.functional.interpolate(planes, after, mode=how, antialias=True)
        ours = resize.resize(picture, *after, how)
        np.testing.assert_array_equal(ours, theirs[0].permute(1, 2, 0).numpy())
