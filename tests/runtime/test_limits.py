"""Sizes of texts are known before they are tokenized, and bound the memory that takes."""

from pathlib import Path
from typing import Any

import pytest

from lmcast.exporter import Engine
from lmcast.exporter.prove import corpus
from lmcast.exporter.runtime import chat
from lmcast.exporter.runtime.chat import Chat, TextError, render_chats
from lmcast.exporter.runtime.generate import LINE_BYTES, GenerateError, read_prompts
from lmcast.exporter.runtime.prepare import TOKEN_CHARACTERS

CONTEXT = 8


class Counting:
    """A tokenizer of one id a character that remembers how much it was given at once."""

    def __init__(self) -> None:
        self.longest = 0

    def encode(self, text: str) -> list[int]:
        self.longest = max(self.longest, len(text))
        return list(map(ord, text))

    def prefix(self) -> list[int]:
        return []


@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_more_prompts_than_asked_for_are_refused_unread(kind: str, tmp_path: Path):
    file = tmp_path / f"prompts{kind}"
    file.write_text('"x"\n\n' * 3 + "}" * 50)  # whose last line is no JSON
    with pytest.raises(GenerateError, match="holds more than 3 prompts; split it"):
        read_prompts(file, 3)
    file.write_text('"x"\n\n' * 3)
    assert len(read_prompts(file, 3)) == 3
    file.write_text('"x"\n' * 200_000)
    with pytest.raises(GenerateError, match="holds more than 65536 prompts"):
        read_prompts(file)


def test_a_line_of_a_corpus_is_bounded(tmp_path: Path):
    file = tmp_path / "corpus.jsonl"
    file.write_bytes(b'"x"\n"' + b"x" * LINE_BYTES + b'"')
    with pytest.raises(corpus.CorpusError, match=":2: is a line of more than 16 MiB; split it"):
        corpus.read_corpus(file)


def test_a_text_that_no_context_holds_is_refused_before_it_is_tokenized():
    engine = Engine.__new__(type("Text", (Engine,), {"has_tower": False}))
    engine.context, engine.vocab_size = CONTEXT, 128
    vars(engine)["chat_templates"] = {}
    vars(engine)["text"] = Counting()
    most = CONTEXT * TOKEN_CHARACTERS
    assert engine.encode("x" * most) == [[ord("x")] * most]
    for as_chat in (False, True):
        with pytest.raises(TextError, match="has more than 4,096 characters"):
            engine.encode(["a", "x" * (most + 1)], chat=as_chat)


def say(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


DEEP: list[Any] = []
ITSELF: list[Any] = []
SHARED: Any = "x"
for _ in range(60):
    SHARED = [SHARED, SHARED]  # 2^60 texts to whoever writes it out
for _ in range(3000):
    DEEP = [DEEP]
ITSELF.append(ITSELF)
MOST = 4096
LONG: dict[str, tuple[Chat, str]] = {
    "one message": (Chat(say("x" * MOST)), "more than 4,096 characters"),
    "many messages": (Chat(say("x" * 9) * 300), "more than 4,096 characters"),
    "many parts": (Chat(say([{"text": "x"}] * 2000)), "more than 4,096 characters"),
    "keys": (Chat([{"role": "user", "x" * MOST: 1}]), "more than 4,096 characters"),
    "tools": (Chat(say("x"), tools=[{"name": "f" * MOST}]), "more than 4,096 characters"),
    "documents": (Chat(say("x"), documents=[{"text": ["d"] * MOST}]), "more than 4,096 char"),
    "a variable": (Chat(say("x"), variables={"v": ["d"] * MOST}), "more than 4,096 characters"),
    "shared parts": (Chat(say(SHARED)), "more than 4,096 characters"),
    "itself": (Chat(say(ITSELF)), "nested too deeply"),
    "nested": (Chat(say(DEEP)), "nested too deeply"),
}


@pytest.mark.parametrize("name", LONG)
def test_a_chat_that_no_context_holds_is_refused_before_it_is_rendered(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(chat, "run_worker", None)
    given, words = LONG[name]
    with pytest.raises(TextError, match=words):
        render_chats({"default": "{{ messages }}"}, {}, [Chat(say("x")), given], most=MOST)


def test_what_a_template_makes_of_a_chat_is_bounded_too():
    """What fits is rendered; of a template that writes more, nothing reaches the tokenizer."""
    template = "{{ messages[0].content * times }}"
    chats = [Chat(say("x" * 8), variables={"times": times}) for times in (1, 512, 513)]
    texts = render_chats({"default": template}, {}, chats[:2], most=MOST)
    assert [len(text) for text in texts] == [8, MOST]
    with pytest.raises(TextError, match="more than 4,096 characters"):
        render_chats({"default": template}, {}, chats, most=MOST)


@pytest.mark.parametrize("line", [7, 30, 1000])
def test_a_corpus_is_tokenized_in_pieces(line: int, monkeypatch: pytest.MonkeyPatch):
    text = "".join(f"{i:0{line - 1}}\n" for i in range(4000 // line))
    whole, parts = Counting(), Counting()
    expected = corpus.chunks([text], whole, 10, 5)
    monkeypatch.setattr(corpus, "PIECE", 100)
    assert corpus.chunks([text], parts, 10, 5).tolist() == expected.tolist()
    assert (whole.longest, parts.longest <= 100) == (len(text), True)
    pieces = list(corpus._pieces(text))
    assert "".join(pieces) == text
    assert line > 100 or all(piece.endswith("\n") for piece in pieces[:-1])
