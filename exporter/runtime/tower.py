"""The towers of an engine: pictures to the tokens of a prompt, and to what a text graph takes.

Letters: N pictures of one grid, F features, W numbers of each.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np

from lmcast.exporter.backends.runner import RunTower
from lmcast.exporter.runtime.images import Images, Picture
from lmcast.exporter.vision import prompts
from lmcast.exporter.vision.errors import PictureError
from lmcast.exporter.vision.pictures import open_picture, open_video
from lmcast.exporter.vision.processor import (
    Encoded,
    Places,
    Processor,
    capped,
    encode,
    encode_audio,
    encode_video,
    joined,
    require_medium,
    with_crops,
)
from lmcast.exporter.vision.sounds import open_sound

# Of one call: as many pictures of one grid as have fewer, whose values take memory by their number.
PATCHES = 4096


class Tower:
    """What an engine with a tower does with pictures.

    processor: how they are prepared. see, hear: the graphs of the towers of pictures and of sounds,
    inputs by name -> the one output of each, float F,W; they are loaded when first called.
    """

    def __init__(self, processor: Processor, see: RunTower, hear: RunTower | None = None):
        self.processor, self._see, self._hear = processor, see, hear

    def picture(self, source: Any, max_pixels: int | None = None, crops: bool = False) -> Picture:
        """Return a picture as the tower takes it; raises PictureError.

        source: a path, the bytes of a file, a PIL image or an array uint8 [height, width, 3].
        max_pixels: make it smaller where it would have more. crops: show a long one in crops, too.
        """
        processor = self._within(max_pixels)
        if crops:
            processor = with_crops(processor)
        pixels = open_picture(source)
        try:
            return Picture.of(encode(processor, [pixels]))
        except PictureError as error:  # which of several it is
            named = isinstance(source, str | PathLike)
            raise PictureError(f"{source}: {error}" if named else str(error)) from None

    def video(
        self, source: Any, fps: float | None = None, max_pixels: int | None = None
    ) -> Picture:
        """Return a video as the tower takes it; raises PictureError.

        source: a folder of pictures, an animated file or its bytes, a list of what `picture`
        takes, or uint8 [frames, height, width, 3]. fps: frames a second; None: as an animated file
        says.
        """
        require_medium(self.processor, "video")
        processor = self._within(max_pixels)
        return Picture.of(encode_video(processor, open_video(source, processor, fps)))

    def sound(self, source: Any) -> Picture:
        """Return a sound as its tower takes it; raises PictureError.

        source: the path of a WAV file, its bytes, or float32 [samples], at the rate of the model.
        """
        require_medium(self.processor, "audio")
        audio = self.processor.audio
        assert audio is not None
        rate = audio.sizes["mel"]["rate"]
        return Picture.of(encode_audio(self.processor, open_sound(source, rate)))

    def _within(self, max_pixels: int | None) -> Processor:
        """Return the processor with a limit of pixels; raises PictureError where it takes none."""
        return self.processor if max_pixels is None else capped(self.processor, max_pixels)

    def see(self, pictures: Sequence[Picture]) -> None:
        """Compute the features of pictures that have none; one grid a call.

        Raises PictureError for features that are not finite.
        """
        unseen = {id(p): p for p in pictures if p.features is None and p.encoded}
        parts = [(p, part) for p in unseen.values() for part in p.encoded]
        alike: dict[Any, list[int]] = {}
        for i, (_, part) in enumerate(parts):
            alike.setdefault((part.medium, part.grid), []).append(i)
        found: dict[int, np.ndarray] = {}
        for places in alike.values():
            for some in _portions(places, [part for _, part in parts]):
                each = self._features([parts[i][1] for i in some])
                found |= dict(zip(some, each, strict=True))
        for picture in unseen.values():
            own = [found[i] for i, (other, _) in enumerate(parts) if other is picture]
            features = np.concatenate(own)
            if not np.isfinite(features).all():
                raise PictureError(
                    "features hold NaN or Inf, so the tower's computation overflowed; export with"
                    " --dtype float32"
                )
            picture.seen(features)

    def _features(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        """Return the features of each, float rows,W, from one call; all are of one grid."""
        run = self._hear if encoded[0].medium == "audio" else self._see
        assert run is not None, "an engine whose processor takes sounds has a tower for them"
        (outputs,) = run(joined(encoded))
        ends = np.cumsum([each.features for each in encoded])
        if len(outputs) != ends[-1]:
            raise PictureError(
                f"the tower gives {len(outputs)} features, and {ends[-1]} tokens wait for some:"
                " its graph is not of this engine; export again"
            )
        return np.split(outputs, ends[:-1])

    def written(self, pictures: Sequence[Picture]) -> str:
        """Return the placeholders of pictures as a chat template writes them."""
        return prompts.written(self.processor, encoded_of(pictures))

    def refuse_tokens(self, text: str, where: str) -> None:
        """Refuse a text that takes the place of a picture; raises PictureError."""
        prompts.refuse_tokens(self.processor, text, where)

    def expand(self, text: str, pictures: Sequence[Picture]) -> str:
        """Return a prompt with what pictures become in the place of their placeholders; raises
        PictureError where there are not as many."""
        return prompts.expand(self.processor, text, encoded_of(pictures))

    def require_context(self, pictures: Sequence[Picture], tokens: int, context: int) -> None:
        """Refuse a prompt of more tokens than the context, and say what its pictures take; raises
        PictureError."""
        if pictures:
            prompts.require_context(encoded_of(pictures), tokens, context)

    def place(self, ids: Sequence[int], pictures: Sequence[Picture]) -> tuple[list[int], Images]:
        """Return the ids of a prompt, and where its pictures stand among them.

        Raises PictureError where the prompt does not take as many features as the pictures have.
        """
        places: Places = prompts.places(self.processor, ids, encoded_of(pictures))
        rows = places.image_rows
        # Of those that take features a caller sees the ids; no graph does.
        kept = np.where(rows < 0, places.input_ids, ids).tolist()
        ends, turned = places.visible_ends, places.rope_positions
        return kept, Images(tuple(pictures), rows, ends, turned, self.see)


def encoded_of(pictures: Sequence[Picture]) -> list[Encoded]:
    """Return what all pictures become, in order."""
    return [each for picture in pictures for each in picture.encoded]


def _portions(places: Sequence[int], encoded: Sequence[Encoded]) -> list[list[int]]:
    """Return the pictures of each call, all of one grid: PATCHES in all, or one picture."""
    portions: list[list[int]] = []
    room = 0
    for i in places:
        size = int(np.prod(next(iter(encoded[i].inputs.values())).shape[:3]))
        if not portions or size > room:
            portions.append([])
            room = PATCHES
        portions[-1].append(i)
        room -= size
    return portions
