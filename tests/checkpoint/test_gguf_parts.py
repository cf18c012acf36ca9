"""GGUF files that are split into parts, and directories with them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from files.gguf import stored, tiny_gguf, values, write_gguf

from lmcast.exporter.checkpoint import identified, open_checkpoint
from lmcast.exporter.checkpoint.errors import CheckpointError

COUNT = 3


def part(folder: Path, number: int, count: int = COUNT) -> Path:
    return folder / f"tiny-Q8_0-{number + 1:05}-of-{count:05}.gguf"


def split(folder: Path, kind: str = "Q8_0") -> dict[str, torch.Tensor]:
    """Write a model in parts, metadata in the first alone; return the tensors of it in one."""
    tensors = {name: stored(array, kind) for name, array in values("llama").items()}
    total = {"split.count": COUNT, "split.tensors.count": len(tensors)}
    for number in range(COUNT):
        mine = dict(list(tensors.items())[number::COUNT])
        general = {**total, "split.no": number}
        own = {} if number == 0 else None
        write_gguf(part(folder, number), "llama", mine, own, general)
    whole = open_checkpoint(tiny_gguf(folder.parent / "whole.gguf", "llama", kind))
    return {name: whole.read(name) for name in whole.tensors}


@pytest.mark.parametrize("given", ["directory", 0, 1, 2])
def test_any_part_is_the_whole(tmp_path: Path, given: str | int) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    wanted = split(folder)
    (folder / "mmproj-tiny-f16.gguf").write_bytes(b"GGUF")  # of images: no language model
    source, files = identified(folder if isinstance(given, str) else part(folder, given))
    assert source.tensors.keys() == wanted.keys()
    assert all(torch.equal(source.read(name), value) for name, value in wanted.items())
    assert {file.path for file in files} == {part(folder, i).resolve() for i in range(COUNT)}


def test_parts_lie_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    root = tmp_path / "models--a--b"
    snapshot, blobs = root / "snapshots" / "c0ffee", root / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    wanted = split(snapshot)
    for number in range(COUNT):
        os.rename(part(snapshot, number), blobs / f"{number}")
        part(snapshot, number).symlink_to(blobs / f"{number}")
    for given in (snapshot, part(snapshot, 1)):
        source = open_checkpoint(given)
        assert all(torch.equal(source.read(name), value) for name, value in wanted.items())


def rewrite(number: int, general: dict, own: dict | None = None) -> Callable[[Path], object]:
    """Replace a part by one of no tensor but an embedding that the first does not have."""

    def change(folder: Path) -> None:
        name, array = "extra.weight", values("llama")["token_embd.weight"]
        tensors = {name: stored(array, "F16")}
        write_gguf(part(folder, number), "llama", tensors, own, general)

    return change


FIRST, *REST = (rf"tiny-Q8_0-0000{number}-of-00003\.gguf" for number in (1, 2, 3))
SAID = {"split.no": 1, "split.count": COUNT, "split.tensors.count": 20}


def remove(*numbers: int) -> Callable[[Path], object]:
    return lambda folder: [part(folder, number).unlink() for number in numbers]


REFUSED: list[tuple[Callable[[Path], object], str]] = [
    (remove(1, 2), f"2 of 3 parts .* are missing: {', '.join(REST)}; download"),
    (remove(0), f"1 of 3 parts .* are missing: {FIRST}; download"),
    (lambda f: part(f, 1).write_bytes(part(f, 2).read_bytes()), "split.no and split.count are 2"),
    (rewrite(1, SAID | {"split.count": 4}), "are 1 and 4; by its name they are 1 and 3"),
    (rewrite(1, SAID), "split.tensors.count is 20, but its parts hold 14"),
    (rewrite(1, SAID, {"context_length": 99}), r"sets llama\..* where the first part has"),
    (lambda f: part(f, 2).write_bytes(part(f, 2).read_bytes()[:-9]), "truncated"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_parts_that_do_not_make_a_whole(
    tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    split(folder)
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_two_models_are_two(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    split(folder)
    tiny_gguf(folder / "other.gguf")
    with pytest.raises(CheckpointError, match="has 2 GGUF files"):
        open_checkpoint(folder)
