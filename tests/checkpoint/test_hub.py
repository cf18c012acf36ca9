"""Models of the Hub by name: what is downloaded, what the cache gives, what is said otherwise."""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from files.odd_but_legal import EXTRA_FILES
from hub_server import COMMIT, MODEL, Hub, serving
from huggingface_hub import constants
from tiny.llama import WEIGHTS, config, keep_single, remove, shards, steps, tiny_llama, write

from lmcast.exporter.checkpoint import CheckpointError, hub, open_checkpoint
from lmcast.exporter.progress import Progress, Step
from lmcast.plugins.errors import InputError

TEXTS = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
SHARDS = {"model-1.safetensors", "model-2.safetensors"}
INDEX = "model.safetensors.index.json"


class Told(Progress):
    """Keeps what a user would be told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.stages: list[tuple[str, int | None, int]] = []  # name, total, done

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Step]:
        done: list[int] = []
        yield done.append
        self.stages.append((name, total, sum(done)))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with the tiny checkpoint, and an empty cache."""
    tiny_llama(tmp_path / "repository")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with serving(tmp_path / "repository") as found:
        template = found.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": found.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        yield found


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (EXTRA_FILES, {WEIGHTS}),
        (shards(), SHARDS | {INDEX}),
        (shards(("a/m [1].safetensors", "b/m.safetensors")),
         {"a/m [1].safetensors", "b/m.safetensors", INDEX}),
        (keep_single(lambda folder: None), {WEIGHTS, INDEX, *SHARDS}),
        (keep_single(remove(*SHARDS)), {WEIGHTS, INDEX}),
        (steps(write("consolidated.safetensors", "no"), write("params.json", "{}")),
         {WEIGHTS, "params.json"}),
        (write("chat_template.jinja", "{{ messages }}"), {WEIGHTS, "chat_template.jinja"}),
        (lambda d: shutil.copytree(d, d / "onnx"), {WEIGHTS}),
        (lambda d: (d / WEIGHTS).rename(d / "w.safetensors"), {"w.safetensors"}),
        (lambda d: (shutil.copytree(d, d / "original"), (d / WEIGHTS).rename(d / "w.safetensors")),
         {"w.safetensors"}),
    ],
)  # fmt: skip
def test_what_is_read_is_downloaded(
    change: Callable[[Path], object], wanted: set[str], served: Hub, tmp_path: Path
):
    change(served.folder)
    found = open_checkpoint(MODEL)
    assert served.downloaded() == TEXTS | wanted
    assert found.path == tmp_path / f"cache/models--lab--tiny/snapshots/{COMMIT}"
    same = open_checkpoint(served.folder)
    assert found.tensors.keys() == same.tensors.keys()
    assert (found.config, found.texts) == (same.config, same.texts)


def test_a_second_time_nothing_is_downloaded(served: Hub):
    first = open_checkpoint(MODEL)
    assert {agent.partition("/")[0] for _, agent in served.asked} == {"lmcast"}
    assert not [path for path, agent in served.asked if "torch" in agent or "telemetry" in path]
    served.asked.clear()
    assert open_checkpoint(MODEL, "v1").path == open_checkpoint(MODEL, COMMIT).path == first.path
    assert served.downloaded() == set()


def test_progress_counts_bytes(served: Hub):
    told = Told()
    open_checkpoint(MODEL, progress=told)
    size = (served.folder / WEIGHTS).stat().st_size
    assert told.stages[0] == (f"downloading {MODEL}", size, size)
    assert told.warnings == []


def test_an_interrupt_ends_the_download(served: Hub):
    """At once, as it comes to the main thread alone; and half a file is not left in the cache."""

    class Interrupts(Progress):
        @contextmanager
        def stage(self, name: str, total: int | None = None) -> Iterator[Step]:
            yield self.step

        def step(self, done: int) -> None:
            assert threading.current_thread() is threading.main_thread()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_checkpoint(MODEL, progress=Interrupts())
    cached = {path.name for path in Path(constants.HF_HUB_CACHE).rglob("*") if path.is_file()}
    assert "config.json" in cached and WEIGHTS not in cached
    assert not [name for name in cached if "incomplete" in name]


UNREACHABLE = "http://127.0.0.1:9"  # discard: nobody listens
# What goes wrong -> what the server refuses, what is set, and what it is called.
FAILURES: dict[str, tuple[dict[str, str], dict[str, object], str]] = {
    "gated": ({"api": "GatedRepo"}, {}, "access to it is gated"),
    "missing": ({"api": "RepoNotFound"}, {}, "it does not exist or is private"),
    "token": ({"api": "Token"}, {}, "the token is refused"),
    "down": ({"api": ""}, {}, "it answers with status 503"),
    "offline": ({}, {"HF_HUB_OFFLINE": True}, "not looked for, as HF_HUB_OFFLINE is set"),
    "unreachable": ({}, {"ENDPOINT": UNREACHABLE}, r"cannot be asked for \(ConnectError"),
    "no hub": ({"api": "Other"}, {}, r"cannot be asked for \(KeyError: 'id'"),
    "no commit": (
        {"api": "NoCommit"},
        {},
        r"cannot be asked for \(ValueError: its answer names no",
    ),
}
REMEDIES = {
    "gated": r"ask for it at http.*/lab/tiny, and log in with `hf auth login` or HF_TOKEN",
    "missing": "correct the name, or log in with `hf auth login` or HF_TOKEN",
    "token": "log in with `hf auth login` or HF_TOKEN",
    "down": "try again later",
    "offline": "unset that",
    "unreachable": "look at the network and HF_ENDPOINT, or give a directory",
    "no hub": "look at the network and HF_ENDPOINT, or give a directory",
    "no commit": "look at the network and HF_ENDPOINT, or give a directory",
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures(name: str, served: Hub, monkeypatch: pytest.MonkeyPatch):
    """One line without a cache; with one, its snapshot and a warning."""
    refuse, changed, message = FAILURES[name]

    def fails() -> None:
        served.refuse = refuse
        for constant, value in changed.items():
            monkeypatch.setattr(constants, constant, value)

    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "-full")
        cached = open_checkpoint(MODEL)
        full = constants.HF_HUB_CACHE
    fails()
    one_line = f"^lab/tiny: is no path here; on the Hub, .*{message}.*, and it is not in the cache"
    with pytest.raises(CheckpointError, match=f"{one_line}.*; {REMEDIES[name]}$"):
        open_checkpoint(MODEL)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", full)
    told = Told()
    assert open_checkpoint(MODEL, progress=told).path == cached.path
    (warning,) = told.warnings
    assert re.search(f"{message}.*; used is the cached snapshot {COMMIT}", warning)


def test_a_revision_that_is_not_there(served: Hub):
    """Another one in the cache is none either."""
    open_checkpoint(MODEL)
    message = "^lab/tiny: has no revision 'v9'; give a branch, tag or commit of http.*/lab/tiny$"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(MODEL, "v9")


def test_files_alone_may_be_gated(served: Hub):
    """As on the Hub, where anyone sees the names of files."""
    served.refuse = {"resolve": "GatedRepo"}
    with pytest.raises(CheckpointError, match=r"^lab/tiny: on the Hub, access to it is gated; ask"):
        open_checkpoint(MODEL)


def test_half_a_file(served: Hub):
    """As a proxy may cut it: nothing is made of it, nor kept."""
    served.refuse = {"body": "Half"}
    with pytest.raises(CheckpointError, match=r"^lab/tiny: on the Hub, .*should be of size"):
        open_checkpoint(MODEL)
    served.refuse = {}
    assert open_checkpoint(MODEL).tensors


def test_a_cache_that_cannot_be_written(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file/cache"))
    message = r"^lab/tiny: cannot be downloaded into the cache \(.*/file/cache\): Not a directory$"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(MODEL)


def test_a_snapshot_with_a_part_of_the_files(served: Hub, monkeypatch: pytest.MonkeyPatch):
    """As another program may have left it: what is missing is said, and nothing is made of it."""
    folder = open_checkpoint(MODEL).path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"no weights: .* download the whole checkpoint"):
        open_checkpoint(MODEL)


@pytest.mark.parametrize(
    ("change", "message", "downloaded"),
    [
        (write("adapter_config.json", "{}"), "^lab/tiny/adapter_config.json: .*adapter", set()),
        (lambda d: (d / WEIGHTS).rename(d / "pytorch_model.bin"), "pickle only", TEXTS),
        (remove("config.json"), "has no config.json", TEXTS - {"config.json"}),
        (remove(WEIGHTS), "has no weights", TEXTS),
        (config(model_type="opt"), "model_type is 'opt'; lmcast defines afmoe", TEXTS),
        (write("model_index.json", "{}"), "^lab/tiny: is a diffusers pipeline", set()),
        (steps(remove(WEIGHTS), write("a.gguf", ""), write("b.gguf", "")),
         "2 GGUF files; give one of them, as lab/tiny:a.gguf", set()),
    ],
)  # fmt: skip
def test_nothing_large_is_downloaded_in_vain(
    change: Callable[[Path], object], message: str, downloaded: set[str], served: Hub
):
    change(served.folder)
    with pytest.raises(InputError, match=message):
        open_checkpoint(MODEL)
    assert served.downloaded() == downloaded


def test_gguf_files(served: Hub):
    (served.folder / "Q4").mkdir()
    parts = ["Q4/c-00001-of-00002.gguf", "Q4/c-00002-of-00002.gguf"]
    for name in ("a.gguf", "b.gguf", *parts, "Q4/c-00001-of-00003.gguf", "mmproj-a.gguf"):
        write(name, f"GGUF {name}")(served.folder)
    for name, wanted in (("a.gguf", ["a.gguf"]), (parts[0], parts)):
        served.asked.clear()
        path = hub.fetch(f"{MODEL}:{name}", None, Progress())
        assert path.read_text() == f"GGUF {name}"
        assert served.downloaded() == set(wanted)
        assert all((path.parents[name.count("/")] / part).exists() for part in wanted)
    with pytest.raises(
        CheckpointError, match=r"has no file d.gguf; its GGUF files: Q4/c-00001-of-00002"
    ):
        hub.fetch(f"{MODEL}:d.gguf", None, Progress())
    remove(WEIGHTS, "b.gguf", *parts, "Q4/c-00001-of-00003.gguf")(served.folder)
    (served.folder / "original").mkdir()
    (served.folder / "original" / WEIGHTS).touch()
    shutil.rmtree(constants.HF_HUB_CACHE)
    assert hub.fetch(MODEL, None, Progress()).name == "a.gguf"


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("lab/tiny", True),
        ("Qwen/Qwen3-0.6B", True),
        ("lab/tiny-GGUF:tiny.Q4_0.gguf", True),
        ("lab", False),
        ("./lab/tiny", False),
        ("../tiny", False),
        ("/lab/tiny", False),
        ("lab/tiny/", False),
        ("lab/tiny/more", False),
        ("lab/tiny.gguf", False),
        ("lab/model.safetensors", False),
        ("lab/tiny:Q4/a-00001-of-00002.gguf", True),
        ("lab/tiny:../a.gguf", False),
        ("lab/tiny:Q4/../../a.gguf", False),
        ("lab/tiny:a.bin", False),
        ("there/is", False),
        ("there/dangling", False),
        (Path("lab/tiny"), False),
    ],
)
def test_what_is_no_path_and_looks_like_one_is_a_model(
    name: str | Path, is_one: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "there/is").mkdir(parents=True)
    (tmp_path / "there/dangling").symlink_to("nothing")
    monkeypatch.chdir(tmp_path)
    assert hub.is_model(name) == is_one
    if not is_one and name != "there/is":
        with pytest.raises(CheckpointError, match=r"ORG/NAME|neither a directory"):
            open_checkpoint(name)
    if not is_one:
        with pytest.raises(CheckpointError, match="is no model of the Hub, and only those have"):
            open_checkpoint(name, "main")


def test_an_empty_name_is_not_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As a variable of a shell is that was never set."""
    tiny_llama(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="the path of the checkpoint is empty"):
        open_checkpoint("")


def test_its_libraries_call_nobody_else(served: Hub):
    """Of large files, hf_xet would report how fast they came."""
    open_checkpoint(MODEL)
    hf_xet = pytest.importorskip("hf_xet")
    assert os.environ[hub.TELEMETRY_OFF] == "1"
    assert constants.HF_HUB_DISABLE_TELEMETRY
    assert dict(hf_xet.XetConfig().items())["telemetry.enabled"] is False


def test_commands(served: Hub, lmcast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An engine says which commit it is of, and is compared with that; also without a network."""
    status, _, error = lmcast("export", MODEL, "-o", "engine", "--no-parity", "--revision", "v1")
    assert (status, "warning" in error) == (0, False), error
    fields = json.loads(Path("engine/engine.json").read_text())
    assert fields["hub"] == {"repository": MODEL, "revision": COMMIT}
    served.asked.clear()
    status, _, error = lmcast("parity", "engine", "--against", MODEL, "--tokens", 4)
    assert (status, "warning" in error) == (0, False), error
    assert {path.rpartition("/")[2] for path, _ in served.asked} == {COMMIT}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    told = f"as HF_HUB_OFFLINE is set; used is the cached snapshot {COMMIT}"
    status, out, error = lmcast("inspect", MODEL, "--revision", "v1", "--json")
    assert status == 0 and told in error
    assert json.loads(out)["hub"] == fields["hub"]
    status, _, error = lmcast("export", MODEL, "-o", "other", "--revision", "v9")
    assert status == 2
    assert re.fullmatch(
        r"error: lab/tiny: is no path .*HF_HUB_OFFLINE .* its revision 'v9' is .*; unset that\n",
        error,
    )
    assert not Path("other").exists()
