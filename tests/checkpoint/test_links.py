"""Links that leave a checkpoint directory: one's own are followed, nobody else's.

Those that are, and that are not whoever made them, are in tests/files.
"""

import os
from pathlib import Path

import pytest
from files.odd_but_legal import LINKS_OUT
from tiny.llama import WEIGHTS, move_out, tiny_llama

from lmcast.exporter import export, load
from lmcast.exporter.checkpoint import CheckpointError, files, open_checkpoint
from lmcast.exporter.engine.manifest import EngineError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("name", LINKS_OUT)
def test_links_of_others_stay_inside(name, folder, monkeypatch):
    """Followed where the user or root has made them, as test_accepts shows; here nobody has."""
    LINKS_OUT[name](folder)
    monkeypatch.setattr(files, "trusted_owners", set)
    with pytest.raises(CheckpointError, match=rf"belongs to user {os.getuid()}; accepted: links"):
        open_checkpoint(folder)


def test_every_link_on_the_way_counts(folder, monkeypatch):
    """One's own link to a directory, in which another user's link leads on."""
    LINKS_OUT["directory"](folder)
    theirs = folder.parent / "way"
    real = os.lstat

    def lstat(path):
        found = list(real(path))
        found[4] = 12345 if path == theirs else os.getuid()  # st_uid
        return os.stat_result(found)

    monkeypatch.setattr("os.lstat", lstat)
    with pytest.raises(CheckpointError, match=f"{theirs} belongs to user 12345"):
        open_checkpoint(folder)


def test_root_may_link(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Who runs this is another user than who made the links, which belong to user 0."""
    LINKS_OUT["weights"](folder)
    real = os.lstat
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    owner = os.getuid()
    monkeypatch.setattr(files, "ROOT_USER", owner)
    assert open_checkpoint(folder).tensors
    assert real(folder / WEIGHTS).st_uid == owner


def test_a_linked_engine_holds_to_the_file_behind_the_link(folder: Path, tmp_path: Path):
    """To its identity: another link in place of this one changes nothing, another file is said."""
    move_out(WEIGHTS)(folder)
    file = tmp_path / f"outside-{WEIGHTS}"
    export(folder, tmp_path / "engine", weights="link", parity=False)
    engine = load(tmp_path / "engine")
    assert engine.summary().linked == (str(file),)
    (folder / WEIGHTS).unlink()
    assert load(tmp_path / "engine").linked
    os.utime(file, ns=(0, 5))
    with pytest.raises(EngineError, match=f"{file}: changed: modification time"):
        load(tmp_path / "engine")
