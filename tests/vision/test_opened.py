"""Files of pictures, videos and sounds, good and bad, as transformers has what Pillow decodes."""

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from oracle import wav
from PIL import Image
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image

from lmcast.exporter.extras import remedy
from lmcast.exporter.vision.errors import PictureError
from lmcast.exporter.vision.pictures import open_picture, open_video
from lmcast.exporter.vision.processor import Medium, Pixels, Processor, encode, encode_video
from lmcast.exporter.vision.sounds import open_sound

PICTURE = oracle.picture(20, 30)
IMAGE = Image.fromarray(PICTURE)
ALPHA = Image.fromarray(np.dstack([PICTURE, oracle.picture(20, 30, 1)[..., 0]]))
GREY16 = Image.fromarray(oracle.picture(20, 30)[..., 0].astype(np.uint16) * 257)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # a quarter to the right


def file(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    made = io.BytesIO()
    image.save(made, kind, **how)
    return made.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says to be a large one."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 999))


def moving(kind: str = "GIF", **how: Any) -> bytes:
    more = [Image.fromarray(oracle.picture(20, 30, seed)) for seed in range(1, 6)]
    return file(IMAGE, kind, save_all=True, append_images=more, **how)


AS_OPENED = {  # by convert_to_rgb, which transformers calls on images that a program has opened
    **{kind: file(IMAGE, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM", "AVIF")},
    "CMYK": file(IMAGE.convert("CMYK"), "JPEG"),
    "a palette": file(IMAGE.convert("P")),
    "a palette with a transparent colour": file(IMAGE.convert("P"), transparency=3),
    "grey": file(IMAGE.convert("L")),
    "black and white": file(IMAGE.convert("1")),
    "grey with alpha": file(ALPHA.convert("LA")),
    "alpha": file(ALPHA),
    "animated": moving(duration=100),
}


@pytest.mark.parametrize("name", AS_OPENED)
def test_as_transformers_converts(name: str) -> None:
    data = AS_OPENED[name]
    image = Image.open(io.BytesIO(data))
    theirs = convert_to_rgb(image, return_numpy=True)
    np.testing.assert_array_equal(open_picture(data), theirs)
    np.testing.assert_array_equal(open_picture(image), theirs)


def test_upright() -> None:
    data = file(IMAGE, "JPEG", exif=TURNED)
    theirs = np.array(load_image(Image.open(io.BytesIO(data))))
    assert theirs.shape == (30, 20, 3)
    np.testing.assert_array_equal(open_picture(data), theirs)


def test_16_bits_are_cut_to_8() -> None:
    """Unlike Pillow's conversion, which takes all but the darkest 255 values for white."""
    made = open_picture(file(GREY16))
    np.testing.assert_array_equal(made, np.repeat(PICTURE[..., :1], 3, axis=2))


def test_arrays_are_as_they_are(tmp_path: Path) -> None:
    assert open_picture(PICTURE) is not None
    np.testing.assert_array_equal(open_picture(PICTURE), PICTURE)
    (tmp_path / "a.bin").write_bytes(file(IMAGE))
    for path in (tmp_path / "a.bin", str(tmp_path / "a.bin")):
        np.testing.assert_array_equal(open_picture(path), PICTURE)


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = file(IMAGE)
    for name in [name for name in sys.modules if name.partition(".")[0] == "PIL"]:
        monkeypatch.setitem(sys.modules, name, None)
    np.testing.assert_array_equal(open_picture(PICTURE), PICTURE)
    with pytest.raises(ModuleNotFoundError) as caught:
        open_picture(data)
    assert "pip install 'lmcast[vision]'" in str(remedy(caught.value))


PNG = file(IMAGE)
REFUSED: dict[str, tuple[Any, str]] = {
    "no picture": (b"%PDF-1.7", "is no picture in a format that is read: PNG, JPEG, "),
    "nothing": (b"", "is no picture in a format that is read"),
    "PostScript": (file(IMAGE, "EPS"), "is no picture in a format that is read"),
    "a large one": (bomb(9000), "has 9000x9000 pixels; accepted: up to 67108864"),
    "a bomb": (bomb(30000), "has more than 178956970 pixels; accepted: up to 67108864"),
    "32 bits": (Image.fromarray(np.ones((3, 4), np.float32)), "has values of 32 bits (mode F)"),
    "TIFF": (file(IMAGE, "TIFF"), "is no picture in a format that is read"),
    **{
        f"{kind} cut short": (file(IMAGE, kind)[:-300], "cannot be decoded, so it is damaged")
        for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "PPM")
    },
    "no file": (Path("/no/such.png"), "/no/such.png: cannot be opened: No such file"),
    "a folder": ("/", "is a directory"),
    "a device": ("/dev/zero", "is a device"),
    "no path": ("a\0b", "is no path"),
    "a URL": ("https://example.com/a.png", "is a URL, and nothing here downloads"),
    "a number": (7, "is a int; accepted: a path, the bytes of a file"),
    "an array of floats": (PICTURE / 255, "is an array of float64 [20, 30, 3]; accepted: uint8"),
    "channels first": (PICTURE.transpose(2, 0, 1), "is an array of uint8 [3, 20, 30]"),
    "a large array": (np.broadcast_to(np.uint8(0), (9000, 9000, 3)), "has 9000x9000 pixels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    source, message = REFUSED[name]
    with pytest.raises(PictureError) as caught:
        open_picture(source)
    assert message in str(caught.value) and "\n" not in str(caught.value)


PIXELS = Pixels("bicubic", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CUT = {"patches": 64, "side": 16, "patch": 4, "merge": 2, "rows": 4, "columns": 4}
KIMI = Processor(
    "kimi_k25",
    image=Medium("<i>", "<i>", "<i>", 1, CUT, PIXELS),
    video=Medium("<v>", "<v>", "<v>", 2, {**CUT, "frames": 4, "rate": 2.0}, PIXELS),
)


def test_pictures_that_no_model_takes() -> None:
    for shape, message in (
        ((0, 5, 3), "a picture of 5x0 has no pixels"),
        ((3, 601, 3), "a picture of 601x3 is more than 200 times as long as it is wide"),
    ):
        with pytest.raises(PictureError, match=message):
            encode(KIMI, [np.zeros(shape, np.uint8)])
    assert encode(KIMI, [np.zeros((3, 600, 3), np.uint8)])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animated_files(kind: str) -> None:
    how = {"lossless": True} if kind == "WEBP" else {}
    data = moving(kind, duration=250, **how)
    clip = open_video(data, KIMI)
    # 4 frames a second, of which the model takes 2.
    assert clip.seconds == (0.0, 0.5, 1.0)
    if kind != "GIF":  # its colours are of a palette
        np.testing.assert_array_equal(clip.frames[1], oracle.picture(20, 30, 2))
    assert open_video(data, KIMI, rate=2.0).seconds == (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)


def test_folders_of_frames(tmp_path: Path) -> None:
    for seed in range(12):
        (tmp_path / f"frame {seed}.png").write_bytes(
            file(Image.fromarray(oracle.picture(20, 30, seed)))
        )
    (tmp_path / ".hidden").write_text("")
    clip = open_video(tmp_path, KIMI, rate=2.0)
    assert len(clip.frames) == 12
    np.testing.assert_array_equal(clip.frames[-1], oracle.picture(20, 30, 11))  # behind frame 2
    (tmp_path / "frame 12.png").write_bytes(file(Image.fromarray(oracle.picture(9, 30))))
    with pytest.raises(PictureError, match="frames of 30x20 and of 30x9 pixels; give frames of"):
        encode_video(KIMI, open_video(tmp_path, KIMI, rate=2.0))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(PictureError, match=r"holds 'notes.txt', which is no frame of a video"):
        open_video(tmp_path, KIMI, rate=2.0)


VIDEOS_REFUSED: dict[str, tuple[Any, float | None, str]] = {
    "one frame": (PNG, None, "has a single frame, so it is no video; give it as a picture"),
    "no rate": ([PICTURE, PICTURE], None, "says no frames a second; say how many"),
    "a rate of 0": ([PICTURE], 0.0, "0.0 frames a second; accepted: more than 0"),
    "an image": (IMAGE, 2.0, "is no video; give a folder of pictures or an animated file"),
    "no frames": ([], 2.0, "the video has no frames"),
    "an array of a picture": (PICTURE, 2.0, "[20, 30, 3]; accepted: uint8 [frames, height, width"),
    "damaged": (moving()[:-2000], 2.0, "cannot be decoded, so it is damaged"),
}


@pytest.mark.parametrize("name", VIDEOS_REFUSED)
def test_videos_refused(name: str) -> None:
    source, rate, message = VIDEOS_REFUSED[name]
    with pytest.raises(PictureError) as caught:
        encode_video(KIMI, open_video(source, KIMI, rate))
    assert message in str(caught.value)


def test_sounds() -> None:
    values = np.array([0, 1 << 14, -(1 << 15), 100], "<i2")
    expected = values.astype(np.float32) / (1 << 15)
    wide = np.pad(values.view(np.uint8).reshape(-1, 2), ((0, 0), (1, 0)))
    for data in (
        wav(values),
        wav(wide, width=3),
        wav(values.astype("<i4") << 16, width=4),
    ):
        np.testing.assert_array_equal(open_sound(data, 16000), expected)
    bytes_of = np.array([128, 255, 0], np.uint8)
    assert open_sound(wav(bytes_of, width=1), 16000).tolist() == [0, 127 / 128, -1]
    assert open_sound(wav(values, channels=2), 16000).tolist() == [
        0.25,
        (100 / 32768 - 1) / 2,
    ]


SOUNDS_REFUSED = {
    "another rate": (
        wav(np.zeros(9, "<i2"), 44100),
        "has 44100 samples a second; accepted: 16000",
    ),
    "no WAV": (b"OggS", "is no WAV file of plain PCM"),
    "cut short": (wav(np.zeros(99, "<i2"))[:-9], "ends 9 bytes early; it is damaged"),
    "nothing": (b"", "is no WAV file of plain PCM (it ends early)"),
    "samples of 64 bits": (
        wav(np.zeros(9, "<i2")).replace(b"\2\0\x10\0data", b"\x10\0\x80\0data"),
        "no WAV file of plain PCM (samples of",
    ),
    "floats of 64 bits": (np.zeros(9), "is an array of float64 [9]; accepted: finite float32"),
}


@pytest.mark.parametrize("name", SOUNDS_REFUSED)
def test_sounds_refused(name: str) -> None:
    source, message = SOUNDS_REFUSED[name]
    with pytest.raises(PictureError) as caught:
        open_sound(source, 16000)
    assert message in str(caught.value)
