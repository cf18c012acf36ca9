"""Command lines: run as typed, in a folder of good files; what is refused changes nothing."""

import json
import os
import random
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from files.recipe_dirs import write_packed
from tiny.llama import tiny_llama

from fuzz.folders import state
from fuzz.lines import Change, Line, draw
from fuzz.trial import INPUT
from lmcast.exporter import Engine, export
from lmcast.exporter.cli import UNREAD, cli, main
from lmcast.exporter.engine.manifest import is_engine, is_recipe, undeclared, verify
from lmcast.exporter.prove.parity import parity
from lmcast.plugins.errors import InputError

TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% endfor %}<s>assistant:"
CHAT = [{"role": "user", "content": "hi"}]
PROMPT, PICKED = "abc", 4  # of the good lines
# Beside one error: warnings, and what is said of long work.
SAID = re.compile(
    r"(warning|note): |calibrating \d+ layers, |layer \d+ of \d+ is done |.+ \.\.\.$"
    r"|.+: \d+ % after \d+ s$|building a plan of |pass \d+ of at most |\d+ of \d+ layers are there "
)
IN_PLACE = ("build", "sign", "pack", "verify")  # commands that may change their engine


def make(folder: Path) -> None:
    """Write what the lines name."""
    tiny_llama(folder / "checkpoint")
    (folder / "checkpoint/chat_template.jinja").write_text(TEMPLATE)
    for name, target, weights in (
        ("engine", "cpu", "link"), ("packed", "cpu", "copy"), ("portable", "onnx", "copy"),
    ):  # fmt: skip
        export(folder / "checkpoint", folder / name, target, weights=weights)
    write_packed(folder / "checkpoint", folder / "recipe", {"down_proj.weight": "int8"})
    before = parity(folder / "packed", folder / "checkpoint").as_json()
    (folder / "before.json").write_text(json.dumps({"report": "lmcast parity", **before}))
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("mine\n")
    (folder / "prompts.txt").write_text("abc\nhello you\n")
    lines: list[Any] = ["abc", [5, 6, 7], {"prompt": "x"}, {"messages": CHAT}]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = "It was the best of times, it was the worst of times. " * 30
    (folder / "corpus.txt").write_text(text)
    (folder / "corpus.jsonl").write_text(json.dumps({"text": text}) + "\n" + json.dumps(text))
    (folder / "slice.json").write_text('{"intermediate_size": 32}')
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "private.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (folder / "public.pem").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    for name, target in {
        "loop": "loop", "dangling": "nothing", "to-engine": "engine", "to-notes": "notes.txt",
    }.items():  # fmt: skip
        (folder / name).symlink_to(target)


@dataclass(frozen=True)
class Ended:
    """What a command left: its exit status, its words, and which paths it changed."""

    status: int
    out: str
    err: str
    changed: frozenset[str]


class Commands:
    name, about = "cli", "command lines: options, paths, streams"

    def prepare(self, folder: Path) -> None:
        make(folder)
        self.folder = folder

    def edits(self, chance: random.Random) -> Sequence[Change]:
        return list(draw(chance))

    def run(self, edits: Sequence[Change], work: Path) -> str | None:
        shutil.copytree(self.folder, work / INPUT, symlinks=True)
        os.mkfifo(work / INPUT / "pipe")
        # Who writes into a pipe waits for a reader, as in all programs; reports fit into it.
        os.open(work / INPUT / "pipe", os.O_RDWR)
        os.chdir(work / INPUT)
        line = Line()
        for edit in edits:
            edit.change(line)
        before = state(work)
        status, out, err = typed(line)
        after = state(work)
        names = before.keys() | after.keys()
        changed = frozenset(name for name in names if before.get(name) != after.get(name))
        return judged(line, Ended(status, out, err, changed))


def typed(line: Line) -> tuple[int, str, str]:
    """Run a line; return its exit status, and what came to standard output and error."""
    socket.socket.connect = refuse  # type: ignore[method-assign]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        streams = {"stdin": "r", "stdout": "w", "stderr": "w"}
        for number, (name, mode) in enumerate(streams.items()):
            kind = line.streams[name]
            if kind == "closed":
                os.close(number)
                setattr(sys, name, None)
                continue
            file = err if number == 2 else out
            os.dup2(file.fileno() if kind == "file" else opened(kind), number)
            errors = "backslashreplace" if number == 2 else "strict"
            stream = open(number, mode, 1 if number == 2 else -1, "utf-8", errors, closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
        status = ended(line.words)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return status, texts[0], texts[1]


def ended(words: Sequence[str]) -> int:
    """Run words as the interpreter does; return its exit status."""
    sys.argv = ["lmcast", *words]
    status = 0
    try:
        main()
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        return 120  # Python's own, with lines on standard error
    return status


def refuse(*_: object) -> None:
    raise OSError(101, "Network is unreachable")


def opened(kind: str) -> int:
    """Return a descriptor of another kind than a file with nothing in it."""
    if kind in ("full", "endless", "nothing"):
        name = {"full": "/dev/full", "endless": "/dev/zero", "nothing": os.devnull}
        return os.open(name[kind], os.O_WRONLY if kind == "full" else os.O_RDONLY)
    reader, writer = os.pipe()
    if kind == "pipe":
        os.close(reader)
        return writer
    os.write(writer, b"abc\n" if kind == "text" else b"\xff\xfe\0abc")
    os.close(writer)
    return reader


# Verdicts.


def judged(line: Line, ended: Ended) -> str | None:
    """Return what is wrong with how a line ended; raises InputError where it was refused."""
    allowed = (0, 1, 2, UNREAD) if "pipe" in line.streams.values() else (0, 1, 2)
    lost = {name for name in ("stdout", "stderr") if line.streams[name] != "file"}
    said = [text for text in ended.err.splitlines() if text.strip()]
    if "Traceback" in ended.err or ended.status not in allowed:
        return f"exit status {ended.status}: {ended.err[-300:]!r}"
    if ended.status == 2 and "stderr" not in lost and not said[-1:]:
        return "exit status 2 without a word"
    more = [text for text in said[:-1] if not SAID.match(text)]
    if more and not (len(line.words) < 2 and ended.err.startswith("Usage: ")):
        return f"a line of standard error: {more[0]:.200}"
    if ended.status == 2:
        if ended.changed and "stdout" not in lost:
            return f"refused, and changed: {', '.join(sorted(ended.changed)[:5])}"
        if ended.out and "stdout" not in lost:
            return f"refused, and printed: {ended.out:.200}"
        raise InputError(said[-1] if said else "not said")
    params = parsed(line.words)
    if params is None:  # for help
        return "help changes something" if ended.changed else None
    command = line.words[0]
    if wrong := sorted(set(out_of_place(command, params, ended.changed))):
        return f"changed: {', '.join(wrong[:5])}"
    if ended.status == UNREAD:
        return None
    if ended.status == 1:
        fails = command in ("verify", "parity", "quality", "diff")
        return None if fails else f"exit status 1: {ended.err:.200}"
    return missing(command, params, ended.out if "stdout" not in lost else None)


def parsed(words: Sequence[str]) -> dict[str, Any] | None:
    """Return the parameters of a line that was accepted, None of one that asks for help."""
    try:
        rest = list(words)
        with cli.make_context("lmcast", rest, resilient_parsing=False) as group:
            name, command, rest = cli.resolve_command(group, [*group.protected_args, *group.args])
            assert command is not None
            with command.make_context(name, rest, parent=group) as context:
                return dict(context.params)
    except (click.exceptions.Exit, click.exceptions.NoArgsIsHelpError):
        return None


def out_of_place(command: str, params: dict[str, Any], changed: frozenset[str]) -> Iterator[str]:
    """Yield the changed paths that a line does not name as its outputs."""
    named = [params.get(name) for name in ("output", "json_file", "junit", "html_file")]
    if command in IN_PLACE and params.get("output") is None:
        named.append(params["engine"])
    roots = [os.path.realpath(path) for path in named if path is not None]
    work = Path.cwd().parent
    for name in changed:
        path = os.path.realpath(work / name)
        if not any(path == root or path.startswith(f"{root}/") for root in roots):
            yield name


def missing(command: str, params: dict[str, Any], out: str | None) -> str | None:
    """Return what a command that succeeded did not do."""
    if out is not None and params.get("as_json"):
        try:
            for text in out.splitlines() if command == "generate" else [out]:
                json.loads(text)
        except ValueError:
            return f"prints no JSON: {out!r:.200}"
    for name in ("json_file", "junit", "html_file"):
        path = params.get(name)
        if path is None or str(path) == "-" or not path.is_file():
            continue
        if name == "json_file":
            json.loads(path.read_text())
        elif name == "junit":
            ElementTree.parse(path)
    if command in ("export", "pack", "build", "sign"):
        engine = params.get("output") or params["engine"]
        if params.get("program") in ("js", "triton"):  # whose layout is no engine's
            return None if any(engine.iterdir()) else f"{engine} is empty"
        return wrong_engine(engine, "recipe" in params and params["recipe"] is not None)
    if command == "calibrate" and not is_recipe(params["output"]):
        return "there is no recipe"
    return None if out is None or params.get("json_file") else _wrong_words(command, params, out)


def wrong_engine(path: Path, quantized: bool) -> str | None:
    """Return what is wrong with an engine that was written."""
    if not is_engine(path):
        return f"there is no engine {path}"
    if problems := [*verify(path), *undeclared(path)]:
        return f"{path}: {problems[0]}"
    Engine(path, threads=1)
    return None


def _wrong_words(command: str, params: dict[str, Any], out: str) -> str | None:
    if not out.strip() and command != "generate":
        return "prints nothing"
    if command == "inspect" and params["as_json"]:
        found = json.loads(out)
        if found["batch"] != params["batch"]:
            return f"batch {found['batch']}"
        if params["context"] not in (None, found["tokens"]):
            return f"context {found['tokens']}"
    if command == "generate" and params["as_json"]:
        most = params["max_new_tokens"]
        for row in map(json.loads, out.splitlines()):
            if most is not None and not 1 <= len(row["ids"]) <= most:
                return f"{len(row['ids'])} tokens"
    return None


PART = Commands()
