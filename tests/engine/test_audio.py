"""The third graph of an engine: sounds beside pictures, and ids that are of either."""

import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CASES, make
from tiny.gemma3n_files import write_texts
from tiny.pictures import pixels

from lmcast.exporter import Engine, export
from lmcast.exporter.checkpoint import open_checkpoint
from lmcast.exporter.engine.inspect import inspect
from lmcast.exporter.engine.manifest import verify
from lmcast.exporter.engine.names import AUDIO, MODEL, VISION
from lmcast.exporter.pack import pack
from lmcast.exporter.prove.scenarios import FEATURES
from lmcast.exporter.runtime.generate import read_prompts
from lmcast.exporter.runtime.prepare import Pictured
from lmcast.graphs import WeightError, defined
from lmcast.plugins.errors import InputError

RATE = 16000
LONG = np.sin(np.arange(12800, dtype=np.float32) / 7) * np.float32(0.3)  # of 77 frames
SHORT = LONG[:5000]  # of 29 frames, which are 2 tokens; the other 4 are filled up
FILLER = 96


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A proven engine of Gemma 3n, packed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("audio")
    (found,) = [case for case in CASES if case.name == "gemma3n/untied"]
    write_texts(make(found, folder / "checkpoint"))
    export(folder / "checkpoint", folder / "engine", context=64)
    pack(folder / "engine")
    torch.set_num_threads(before)
    return folder / "engine"


@pytest.fixture(scope="module")
def loaded(engine: Path) -> Engine:
    return Engine(engine, threads=1)


def write(path: Path, sound: np.ndarray, rate: int = RATE) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return path


def test_what_the_record_says(loaded: Engine, engine: Path):
    about = loaded.manifest.about
    assert about.vision is not None
    assert about.audio is not None
    assert about.audio.inputs == (("mel", ("N", "L", "128")),)
    assert about.audio.outputs == (("features", ("F", "32")),)
    assert about.vision.inputs == (("pixels", ("N", "3", "96", "96")),)
    assert {MODEL, VISION, AUDIO} <= {file.path for file in loaded.manifest.files}
    assert verify(engine) == []
    report = inspect(engine)
    assert report.audio == about.audio.parameters
    assert f"sounds        {about.audio.parameters:,} parameters besides\n" in report.text()
    assert f" and {about.audio.parameters:,} for sounds, " in loaded.summary().text()


@pytest.mark.parametrize("module", ["vision", "audio"])
def test_a_checkpoint_without_a_tower_says_the_way_out(module: str, engine: Path):
    """The text embeds ids of towers by weights of theirs: it is not the text that lacks them."""
    source = open_checkpoint(engine.parent / "checkpoint")
    kept = {name: held for name, held in source.tensors.items() if module not in name}
    with pytest.raises(WeightError, match=r"no tensor of .*; or give --text-only"):
        defined(source.config, kept)
    assert defined(source.config, kept, text_only=True).tower is None


def test_towers_of_both_are_proven(loaded: Engine):
    parity = loaded.summary().parity
    assert parity is not None
    (result,) = [each for each in parity["results"] if each["scenario"] == FEATURES]
    assert result["positions"] == 4 + 2 + 5  # tokens of a picture, and of two sounds
    assert result["passed"]


def test_where_features_stand(loaded: Engine):
    (ready,) = loaded.prepare([Pictured("abc", [pixels(20, 30)], sounds=[SHORT])], chat=False)
    assert ready.images is not None
    picture = [80, *[87] * 4, 86]
    newlines = [2, 2]
    sound = [81, 92, 92, *[FILLER] * 4, 91]
    between = [*newlines, *newlines]
    letters = [68, 69, 70]
    assert ready.ids == [*newlines, *picture, *between, *sound, *newlines, *letters]
    rows = ready.images.image_rows.tolist()
    assert [row for row in rows if row >= 0] == [*range(4), 4, 5]
    assert rows.index(4) == ready.ids.index(92)


def test_sounds_show(loaded: Engine):
    def first(*sounds: np.ndarray) -> np.ndarray:
        (ready,) = loaded.prepare([Pictured("abc", sounds=sounds)], chat=False)
        return loaded.session().append([ready.ids], None, [ready.images])

    loud, low = first(LONG), first(LONG * np.float32(0.01))
    assert np.abs(loud - low).max() > 1e-3
    assert np.array_equal(first(LONG), loud)
    # Ids that are of sound have rows of their own: what fills a short sound up shows too.
    ids = np.array([[68, 69, FILLER]])
    assert np.abs(loaded.logits(ids) - loaded.logits(ids - [[0, 0, 1]])).max() > 1e-3


def test_the_command_takes_wav_files(engine: Path, tmp_path: Path, lmcast: Callable[..., Any]):
    file, line = write(tmp_path / "a.wav", LONG), tmp_path / "p.jsonl"
    line.write_text('{"prompt": "abc", "sounds": ["a.wav"]}\n')
    assert read_prompts(line) == [Pictured("abc", sounds=[file])]
    given = (["abc", "--audio", file], ["--file", line])
    each = [lmcast("generate", engine, *own, "--max-new-tokens", "3", "--json") for own in given]
    assert [status for status, _, _ in each] == [0, 0]
    assert each[0][1] == each[1][1] != ""


REFUSED = {
    "another rate": (lambda folder: write(folder / "a.wav", LONG, 8000), "has 8000 samples a"),
    "too long": (
        lambda folder: np.zeros(RATE, np.float32),
        r"has 1\.000 seconds; this model takes 0\.",
    ),
    "no frame": (lambda folder: LONG[:512], "not a single frame"),
    "a picture": (lambda folder: pixels(2, 3), "accepted: finite float32"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_sound_is_refused(what: str, loaded: Engine, tmp_path: Path):
    given, message = REFUSED[what]
    with pytest.raises(InputError, match=message):
        loaded.sound(given(tmp_path))
