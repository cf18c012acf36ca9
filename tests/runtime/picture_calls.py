"""Pictures, and what an engine is asked about them."""

from typing import Any

from tiny.pictures import pixels

from lmcast.exporter import Engine
from lmcast.exporter.runtime.generate import Generated

A, B, WIDE = pixels(20, 30, 1), pixels(9, 8, 2), pixels(8, 60, 3)
TAKES = [12, 2, 4]  # of 24x32, 16x8 and 8x32 pixels, each 8x8 a token
IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "what?"}


def answer(engine: Engine, *args: Any, **more: Any) -> list[Generated]:
    return engine.generate(*args, max_new_tokens=4, **more)
