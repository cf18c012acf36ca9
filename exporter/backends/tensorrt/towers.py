"""Plans of towers: one beside the text's where an engine takes pictures, for ranges of sizes.

Letters: N pictures of one grid, M merged tokens of each, K patches of a token.
"""

import math
from collections.abc import Mapping

from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.backends.tensorrt.request import Bounds, Request
from lmcast.exporter.engine.description import Vision
from lmcast.exporter.vision.errors import PictureError
from lmcast.exporter.vision.processor import capped, features, is_fixed

PATCHES = 4096  # of a call, where pictures are small enough for several: memory goes with them
USUAL = 256  # tokens: 512 x 512 pixels, in most families
MERGED = (1, 4, 16)  # patches of a token, where it is an axis: of a picture, of a clip of frames
SIDE = 1 << 16  # pixels of a picture that every processor makes smaller


def ranges(vision: Vision, request: Request) -> Mapping[str, Bounds]:
    """Return the least, usual and most of the axes of a tower's inputs.

    One profile for all sizes: kernels are chosen for what is usual, and TensorRT for RTX compiles
    others as it meets sizes. Raises BackendError for a max_pixels that changes nothing.
    """
    processor = vision.processor
    if request.max_pixels is not None:
        try:
            processor = capped(processor, request.max_pixels)
        except PictureError as error:
            raise BackendError(f"--max-pixels: {error}; leave it out") from None
    if is_fixed(processor):
        least = usual = most = features(processor, 1, 1)
    else:
        square = features(processor, SIDE, SIDE)
        # Oblong pictures may become a row and a column more, by rounding; and no row holds one that
        # is larger than it.
        most = min(request.max_context, square + 2 * math.isqrt(square) + 1)
        least, usual = 1, min(USUAL, most)
    axes = vision.inputs[0][1]  # N,M,K,E; of a convolutional tower N, channels, rows, columns
    merged = int(axes[2]) if axes[1] == "M" and axes[2].isdecimal() else MERGED[1]
    pictures = max(1, PATCHES // (usual * merged))
    known = {"N": (1, 1, pictures), "M": (least, usual, most), "K": MERGED}
    return {axis: bounds for axis, bounds in known.items() if axis in axes}
