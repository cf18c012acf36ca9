"""Pictures, videos, sounds, and records of processors: opened and encoded, or refused."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import oracle
from PIL import Image
from tower_configs import files

from fuzz.edits import digest
from fuzz.files import Files, Kinds
from lmcast.exporter.checkpoint.files import read_capped
from lmcast.exporter.checkpoint.strict_json import parse_object
from lmcast.exporter.vision import kinds, prompts
from lmcast.exporter.vision import processor as vision
from lmcast.exporter.vision.pictures import MOST_PIXELS, open_picture, open_video
from lmcast.exporter.vision.processor import Processor
from lmcast.exporter.vision.sounds import open_sound
from lmcast.plugins.errors import InputError
from lmcast.plugins.records import read

RATE = 16000
HIGH, WIDE = 20, 30


def _pictures(folder: Path) -> None:
    image, *more = [Image.fromarray(frame) for frame in oracle.video(4, HIGH, WIDE)]
    for ending in ("png", "jpg", "webp", "gif", "bmp", "ppm", "avif"):
        image.save(folder / f"a.{ending}")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("P").save(folder / "palette.png", transparency=3)
    image.convert("LA").save(folder / "alpha.png")
    for ending in ("png", "webp", "gif", "avif"):
        image.save(folder / f"moving.{ending}", save_all=True, append_images=more, duration=100)


def _sounds(folder: Path) -> None:
    samples = np.arange(RATE // 4, dtype="<i2")
    (folder / "a.wav").write_bytes(oracle.wav(samples))
    (folder / "stereo.wav").write_bytes(oracle.wav(samples, channels=2))


def _records(folder: Path) -> None:
    for kind in kinds.NAMES:
        record = asdict(kinds.get(kind).read(files(kind)))
        (folder / f"{kind}.json").write_text(json.dumps(record))


class Pictures(Kinds):
    def __init__(self) -> None:
        of = (
            Files("pictures", "", _pictures, self._open),
            Files("sounds", "", _sounds, self._hear),
            Files("records", "", _records, self._encode),
        )
        super().__init__("pictures", "pictures, sounds, and records of processors", of)

    def _open(self, folder: Path, work: Path) -> str | None:
        """Open every file; raises what the last is refused for."""
        refused: InputError | None = None
        moving = kinds.get("kimi_k25").read(files("kimi_k25"))
        for path in sorted(folder.iterdir()):
            same = _same(path, self.kinds["pictures"])
            try:
                found = open_picture(path)
                if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3:
                    return f"{path.name}: {found.dtype} {found.shape}"
                if found.shape[0] * found.shape[1] > MOST_PIXELS:
                    return f"{path.name}: {found.shape} is too large"
                if same and found.shape != (HIGH, WIDE, 3):
                    return f"{path.name}: {found.shape}"
                if path.stem == "moving":
                    clip = open_video(path, moving)
                    vision.encode_video(moving, clip)
            except InputError as error:
                if same:
                    return f"{path.name}: good, and refused: {error}"
                refused = error
        if refused is not None:
            raise refused
        return None

    def _hear(self, folder: Path, work: Path) -> str | None:
        refused: InputError | None = None
        for path in sorted(folder.iterdir()):
            try:
                found = open_sound(path, RATE)
            except InputError as error:
                refused = error
                continue
            if found.dtype != np.float32 or found.ndim != 1 or np.abs(found).max(initial=0) > 1:
                return f"{path.name}: {found.dtype} {found.shape}"
        if refused is not None:
            raise refused
        return None

    def _encode(self, folder: Path, work: Path) -> str | None:
        """Encode a picture by every record, and find its tokens."""
        refused: InputError | None = None
        for path in sorted(folder.iterdir()):
            try:
                wrong = _encoded(read(Processor, parse_object(read_capped(path, 1 << 20), path)))
            except InputError as error:
                refused = error
                continue
            if wrong is not None:
                return f"{path.name}: {wrong}"
        if refused is not None:
            raise refused
        return None


def _same(path: Path, kind: Files) -> bool:
    good = kind.folder / path.name
    if not (good.exists() and path.is_file() and path.stat().st_size == good.stat().st_size):
        return False
    return digest(good) == digest(path)


def _encoded(processor: Processor) -> str | None:
    picture = oracle.picture(HIGH, WIDE)
    made = vision.encode(processor, [picture])
    if vision.features(processor, HIGH, WIDE) != sum(each.features for each in made):
        return "another count of features"
    for name, array in made[0].inputs.items():
        if not np.isfinite(array).all():
            return f"{name} is not finite"
    text = prompts.expand(processor, prompts.written(processor, made), made)
    tokens = text.count(processor.image.token)
    if processor.image.token != processor.image.placeholder and tokens < made[0].tokens:
        return f"{tokens} tokens for {made[0].tokens} features"
    found = prompts.places(processor, [processor.image.id] * made[0].tokens, made)
    if found.image_rows.tolist() != list(range(made[0].features)):
        return "rows of features are not in order"
    return None


PART = Pictures()
