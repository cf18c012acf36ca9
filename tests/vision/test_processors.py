"""Processors against transformers' own: pixels to the bit, grids, prompts and positions."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import size_rules
import torch
from tokenizers import Tokenizer
from tower_configs import configs

from lmcast.exporter.checkpoint.files import Folder
from lmcast.exporter.checkpoint.texts import read_texts
from lmcast.exporter.vision import kinds, prompts
from lmcast.exporter.vision import processor as vision
from lmcast.exporter.vision.files import read_processor
from lmcast.exporter.vision.kinds import kimi_k25, llama4, mistral3, qwen3_5
from lmcast.exporter.vision.processor import Clip, Encoded, Processor
from lmcast.plugins import records

AVX2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
pytestmark = pytest.mark.skipif(not AVX2, reason="PyTorch resizes uint8 otherwise without AVX2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where transformers has written its files and what it makes, a directory a case."""
    made = tmp_path_factory.mktemp("oracle")
    command = [sys.executable, str(Path(oracle.__file__)), str(made)]
    subprocess.run(command, check=True, capture_output=True)
    return made


def read(folder: Path, name: str) -> Processor:
    case, texts = oracle.CASES[name], read_texts(Folder.at(folder))
    kind = name.split()[0].strip(",")
    config, audio = configs(kind)
    found = read_processor(kind, config, texts, audio)
    return vision.changed(found, "image", **case.get("sizes", {}))


def encoded(processor: Processor, given: tuple[Any, ...]) -> list[Encoded]:
    if isinstance(given[0], int):
        return vision.encode_audio(processor, oracle.sound(given[0]))
    if len(given[0]) == 2:
        return vision.encode(processor, [oracle.picture(*size) for size in given])
    frames, rate = oracle.video(*given[0]), given[1]
    chosen = vision.frame_indices(processor, len(frames), rate)
    return vision.encode_video(processor, Clip(frames[chosen], tuple(chosen / rate)))


def merged(raster: np.ndarray, merge: int) -> np.ndarray:
    """Return [t, gh, gw, E] as [M, K, E]."""
    t, gh, gw, e = raster.shape
    cut = raster.reshape(t, gh // merge, merge, gw // merge, merge, e)
    return cut.transpose(1, 3, 0, 2, 4, 5).reshape(-1, t * merge * merge, e)


def of_planes(planes: np.ndarray, side: int, merge: int) -> np.ndarray:
    """Return [3, H, W] as [M, K, E]."""
    _, height, width = planes.shape
    cut = planes.reshape(3, height // side, side, width // side, side).transpose(1, 3, 0, 2, 4)
    return merged(cut.reshape(1, height // side, width // side, -1), merge)


def theirs(kind: str, number: int, found: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the patches [M, K, E] of each N that transformers makes of a prompt."""

    def of(key: str) -> np.ndarray:
        return found[f"{number} {key}"]

    name = "pixel_values_videos" if f"{number} video_grid_thw" in found else "pixel_values"
    pixels = of(name)
    if kind == "mistral3":  # padded to the largest of the prompt
        sizes = of("image_sizes")
        return [of_planes(p[:, :h, :w], 14, 2) for p, (h, w) in zip(pixels, sizes, strict=True)]
    if kind in ("gemma3", "llama4"):
        return [of_planes(p, 14, 2) for p in pixels]
    grids = of("video_grid_thw" if name.endswith("videos") else "image_grid_thw")
    parts = np.split(pixels.reshape(len(pixels), -1), np.cumsum(grids.prod(axis=1))[:-1])
    if kind == "kimi_k25":
        return [merged(p.reshape(*g, -1), 2) for p, g in zip(parts, grids, strict=True)]
    return [
        frame
        for part, (t, gh, gw) in zip(parts, grids, strict=True)
        for frame in part.reshape(t, gh * gw // 4, 4, -1)
    ]


@pytest.mark.parametrize("name", oracle.CASES)
def test_processors(folder: Path, name: str) -> None:
    processor = read(folder / name, name)
    # What an engine keeps is enough.
    written = json.loads(json.dumps(asdict(processor)))
    assert records.read(Processor, written) == processor
    found = dict(np.load(folder / name / "oracle.npz"))
    words = Tokenizer.from_file(str(folder / name / "tokenizer.json"))
    for number, (text, *given) in enumerate(oracle.CASES[name]["prompts"]):
        made = encoded(processor, tuple(given))
        ids = words.encode(prompts.expand(processor, text, made)).ids
        assert ids == found[f"{number} input_ids"][0].tolist()
        for key in ("pixels", "mel"):
            if key in made[0].inputs:
                name_of = {"pixels": "pixel_values", "mel": "input_features"}[key]
                np.testing.assert_array_equal(made[0].inputs[key], found[f"{number} {name_of}"])
        if "patches" in made[0].inputs:
            ours = [frame for each in made for frame in each.inputs["patches"]]
            for one, other in zip(ours, theirs(processor.kind, number, found), strict=True):
                np.testing.assert_array_equal(one, other)
        if isinstance(given[0], tuple) and len(given[0]) == 2:
            counts = [vision.features(processor, *size) for size in given]
            assert counts == [each.features for each in made]
        at = prompts.places(processor, ids, made)
        again = np.where(at.image_rows < 0, at.input_ids, ids)  # as an engine reports them
        assert np.array_equal(prompts.places(processor, again, made).image_rows, at.image_rows)
        types = found.get(f"{number} mm_token_type_ids", found.get(f"{number} token_type_ids"))
        if types is not None:
            filled = sum(each.filled for each in made)
            assert (at.image_rows >= 0).sum() + filled == (types > 0).sum()
            assert (types[0][at.image_rows >= 0] > 0).all()
        assert at.image_rows.max() + 1 == sum(each.features for each in made)


LLAMA = llama4.Sizes(size_rules.TILE, 16, 14, 2, False)
KIMI = kimi_k25.Sizes(size_rules.PATCHES, size_rules.SIDE, 14, 2, 64, 64)
QWEN = qwen3_5.VideoSizes(*size_rules.VIDEOS, 16, 2, 2, 48, 2.0, 4, 768, None)


def canvas(sizes: llama4.Sizes, height: int, width: int) -> list[int]:
    return [count * sizes.side for count in llama4.canvas(sizes, height, width)]


# Rule -> (height, width, frames) -> height and width.
RULES: dict[str, Callable[[int, int, int], Any]] = {
    "mistral3": lambda h, w, n: mistral3.resized(mistral3.Sizes(size_rules.EDGE, 14, 2), h, w),
    "llama4, canvas": lambda h, w, n: canvas(LLAMA, h, w),
    "llama4, enlarged": lambda h, w, n: canvas(replace(LLAMA, enlarge=True), h, w),
    "llama4, picture": lambda h, w, n: llama4.fitted(LLAMA, (h, w), llama4.canvas(LLAMA, h, w)),
    "qwen3_5": lambda h, w, n: qwen3_5.resized((h, w), 32, *size_rules.PICTURES),
    "qwen3_5, video": lambda h, w, n: qwen3_5.resized_frames(QWEN, (h, w), n),
    "kimi_k25": lambda h, w, n: kimi_k25.resized(KIMI, h, w),
    "kimi_k25, filled": lambda h, w, n: kimi_k25.filled(KIMI, *kimi_k25.resized(KIMI, h, w)),
}


def test_sizes_of_many_shapes(folder: Path) -> None:
    theirs = dict(np.load(folder / "sizes.npz"))
    assert theirs.keys() == RULES.keys()
    for rule, size in RULES.items():
        for shape, expected in zip(size_rules.SHAPES, theirs[rule].tolist(), strict=True):
            assert list(size(*shape)) == expected, (rule, shape)


FLAT = {"image_processor": "", "feature_extractor": "", "video_processor": "video_"}


@pytest.mark.parametrize("name", oracle.CASES)
def test_files_of_before_transformers_5(folder: Path, name: str, tmp_path: Path) -> None:
    """Flat files say the same as nested ones."""
    for file in (folder / name).glob("token*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = json.loads((folder / name / "processor_config.json").read_text())
    flat: dict[str, dict[str, Any]] = {}
    for nested, before in FLAT.items():
        flat.setdefault(f"{before}preprocessor_config.json", {}).update(whole.pop(nested, {}))
    for file, said in {**flat, "processor_config.json": whole}.items():
        if said:
            (tmp_path / file).write_text(json.dumps(said))
    assert read(tmp_path, name) == read(folder / name, name)


def test_every_kind_has_a_case(folder: Path) -> None:
    covered = {read(folder / name, name).kind for name in oracle.CASES}
    assert covered == set(kinds.NAMES)
    assert list(kinds.NAMES) == sorted(kinds.NAMES)
    assert {kinds.get(name).name for name in kinds.NAMES} == covered
