"""The library of plugins from Python, without TensorRT."""

import ctypes
from collections.abc import Sequence
from typing import Any

from fake_cuda.machine_code import Handed, hand_launches
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


# --- In a process on a fake GPU


def allocated(size: int) -> int:
    memory = ctypes.c_void_p()
    assert ctypes.CDLL("libcudart.so.13").cudaMalloc(ctypes.byref(memory), size) == 0
    return memory.value or 0


def run_once(task: dict[str, Any]) -> dict[str, Any]:
    """Enqueue once; return whether it was done, the addresses, and what launches were given.

    task: `recipe`, `images` (hexadecimal), `shapes`, and optionally `reserved`; whether the second
    output is `in_place` of the second input; how far the first input is `shifted`; without a
    `workspace`; without a `driver`, and so without memory.
    """
    launches: list[Handed] = []
    if has_driver := task.get("driver", True):
        hand_launches(launches.append)
    places = [allocated(1 << 12) if has_driver else 1 << 12 for _ in range(5)]
    inputs, outputs = places[:2], places[2:4]
    if task.get("in_place"):
        outputs[1] = inputs[1]
    inputs[0] += task.get("shifted", 0)
    workspace = places[4] if task.get("workspace", True) else None
    done = enqueue(
        *(task["recipe"], bytes.fromhex(task["images"]), task.get("reserved", -1), task["shapes"]),
        *(inputs, outputs, workspace),
    )
    given = [[*one[:3], one.parameters.hex()] for one in launches]
    return {"done": done, "places": [*inputs, *outputs, places[4]], "launches": given}
