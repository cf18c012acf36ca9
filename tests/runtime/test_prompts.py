"""Prompt files: what a line may be, and what is refused by name."""

import json
import os
from pathlib import Path

import pytest

from lmcast.exporter.runtime.chat import Chat
from lmcast.exporter.runtime.generate import (
    LINE_BYTES,
    PROMPTS_BYTES,
    GenerateError,
    read_prompts,
)
from lmcast.exporter.runtime.prepare import Pictured


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


CHAT = [{"role": "user", "content": "hé\u2028?"}]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one\n\ntwo  \r\n  \n drei é\x0b\u2028x", ["one", "two  ", " drei é\x0b\u2028x"]),
        ("a.TXT", "\ufeffone\n", ["one"]),
        (
            "a b é.jsonl",
            '{"prompt": "x\\ny"}\r\n\n' + json.dumps({"messages": CHAT}, ensure_ascii=False),
            ["x\ny", Chat(CHAT)],
        ),
        (
            "bare.jsonl",
            json.dumps("x\ny") + "\n[5, 6]\n" + json.dumps(CHAT) + '\n{"prompt": [7]}',
            ["x\ny", [5, 6], Chat(CHAT), [7]],
        ),
        (
            "arguments.jsonl",
            json.dumps({"messages": CHAT, "tools": [{"name": "f"}], "enable_thinking": False})
            + "\n"
            + json.dumps(
                {
                    "messages": CHAT,
                    "documents": [{"text": "d"}],
                    "chat_template": "rag",
                    "continue_final_message": True,
                    "reasoning_effort": "low",
                    "chat_kwargs": {"reasoning_effort": "high", "today": "1 May"},
                }
            ),
            [
                Chat(CHAT, tools=[{"name": "f"}], variables={"enable_thinking": False}),
                Chat(
                    CHAT,
                    documents=[{"text": "d"}],
                    template="rag",
                    continue_final_message=True,
                    variables={"reasoning_effort": "low", "today": "1 May"},
                ),
            ],
        ),
    ],
)
def test_prompt_files(tmp_path: Path, name: str, content: str, expected: list):
    assert read_prompts(write(tmp_path / name, content.encode())) == expected


def test_images_lie_beside_the_file(tmp_path: Path):
    """Or where an absolute path says; messages and token ids may have some, too."""
    (tmp_path / "there").mkdir()
    for name in ("a.png", "there/b.png"):
        (tmp_path / name).write_bytes(b"")
    files = ["a.png", "there/b.png", str(tmp_path / "a.png")]
    lines = [
        {"prompt": "what?", "images": files[:1]},
        {"messages": CHAT, "enable_thinking": False, "images": files[1:]},
        {"prompt": [5, 6], "images": []},
        {"prompt": "so?", "videos": ["there"], "fps": 2},
    ]
    path = write(tmp_path / "p.jsonl", "\n".join(map(json.dumps, lines)).encode())
    first, second, third, fourth = read_prompts(path)
    assert first == Pictured("what?", [tmp_path / "a.png"])
    chat = Chat(CHAT, variables={"enable_thinking": False})
    assert second == Pictured(chat, [tmp_path / "there/b.png", tmp_path / "a.png"])
    assert third == Pictured([5, 6], [])
    assert fourth == Pictured("so?", videos=[tmp_path / "there"], fps=2.0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"x", ": prompts must be in a .txt or .jsonl file"),
        ("a.txt", b"\n \n", ": holds no prompt"),
        ("a.txt", b"one\n\xff\n", ":2: is not UTF-8"),
        ("a.jsonl", b'{"prompt": "a"}\nnot json\n', ":2: is not JSON: "),
        ("a.jsonl", b'{"prompt": "a", "prompt": "b"}', ":1: is not JSON: the key 'prompt' occurs"),
        ("a.jsonl", b"[" * 100_000, ":1: is not JSON: "),
        ("a.jsonl", b"\n[1.5]", ":2: must be an object with either .* list of token ids or a list"),
        ("a.jsonl", b"{}", r":1: must be an object with either .*, not the keys \[\]"),
        (
            "a.jsonl",
            b'{"prompt": "a", "top_k": 3}',
            ':1: has top_k, which is not read; "prompt" with images, vid',
        ),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user"}], "enable_thinkng": 1, "stop": []}',
            ':1: has enable_thinkng, stop, which is not read; "messages" with tools, documents, ',
        ),
        (
            "a.jsonl",
            b'{"messages": [{"role": "x"}], "tools": {}}',
            ":1: tools is {}; accepted: a list",
        ),
        ("a.jsonl", b'{"messages": [{"role": "x"}], "chat_kwargs": 3}', ":1: .* an object, not 3"),
        (
            "a.jsonl",
            b'{"messages": [{"role": "x"}], "chat_kwargs": {"add_generation_prompt": false}}',
            ":1: chat: add_generation_prompt is always true",
        ),
        (
            "a.jsonl",
            b'{"prompt": "a", "images": "a.jsonl"}',
            ":1: \"images\" must be a list of files, not 'a.jsonl'",
        ),
        ("a.jsonl", b'{"prompt": "a", "images": [""]}', ':1: "images" must be a list of files'),
        ("a.jsonl", b'{"prompt": "a", "images": [3]}', ':1: "images" must be a list of files'),
        (
            "a.jsonl",
            b'[3]\n{"prompt": "a", "images": ["a.jsonl", "b\\u0000"]}',
            ':2: "images": there is no file .*b.x00',
        ),
        ("a.jsonl", b'{"prompt": "a", "images": ["."]}', ':1: "images": there is no file'),
        ("a.jsonl", b'{"prompt": "a", "videos": ["b"]}', ':1: "videos": there is no file'),
        ("a.jsonl", b'{"prompt": "a", "fps": 2}', ":1: fps: is of videos, and there are none"),
        (
            "a.jsonl",
            b'{"prompt": "a", "videos": ["."], "fps": "2"}',
            ":1: fps is '2'; accepted: a finite number from 0.001 to 1000",
        ),
        ("a.jsonl", b'{"images": ["a.jsonl"]}', r":1: must be an object with either .* keys \[\]"),
        (
            "a.jsonl",
            b'{"prompt": "a", "images": ["a.jsonl"], "image": 3}',
            ":1: has image, which is not read",
        ),
        ("a.jsonl", b"[true]", ":1: must be an object with either"),
        ("a.jsonl", b'""', ":1: must be an object with either"),
        ("a.jsonl", b"null", ":1: must be an object with either"),
        ("a.jsonl", b'{"prompt": "a", "messages": []}', ":1: must be an object with either"),
        ("a.jsonl", b'{"prompt": 3}', ':1: "prompt" must be a text that is not empty'),
        ("a.jsonl", b'{"prompt": ""}', ':1: "prompt" must be a text that is not empty'),
        ("a.jsonl", b'{"messages": []}', ":1: .* at least one message"),
        ("a.jsonl", b'{"messages": "x"}', ":1: messages is 'x'; accepted: a list"),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user"}, {}]}',
            ':1: messages: message 1 is not .* "role"',
        ),
        ("a.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}", ":1: is not JSON: "),
        (
            "a.jsonl",
            b"\n[" + b"[]," * 1_000_000 + b"1]",
            ":2: is not JSON: it holds more than 1",
        ),
        ("a.jsonl", b"1\n" + b" " * LINE_BYTES + b"1", ":2: is a line of more than 16 MiB"),
        ("a.txt", b"x\n" + b"x" * (LINE_BYTES + 1), ":2: is a line of more than 16 MiB"),
        (
            "a.jsonl",
            json.dumps(dict.fromkeys(map(str, range(10_000)))).encode(),
            r":1: must be an object with .*, not the keys \['0', .{150,200}$",
        ),
        (
            "a.jsonl",
            b'{"prompt": "a", "\\u001b[2J": 3}',
            r":1: has \\x1b\[2J, which is not read",
        ),
    ],
)
def test_wrong_prompt_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str):
    path = write(tmp_path / name, content)
    with pytest.raises(GenerateError, match=message) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_unreadable_prompt_file_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo.txt")
    (tmp_path / "folder.txt").mkdir()
    with open(tmp_path / "huge.txt", "wb") as file:
        file.truncate(PROMPTS_BYTES + 1)
    for name, message in (
        ("missing.txt", "cannot be read: No such file"),
        ("fifo.txt", "is not a regular file"),
        ("folder.txt", "cannot be read: Is a directory"),
        ("huge.txt", "is larger than 64 MiB; split it"),
    ):
        with pytest.raises(GenerateError, match=message):
            read_prompts(tmp_path / name)
