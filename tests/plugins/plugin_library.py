"""The library of plugins from Python, without TensorRT. As a process: one run on a fake driver.

python tests/plugins/plugin_library.py RUN  # JSON: see `main`; prints result and driver's record
"""

import ctypes
import json
import sys
from collections.abc import Sequence
from typing import Any

from lmcast_native import LIBRARY

LIB = ctypes.CDLL(str(LIBRARY))
Shapes = Sequence[Sequence[int]]


def sizes(shapes: Shapes) -> tuple[Any, Any]:
    """Return ranks and sizes as C arrays."""
    flat = [size for shape in shapes for size in shape]
    ranks = [len(shape) for shape in shapes]
    return (ctypes.c_int32 * len(ranks))(*ranks), (ctypes.c_int64 * len(flat))(*flat)


def answer(function: Any, recipe: str, image_bytes: int, *shapes: Shapes) -> str:
    ranks = sizes(shapes[0])[0]
    buffer = ctypes.create_string_buffer(1 << 16)
    flat = [sizes(one)[1] for one in shapes]
    head = (recipe.encode(), ctypes.c_size_t(image_bytes), len(ranks), ranks)
    failed = function(*head, *flat, buffer, ctypes.c_size_t(len(buffer)))
    text = buffer.value.decode()
    if failed:
        raise ValueError(text)
    return text


def schedule(recipe: str, image_bytes: int, shapes: Shapes) -> str:
    """Return what is launched for inputs of these shapes; raises ValueError with what is wrong."""
    return answer(LIB.lmcast_schedule, recipe, image_bytes, shapes)


def workspace(recipe: str, image_bytes: int, least: Shapes, greatest: Shapes) -> int:
    """Return the bytes to reserve for inputs between these shapes."""
    return int(answer(LIB.lmcast_workspace, recipe, image_bytes, least, greatest))


def addresses(given: Sequence[int]) -> Any:
    return (ctypes.c_void_p * len(given))(*given)


def enqueue(
    recipe: str, images: bytes, reserved: int, shapes: Shapes,
    inputs: Sequence[int], outputs: Sequence[int], workspace: int | None, stream: int = 0,
) -> bool:  # fmt: skip
    """Run once as TensorRT does, on memory by its addresses; what is wrong is printed.

    reserved: the bytes of workspace that were asked for; -1 where nobody knows.
    """
    ranks, flat = sizes(shapes)
    failed = LIB.lmcast_enqueue(
        *(recipe.encode(), images, ctypes.c_size_t(len(images)), ctypes.c_int64(reserved)),
        *(len(ranks), ranks, flat, addresses(inputs), addresses(outputs)),
        *(ctypes.c_void_p(workspace), ctypes.c_void_p(stream)),
    )
    return not failed


def main(given: str) -> None:
    run = json.loads(given)
    fake = ctypes.CDLL("libcuda.so.1") if run["sm"] else None
    if fake is not None:
        fake.fake_record.restype = ctypes.c_char_p
        fake.fake_device(run["sm"], run["image_bytes"])
    ran = enqueue(
        *(run["recipe"], bytes.fromhex(run["images"]), run["reserved"], run["shapes"]),
        *(run["inputs"], run["outputs"], run["workspace"], run["stream"]),
    )
    record = fake.fake_record().decode().splitlines() if fake is not None else []
    print(json.dumps({"failed": not ran, "record": record}))


if __name__ == "__main__":
    main(*sys.argv[1:])
