"""Engines, as they were exported, signed or given a plan: what they compute is what they did."""

import os
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fake_tensorrt
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from fake_driver import Driver
from tiny.llama import tiny_llama

from fuzz import edits as editing
from fuzz.edits import Edit
from fuzz.files import Files, Kinds
from fuzz.trial import LONGEST
from lmcast.exporter import export, load
from lmcast.exporter.backends import cuda
from lmcast.exporter.backends.tensorrt import build as plan_builds
from lmcast.exporter.backends.tensorrt.plan import Plan
from lmcast.exporter.backends.tensorrt.request import Sizes, resolve
from lmcast.exporter.build import build
from lmcast.exporter.checkpoint import open_checkpoint
from lmcast.exporter.engine import signing
from lmcast.exporter.engine.inspect import inspect
from lmcast.exporter.engine.manifest import read_manifest, undeclared, verify, write_manifest
from lmcast.exporter.engine.names import ENGINE_JSON, MODEL, SIGNATURE
from lmcast.exporter.engine.output import check_output
from lmcast.exporter.engine.relink import relink
from lmcast.exporter.engine.sealed import DamagedError, FileEntry, seal, unseal
from lmcast.exporter.pack import pack
from lmcast.exporter.prove.quality import _definition
from lmcast.exporter.runtime.sampling import choose_sampling
from lmcast.plugins.errors import InputError

COPIED, LINKED, PLANNED = "copied", "linked", "planned"
ENGINE, CHECKPOINT = "engine", "linked-checkpoint"  # in the folder of a kind
PROMPT = [5, 6, 7]
# Of logits near 1, between graphs that ONNX Runtime has and has not rewritten.
CLOSE = 1e-5
LARGE = 257 << 20  # bytes of a text: more than is read of one
T = TypeVar("T")


class Engines(Kinds):
    def __init__(self) -> None:
        more = sealed, sealed, sealed, listed, listed, added
        arranged = {LINKED: {"more": (*more, linked), "arrange": self._point_to}}
        kinds = [
            Files(name, "", partial(self._make, name), partial(self._use, name),
                  **{"more": more, "inside": ENGINE, **arranged.get(name, {})})
            for name in (COPIED, LINKED, PLANNED)
        ]  # fmt: skip
        super().__init__("engine", "engines: linked, copied and signed, and with a plan", kinds)

    def prepare(self, folder: Path) -> None:
        """Make an engine of each kind, and what they give."""
        self.checkpoint = folder.parent / CHECKPOINT
        self.portable, self.keys = folder.parent / "portable", folder.parent / "keys"
        _checkpoint(self.checkpoint)
        _make_keys(self.keys)
        export(self.checkpoint, self.portable, "onnx", weights="copy", parity=False, context=64)
        engine = load(self.portable, threads=1)
        self.logits = engine.logits([PROMPT])
        (made,) = engine.generate([PROMPT], max_new_tokens=2)
        self.ids = made.ids
        self.about = read_manifest(self.portable).fields
        super().prepare(folder)

    def _make(self, kind: str, folder: Path) -> None:
        engine = folder / ENGINE
        if kind == LINKED:
            _checkpoint(folder / CHECKPOINT)
            export(folder / CHECKPOINT, engine, weights="link", parity=False)
        elif kind == COPIED:
            export(self.checkpoint, engine, weights="copy")
            signing.sign(engine, self.keys / "private")
        else:
            states = [s.name for s in read_manifest(self.portable).about.graph.states]
            fake_tensorrt.add_plan(self.portable, engine, states)

    def _use(self, kind: str, folder: Path, work: Path) -> str | None:
        use = Use(self, work)
        use.all(kind, folder / ENGINE)
        return use.verdict()

    def _point_to(self, place: Path) -> None:
        """Let the linked engine in `place` point to the checkpoint there.

        By a path of as many bytes, so that the graph stays a file of ONNX.
        """
        before = str(self.kinds[LINKED].folder / CHECKPOINT)
        name = "c" * (len(before) - len(str(place)) - 1)
        assert name, f"{place} is too long a path"
        (place / name).symlink_to(CHECKPOINT)
        engine, after = place / ENGINE, str(place / name)
        graph = (engine / MODEL).read_bytes()
        (engine / MODEL).write_bytes(graph.replace(before[1:].encode(), after[1:].encode()))
        fields = dict(read_manifest(engine).fields)
        fields["linked"] = [
            {**file, "path": file["path"].replace(before, after)} for file in fields["linked"]
        ]
        write_manifest(engine, fields)


class Use:
    """All that is done with an engine; what refuses is noted, and the rest is done anyway."""

    def __init__(self, part: Engines, work: Path):
        self.part, self.work = part, work
        self.refusals: list[InputError] = []
        self.wrong: list[str] = []

    def verdict(self) -> str | None:
        """Return what is wrong; raises the first refusal where nothing is."""
        said = [str(error) for error in self.refusals]
        self.wrong += [f"{s!r:.300}" for s in said if "\n" in s or not 0 < len(s) < LONGEST]
        if not self.wrong and self.refusals:
            raise self.refusals[0]
        return self.wrong[0] if self.wrong else None

    def all(self, kind: str, engine: Path) -> None:
        problems = list(self.tried(lambda: verify(engine)) or [])
        whole = not self.refusals and not problems
        problems += self.tried(lambda: undeclared(engine)) or []
        if kind == COPIED:
            key = self.part.keys / "public"
            problems += self.tried(lambda: signing.verify(engine, key)) or []
        for problem in problems:
            self.refusals.append(InputError(str(problem)))
        self.tried(lambda: inspect(engine).text())
        self.tried(lambda: check_output(
            engine, Path("/nowhere"), ENGINE_JSON, self.part.about["source"], False,
            self.part.about["config"]))  # fmt: skip
        if kind == PLANNED:
            _fake(self)
        self.computes(engine, whole)
        if kind == LINKED:
            self.packed(engine, whole)
            self.relinked(engine)
        if kind == PLANNED:
            self.computes(engine, whole, portable=False)
            self.built(engine, whole)

    def tried(self, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except InputError as error:
            self.refusals.append(error)
            return None

    def computes(self, engine: Path, whole: bool, portable: bool = True) -> None:
        """Load an engine and compare what it gives, and read all else of it.

        whole: whether all hashes are right. A load does not compare those of linked weights, which
        an attacker can write anew at the time that they had.
        """
        # A plan reads no number of threads.
        threads = 1 if portable else None
        loaded = self.tried(lambda: load(engine, threads, portable=portable))
        if loaded is None:
            return
        self.tried(lambda: loaded.summary().text())
        self.tried(lambda: choose_sampling(loaded.generation_config, "model", {}))
        self.tried(lambda: loaded.chat_templates)
        self.tried(lambda: loaded.generate(["ab"], max_new_tokens=1, chat=False))
        self.tried(lambda: _definition(loaded, open_checkpoint(self.part.checkpoint)))
        logits = self.tried(lambda: loaded.logits([PROMPT]))
        if whole and logits is not None and not _close(logits, self.part.logits):
            self.wrong.append(f"{engine.name}: other logits")
        made = self.tried(lambda: loaded.generate([PROMPT], max_new_tokens=2))
        if whole and made and made[0].ids != self.part.ids[: len(made[0].ids)]:
            self.wrong.append(f"{engine.name}: tokens {made[0].ids}, not {self.part.ids}")

    def packed(self, engine: Path, whole: bool) -> None:
        output = self.work / "packed"
        if self.tried(lambda: pack(engine, output)) is None:
            return
        if whole and (problems := verify(output)):
            self.wrong.append(f"packed: {problems[0]}")
        self.computes(output, whole)
        shutil.rmtree(output)

    def relinked(self, engine: Path) -> None:
        if self.tried(lambda: relink(engine)) == [] and (problems := verify(engine)):
            self.wrong.append(f"relinked: {problems[0]}")

    def built(self, engine: Path, whole: bool) -> None:
        made = self.tried(lambda: build(engine, "tensorrt-rtx", (120,)))
        if made is not None and whole and (problems := verify(engine)):
            self.wrong.append(f"built: {problems[0]}")


def _close(mine: np.ndarray, theirs: np.ndarray) -> bool:
    return mine.shape == theirs.shape and np.allclose(mine, theirs, rtol=0, atol=CLOSE)


def _checkpoint(folder: Path) -> None:
    tiny_llama(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool_use.jinja").write_text("{{ tools }}")


def _make_keys(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    folder.mkdir()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "private").write_bytes(private)
    (folder / "public").write_bytes(public)


def _fake(use: Use) -> None:
    """Put a GPU and a library into this process, and a builder of plans."""

    def run(job: Any, progress: Any) -> dict[str, Any]:
        Path(job.output).write_text("a plan")
        library = f"tensorrt_rtx {fake_tensorrt.VERSION}"
        return {"library": library, "operators": {}, "in_place": [], "codes": {}, "products": {}}

    fake_tensorrt.GPUS.append(Driver())
    cuda.bindings = lambda: fake_tensorrt.GPUS[-1]
    sys.modules["tensorrt_rtx"] = fake_tensorrt.module()
    plan_builds.order = lambda target, sms, context, sizes: resolve(target, sms, context, Sizes())
    plan_builds.run = run
    plan_builds.read_plan = lambda path: Plan((120,), {}, {}, {}, {})


# Edits that hashes do not find: what was edited is listed and sealed again.


def sealed(engine: Path, chance: random.Random) -> Edit:
    """Return an edit of engine.json, sealed again."""
    kind = chance.choice([editing.of_json, editing.of_typed_json, editing.of_typed_json])
    edit = kind(engine / ENGINE_JSON, ENGINE_JSON, chance)

    def change(path: Path) -> None:
        edit.change(path)
        _seal(path)

    return replace(edit, about=f"{edit.about}, sealed", change=change)


def _seal(path: Path) -> None:
    body = editing.json_of(path)
    body.pop("self", None)
    path.write_bytes(seal(body))


def listed(engine: Path, chance: random.Random) -> Edit:
    """Return an edit of a file that no runtime is given, whose new hash is listed."""
    files = [f.path for f in read_manifest(engine).files if f.path != MODEL]
    name = chance.choice([f for f in files if not f.startswith(("weights/", "plans/"))])
    path = engine / name
    kinds = [editing.of_bytes]
    if path.suffix == ".json":
        kinds += [editing.of_json, editing.of_typed_json]
    edit = chance.choice(kinds)(path, name, chance)
    huge = chance.random() < 0.1

    def change(target: Path) -> None:
        edit.change(target)
        if huge:
            os.truncate(target, LARGE)
        whole = target.parents[len(Path(name).parts) - 1]
        _list(whole, name)

    return replace(edit, about=f"{edit.about}{', huge' * huge}, listed", change=change)


def _list(engine: Path, name: str) -> None:
    """Write the size of a file into engine.json, and its hash."""
    try:
        body = unseal(editing.file_bytes(engine / ENGINE_JSON))
    except DamagedError:
        return
    (entry,) = (entry for entry in body["files"] if entry["path"] == name)
    entry["size"] = (engine / name).stat().st_size
    if entry["size"] <= LARGE:
        entry["sha256"] = editing.digest(engine / name)
    (engine / ENGINE_JSON).write_bytes(seal(body))


def added(engine: Path, chance: random.Random) -> Edit:
    """Return a file more, listed or not."""
    name = chance.choice([
        "more", "weights/more", "generation_config.json", "parity.json", SIGNATURE, "a/b/c",
        "additional_chat_templates/é.jinja", "additional_chat_templates/x/y.jinja",
    ])  # fmt: skip
    data = chance.choice([b"", b"{}", b"[]", b"\xff", b"null", b'{"a": 1}'])
    list_it = chance.random() < 0.5

    def change(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if not list_it:
            return
        engine = path.parents[len(Path(name).parts) - 1]
        body = unseal(editing.file_bytes(engine / ENGINE_JSON))
        files = {entry["path"]: entry for entry in body["files"]}
        files[name] = vars(FileEntry(name, len(data), editing.digest(path)))
        body["files"] = [files[key] for key in sorted(files)]
        (engine / ENGINE_JSON).write_bytes(seal(body))

    return Edit(name, f"is {data!r}{', listed' * list_it}", change)


def linked(engine: Path, chance: random.Random) -> Edit:
    """Return an edit of the file that a linked engine points into; half keep its time."""
    name = f"../{CHECKPOINT}/model.safetensors"
    kinds = [editing.of_bytes, editing.of_bytes, editing.of_json, editing.of_path]
    edit = chance.choice(kinds)(engine / name, name, chance)
    keep = chance.random() < 0.5

    def change(path: Path) -> None:
        before = path.stat()
        edit.change(path)
        if keep and path.exists():
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    return Edit(name, f"{edit.about}{', at the same time' * keep}", change)


PART = Engines()
