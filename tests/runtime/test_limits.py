"""Sizes of texts are known before they are tokenized, and bound the memory that takes."""

from pathlib import Path

import pytest

from lmcast.exporter import Engine
from lmcast.exporter.prove import corpus
from lmcast.exporter.runtime.chat import TextError
from lmcast.exporter.runtime.engine import TOKEN_CHARACTERS
from lmcast.exporter.runtime.generate import GenerateError, read_prompts

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


def test_a_text_that_no_context_holds_is_refused_before_it_is_tokenized():
    engine = Engine.__new__(Engine)
    engine.context = CONTEXT
    vars(engine)["chat_templates"] = {}
    vars(engine)["text"] = Counting()
    most = CONTEXT * TOKEN_CHARACTERS
    assert engine.encode("x" * most) == [[ord("x")] * most]
    for chat in (False, True):
        with pytest.raises(TextError, match=r"has 4,097 characters; .* at most 4,096 are read"):
            engine.encode(["a", "x" * (most + 1)], chat=chat)


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
