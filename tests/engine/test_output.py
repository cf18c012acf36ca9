"""What is written never falls on its checkpoint, nor, unasked, on what another one became."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny.llama import config, tiny_llama

from lmcast.exporter import export
from lmcast.exporter.engine.manifest import EngineError, undeclared, verify
from lmcast.exporter.engine.output import check_apart


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, `mine` and `other`, an engine of each, and a recipe of mine."""
    folder = tmp_path_factory.mktemp("output")
    for name in ("mine", "other"):
        tiny_llama(folder / name)
    config(rope_theta=5000.0, extra=None)(folder / "other")
    for path in (folder / "other").glob("*.safetensors"):  # other bytes of a header
        path.rename(path.with_name("weights.safetensors"))
    for name in ("mine", "other"):
        export(folder / name, folder / f"{name}, engine", parity=False, inert=("extra",))
    source = json.loads((folder / "mine, engine/engine.json").read_text())["source"]
    fields = {"version": 1, "source": source, "weights": {}, "inputs": {}, "caches": {}}
    (folder / "recipe").mkdir()
    (folder / "recipe/recipe.json").write_text(json.dumps({**fields, "report": {}}))
    return folder


# What lies at the output -> a part of the refusal of `export mine`; None: it is replaced.
THERE: dict[str, tuple[str, str | None]] = {
    "its own engine": ("mine, engine", None),
    "another's engine": (
        "other, engine", "is an engine of another checkpoint (llama, 21728 parameters): --force",
    ),
    "a recipe": ("recipe", "is a recipe, not what is to be written there: --force"),
}  # fmt: skip


@pytest.mark.parametrize("name", THERE)
def test_export(name: str, made: Path, tmp_path: Path, lmcast):
    there, message = THERE[name]
    output = tmp_path / "output"
    shutil.copytree(made / there, output)
    before = (output / ("recipe.json" if there == "recipe" else "engine.json")).read_bytes()
    command = ("export", made / "mine", "-o", output, "--no-parity")
    status, _, error = lmcast(*command)
    if message is not None:
        assert (status, error.count("\n")) == (2, 1)
        assert f"{output} {message}" in error
        assert before in [path.read_bytes() for path in output.glob("*.json")]
        status, _, _ = lmcast(*command, "--force")
    assert status == 0
    assert verify(output) == []
    assert json.loads((output / "engine.json").read_text())["config"]["rope_theta"] == 10000.0


def test_an_engine_is_known_by_its_files_or_its_config(made: Path, tmp_path: Path):
    """Of a config.json with one more key, or of weights that were trained further."""
    for change in (lambda path: config(bos_token_id=1)(path), lambda path: grow_header(path)):
        shutil.copytree(made / "mine", tmp_path / "again", dirs_exist_ok=True)
        export(made / "mine", tmp_path / "engine", parity=False)
        change(tmp_path / "again")
        export(tmp_path / "again", tmp_path / "engine", parity=False)


def grow_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    file.write_bytes(
        (size + 8).to_bytes(8, "little") + data[8 : 8 + size] + b" " * 8 + data[8 + size :]
    )


def test_a_damaged_engine_is_replaced(made: Path, tmp_path: Path):
    shutil.copytree(made / "other, engine", tmp_path / "engine")
    (tmp_path / "engine/engine.json").write_text('{"format": 3, "lmcast": "0"}')
    with pytest.raises(EngineError, match="of another checkpoint"):
        export(made / "mine", tmp_path / "engine", parity=False)
    export(made / "mine", tmp_path / "engine", parity=False, force=True)


def test_calibrate_and_pack(made: Path, tmp_path: Path, lmcast):
    def refused(there: str, message: str, *command: object) -> None:
        shutil.copytree(made / there, tmp_path / "output", dirs_exist_ok=True)
        status, _, error = lmcast(*command, "-o", tmp_path / "output")
        assert (status, error.count("\n")) == (2, 1)
        assert f"output {message}" in error
        shutil.rmtree(tmp_path / "output")

    (tmp_path / "text.txt").write_text("one two three four five six seven eight nine ten\n" * 400)
    calibrate = ("calibrate", made / "other", "--recipe", "int8", "--data", tmp_path / "text.txt")
    calibrate += ("--tokens", 64, "--chunk", 16, "--inert", "extra")
    refused("mine, engine", "is an engine, not what is to be written", *calibrate)
    refused("recipe", "is a recipe of another checkpoint: --force", *calibrate)
    refused("other, engine", "is an engine of another", "pack", made / "mine, engine")
    status, _, error = lmcast("pack", made / "mine, engine", "-o", made / "mine/packed", "--force")
    assert (status, "is inside the checkpoint" in error) == (2, True)
    assert lmcast("pack", made / "mine, engine", "-o", tmp_path / "packed")[0] == 0


def test_nothing_is_written_into_an_engine(made: Path, tmp_path: Path, lmcast):
    """Of the same checkpoint or of another: it would not be as its manifest says."""
    for name in ("mine", "other"):
        assert lmcast("pack", made / f"{name}, engine", "-o", tmp_path / name)[0] == 0
    for command, output in (
        (("export", made / "mine"), "mine/engine"),
        (("pack", tmp_path / "mine", "--for", "genai"), "other/a/b"),
        (("pack", made / "mine, engine"), "other/packed"),
    ):
        status, _, error = lmcast(*command, "-o", tmp_path / output, "--force")
        assert (status, error.count("\n"), f"{output}: is inside" in error) == (2, 1, True)
    assert not [p for name in ("mine", "other") for p in undeclared(tmp_path / name)]


# Where an output is, from a checkpoint `c` (a directory) or `c/m.gguf` -> a part of the refusal.
PLACES: dict[str, tuple[str, str, str | None]] = {
    "beside it": ("c", "engine", None),
    "in it": ("c", "c/engine", "is inside the checkpoint"),
    "far in it": ("c", "c/a/b", "is inside the checkpoint"),
    "itself": ("c", "c", "is the checkpoint"),
    "above it": ("a/c", "a", "holds the checkpoint"),
    "in it, by a link": ("c", "link/engine", "is inside the checkpoint"),
    "a name that begins as its": ("c", "checkpoint", None),
    "beside a file": ("c/m.gguf", "c/engine", None),
    "above a file": ("c/m.gguf", "c", "holds the checkpoint"),
    "the file": ("c/m.gguf", "c/m.gguf", "is the checkpoint"),
}


@pytest.mark.parametrize("name", PLACES)
def test_places(name: str, tmp_path: Path):
    checkpoint, output, message = PLACES[name]
    for folder in ("c", "a/c"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "c/m.gguf").touch()
    (tmp_path / "link").symlink_to(tmp_path / "c")
    if message is None:
        check_apart(tmp_path / output, tmp_path / checkpoint)
    else:
        with pytest.raises(EngineError, match=message):
            check_apart(tmp_path / output, tmp_path / checkpoint)


@pytest.mark.parametrize("command", [["export"], ["calibrate", "--recipe", "int8"]])
def test_nothing_is_written_into_a_checkpoint(command: list[str], made: Path, lmcast):
    before = sorted((made / "mine").rglob("*"))
    status, _, error = lmcast(*command, made / "mine", "-o", made / "mine/engine", "--force")
    assert (status, error.count("\n")) == (2, 1)
    assert "is inside the checkpoint" in error
    assert sorted((made / "mine").rglob("*")) == before


# tokens asked for -> whether that is said; the tiny model is for 128
@pytest.mark.parametrize(("asked", "said"), [(129, True), (128, False), (None, False)])
def test_a_context_beyond_the_models(
    asked: int | None, said: bool, made: Path, tmp_path: Path, lmcast
):
    options: tuple[Any, ...] = () if asked is None else ("--context", asked)
    command = ("export", made / "mine", "-o", tmp_path / "engine", "--no-parity", *options)
    status, _, error = lmcast(*command)
    assert status == 0
    assert error.startswith("warning: the context is 129 tokens, beyond the 128 of") == said
    assert error.count("\n") == said
