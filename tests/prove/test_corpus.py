"""Text for calibration and measuring: what is read, what is refused, and that parts never meet."""

import json
from pathlib import Path

import pytest
import torch
from tiny.llama import tokenizer_json
from tokenizers import Tokenizer, processors

from lmcast.exporter.prove.corpus import CorpusError, Part, chunks, read_corpus
from lmcast.exporter.runtime.chat import Chat
from lmcast.exporter.runtime.text import Text
from lmcast.plugins.errors import InputError

TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"


def text(bos: bool = False) -> Text:
    """Return the tokenizer of tiny_llama: a token for each printable character."""
    made = tokenizer_json()
    if bos:
        tokenizer = Tokenizer.from_str(made)
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
        made = tokenizer.to_str()
    return Text(made.encode(), {"default": TEMPLATE}, {"bos_token": "<s>"})


def numbered(length: int) -> str:
    """Return text in which every stretch of five characters occurs once."""
    return "".join(f"{i:05}" for i in range(length // 5))


def test_python_has_text_of_its_own():
    samples = read_corpus(None)
    assert samples == read_corpus(None)
    assert sum(map(len, samples)) > 200_000
    assert "Assert statements are a convenient way" in samples[0]


def test_files(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\ntwo\n")
    assert read_corpus(tmp_path / "a.txt") == ["one\n\ntwo\n"]
    messages = [{"role": "user", "content": "hi"}]
    tools = {"tools": [{"name": "f"}], "chat_kwargs": {"today": 1}}
    rows = [{"text": "a\u2028b", "url": "x"}, "plain", {"messages": messages, "url": "x"}]
    rows.append({"messages": messages, **tools})
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    assert read_corpus(tmp_path / "a.jsonl") == [
        *("a\u2028b", "plain", Chat(messages)),
        Chat(messages, tools["tools"], variables={"today": 1}),
    ]


REFUSED = {
    "a.csv": (b"x", "a.csv: is no .txt or .jsonl"),
    "empty.txt": (b" \n", "empty.txt: holds no text"),
    "latin.txt": (b"one\ntw\xe9\n", "latin.txt:2: is not UTF-8"),
    "latin.jsonl": (b'"a"\n"\xe9"\n', "latin.jsonl:2: is not UTF-8"),
    "twice.jsonl": (b'{"text": "a", "text": "b"}', "is not JSON: the key 'text' occurs twice"),
    "json.jsonl": (b'"a"\n{"text": \n', "json.jsonl:2: is not JSON"),
    "keys.jsonl": (b'{"prompt": "a"}', "keys.jsonl:1: must be a text or an object with either"),
    "both.jsonl": (b'{"text": "a", "messages": []}', "not the keys ['messages', 'text']"),
    "number.jsonl": (b"[1]", "not list"),
    "none.jsonl": (b'{"text": ""}', "must be a text that is not empty"),
    "value.jsonl": (b'{"text": 7}', "not 7"),
    "role.jsonl": (b'{"messages": [{"content": "a"}]}', "role.jsonl:1: messages: message 0"),
    "tools.jsonl": (
        b'{"messages": [{"role": "x"}], "tools": "[]"}',
        "tools.jsonl:1: tools is '[]'; acc",
    ),
    "chats.jsonl": (b'{"messages": []}', "chats.jsonl:1: messages: must be a list of at least one"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path):
    data, message = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError) as refused:
        read_corpus(tmp_path / name)
    assert message in str(refused.value)
    assert str(tmp_path / name) in str(refused.value)


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.txt: cannot be opened"):
        read_corpus(tmp_path / "none.txt")


@pytest.mark.parametrize("bos", [False, True])
def test_chunks_are_of_the_text_and_never_of_two_parts(bos: bool):
    """Also where chunks of one part are of another length than those of another."""
    samples, tokenizer = [numbered(4000), numbered(9000)[4000:]], text(bos)
    calibration = chunks(samples, tokenizer, 40, 60)
    choice = chunks(samples, tokenizer, 100, 12, "choice")
    measuring = chunks(samples, tokenizer, 64, 20, "measuring")
    assert calibration.shape == (60, 40) and calibration.dtype == torch.int64
    assert measuring.shape == (20, 64)
    seen = []
    for ids in (calibration, choice, measuring):
        if bos:
            assert (ids[:, 0] == 0).all()
        assert (ids[:, 1:] == 0).sum() <= 1  # where the second text begins inside a chunk
        parts = [tokenizer.decode(row.tolist()) for row in ids]
        for part in parts:
            assert part in "".join(samples)
        seen.append({part[i : i + 10] for part in parts for i in range(len(part) - 9)})
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]


def test_equal_chunks_for_an_equal_seed():
    samples, tokenizer = [numbered(9000)], text()
    first = chunks(samples, tokenizer, 40, 10)
    assert torch.equal(first, chunks(samples, tokenizer, 40, 10, seed=0))
    assert not torch.equal(first, chunks(samples, tokenizer, 40, 10, seed=1))


def test_chats_go_through_the_template():
    chat = [{"role": "user", "content": numbered(400)}]
    ids = chunks([chat, "plain" * 80], text(), 20, 16)  # all there are
    assert ids[0, 0] == 0  # written by the template
    assert text().decode(ids[0].tolist()) == numbered(400)[:19]


@pytest.mark.parametrize("part", ["calibration", "choice", "measuring"])
def test_what_is_enough_is_enough(part: Part):
    samples, tokenizer = [numbered(1000)], text()
    with pytest.raises(CorpusError) as refused:
        chunks(samples, tokenizer, 32, 30, part)
    assert "the text has 1,000 tokens" in str(refused.value)
    words = str(refused.value).split("; ")[1].split()
    needed = int(words[0].replace(",", ""))
    assert len(chunks([numbered(needed)], tokenizer, 32, 30, part)) == 30


@pytest.mark.parametrize(("tokens", "count"), [(1, 1), (2, 1), (8, 0), (-4, 1)])
def test_no_chunks(tokens: int, count: int):
    with pytest.raises(CorpusError, match="at least 1 of 3"):
        chunks([numbered(500)], text(bos=True), tokens, count)
