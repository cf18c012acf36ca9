"""Prompts from standard input, and a chat on a terminal: both answer as the same prompt alone."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from tiny.llama import tiny_llama

from lmcast.exporter import Engine, export
from lmcast.exporter.cli import chat

TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% endfor %}<s>assistant:"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines: one that chats, one without a template, one without a tokenizer."""
    folder = tmp_path_factory.mktemp("chat")
    tiny_llama(folder / "checkpoint")
    export(folder / "checkpoint", folder / "plain", parity=False)
    export(folder / "checkpoint", folder / "ids", parity=False, tokenizer=False)
    (folder / "checkpoint/chat_template.jinja").write_text(TEMPLATE)
    export(folder / "checkpoint", folder / "engine", parity=False)
    return folder


# standard input, options -> the prompt that it stands for, or a part of the refusal
INPUTS: dict[str, tuple[bytes | None, list[str], str | None, str]] = {
    "a pipe": (b"hello\n", [], "hello", ""),
    "a dash": (b"hello\n", ["-"], "hello", ""),
    "no end of the line": (b"hello", [], "hello", ""),
    "a line end of Windows": (b"hello\r\n", [], "hello", ""),
    "two lines": (b"hello \nyou\n", [], "hello \nyou", ""),
    "a prompt besides": (b"not this", ["hello"], "hello", ""),
    "nothing": (b"", [], None, "give a PROMPT or --file, or a text on standard input"),
    "an empty line": (b"\n", ["-"], None, "give a PROMPT or --file, or a text on standard"),
    "closed": (None, [], None, "give a PROMPT or --file, or a text on standard input"),
    "not UTF-8": (b"hell\xf6\n", [], None, "standard input is not UTF-8 at byte 4"),
    "a file, too": (b"hello", ["-", "--file", "p.txt"], None, "give either a PROMPT or --file"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_standard_input(name: str, made: Path, lmcast, monkeypatch: pytest.MonkeyPatch):
    data, options, prompt, message = INPUTS[name]
    stream = None if data is None else io.TextIOWrapper(io.BytesIO(data))
    monkeypatch.setattr(sys, "stdin", stream)
    status, out, error = lmcast("generate", made / "plain", *options, "-n", 5, "--json")
    if prompt is None:
        assert (status, out) == (2, "")
        assert message in error
    else:
        assert (status, error) == (0, "")
        assert out == lmcast("generate", made / "plain", prompt, "-n", 5, "--json")[1]


def test_token_ids_of_standard_input(made: Path, lmcast, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"74, 71 78\n")))
    _, out, _ = lmcast("generate", made / "ids", "--ids", "-n", 5)
    assert out == lmcast("generate", made / "ids", "74 71 78", "--ids", "-n", 5)[1]


def conversation(folder: Path, typed: list[str], ends: str) -> tuple[int, list[str]]:
    """Type lines at a terminal; return the exit status and what is shown of each answer."""
    parent, child = pty.openpty()
    code = "from lmcast.exporter.command import main; main()"
    words = ["generate", str(folder / "engine"), "--system", "Be brief.", "-n", "6"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdin=child, stdout=child, stderr=subprocess.DEVNULL,
        env={**os.environ, "TERM": "dumb"}, start_new_session=True,
    )  # fmt: skip
    os.close(child)
    shown, answers = b"", []
    for line in [*typed, ends]:
        while not shown.endswith(b"> "):
            shown += os.read(parent, 1 << 16)
        answers.append(shown.decode().removesuffix("> ").replace("\r\n", "\n"))
        shown = b""
        os.write(parent, line.encode())
    status = process.wait(timeout=60)
    os.close(parent)
    return status, answers[1:]


@pytest.mark.parametrize("ends", ["/exit\n", "\x04"], ids=["exit", "end of input"])
def test_a_terminal_is_a_chat(ends: str, made: Path):
    typed = ["hello\n", "\n", "and again\n", "/new\n", "hello\n"]
    status, shown = conversation(made, typed, ends)
    assert status == 0
    engine, system = Engine(made / "engine"), {"role": "system", "content": "Be brief."}
    messages, expected = [system], []
    for line in typed:
        words = line.strip()
        if words == "/new":
            messages = [system]
        if words in ("/new", ""):
            expected.append(line)
            continue
        messages.append({"role": "user", "content": words})
        (result,) = engine.generate([messages], max_new_tokens=6)
        messages.append({"role": "assistant", "content": result.text})
        expected.append(f"{line}{result.text}\n")
    assert shown == expected


# engine, options -> a part of the refusal
NO_CHATS: dict[str, tuple[str, list[str], str]] = {
    "no template": ("plain", [], "plain: this engine has no chat template, so there is no chat"),
    "no tokenizer": ("ids", [], "ids: this engine has no tokenizer"),
    "token ids": ("engine", ["--ids"], "--ids, --json and --no-chat are not for a chat"),
    "JSON": ("engine", ["--json"], "--ids, --json and --no-chat are not for a chat"),
    "not wanted": ("engine", ["--no-chat"], "--ids, --json and --no-chat are not for a chat"),
}


@pytest.mark.parametrize("name", NO_CHATS)
def test_no_chat(name: str, made: Path, lmcast, monkeypatch: pytest.MonkeyPatch):
    engine, options, message = NO_CHATS[name]
    monkeypatch.setattr(chat, "is_terminal", lambda stream: True)
    status, out, error = lmcast("generate", made / engine, *options)
    assert (status, out) == (2, "")
    assert message in error


def test_a_chat_goes_on_after_an_error(made: Path, lmcast, monkeypatch: pytest.MonkeyPatch):
    lines = iter(["x" * 200, "hello", "/exit"])
    monkeypatch.setattr(chat, "is_terminal", lambda stream: True)
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    status, out, error = lmcast("generate", made / "engine", "-n", 3)
    assert status == 0
    assert "over the context of 128" in error
    said = [{"role": "user", "content": "hello"}]
    (expected,) = Engine(made / "engine").generate([said], max_new_tokens=3)
    assert out == f"{expected.text}\n"
    assert ("(cut off at 3 tokens" in error) == (expected.finish_reason == "length")


def test_what_was_said_is_not_computed_again(made: Path):
    engine = Engine(made / "ids")
    talk = engine.conversation()
    appended: list[int] = []

    def counted(input_ids, counts=None):
        appended.append(len(input_ids[0]))
        return append(input_ids, counts)

    def answer(prompt: list[int]) -> tuple[int, ...]:
        appended.clear()
        (result,) = engine.generate([prompt], max_new_tokens=4, conversation=talk)
        assert result == engine.generate([prompt], max_new_tokens=4)[0]
        return result.ids

    append = talk._session.append
    talk._session.append = counted
    prompt = [5, 6, 7, 8, 9]
    prompt += [*answer(prompt), 40, 41]
    steps = 3  # the last token of an answer is not run
    assert appended == [5, *[1] * steps]
    assert talk.cached == 8
    prompt += [*answer(prompt), 42]
    assert appended == [3, *[1] * steps]
    other = [5, 60, *prompt[2:]]  # the beginning is another: a fresh session, which is not counted
    answer(other)
    assert appended == []
    assert talk.cached == len(other) + steps
    answer(other[:3])  # shorter than what is cached
    assert talk.cached == 3 + steps


def test_a_conversation_is_of_one_prompt(made: Path):
    engine = Engine(made / "ids")
    with pytest.raises(ValueError, match="2 prompts; accepted: one"):
        engine.generate([[1, 2], [3]], conversation=engine.conversation())
