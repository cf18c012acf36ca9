"""Tokenizers that load, and fail with a text: tried before an export."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny.llama import tiny_llama

from lmcast.exporter.checkpoint import CheckpointError, open_checkpoint
from lmcast.exporter.checkpoint.tokenizer_trial import refusing
from lmcast.exporter.runtime.chat import TextError
from lmcast.exporter.runtime.text import Text
from lmcast.exporter.texts import check_vocabulary

ROWS = 97


def around(id: int) -> Callable[[dict[str, Any]], None]:
    """Put a token that no vocabulary has before every text."""

    def edit(content: dict[str, Any]) -> None:
        piece = [{"SpecialToken": {"id": "<x>", "type_id": 0}}]
        text = [{"Sequence": {"id": "A", "type_id": 0}}]
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": piece + text,
            "pair": piece + text + [{"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<x>": {"id": "<x>", "ids": [id], "tokens": ["<x>"]}},
        }

    return edit


def words(content: dict[str, Any]) -> None:
    """Know a few words, and have no token for others."""
    vocabulary = {"a": 0, "b": 1}
    content |= {"added_tokens": [], "normalizer": None, "post_processor": None, "decoder": None}
    content["pre_tokenizer"] = {"type": "Whitespace"}
    content["model"] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<none>"}


WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "an id behind the vocabulary": (around(500), "the id 500, but the model's vocabulary ends at"),
    "the first id behind it": (around(ROWS), f"the id {ROWS}, but the model's vocabulary ends"),
    "no token for other words": (words, "the tokenizers library fails: WordLevel error"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused(name: str, tmp_path: Path):
    edit, message = WRONG[name]
    tiny_llama(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message) as refused:
        check_vocabulary(open_checkpoint(tmp_path), ROWS)
    assert "\n" not in str(refused.value)


def test_a_tokenizer_that_fails_at_run_time_is_an_error_of_the_text(tmp_path: Path):
    tiny_llama(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    words(content)
    text = Text(json.dumps(content).encode(), {}, {})
    assert text.encode("a b") == [0, 1]
    with pytest.raises(TextError, match="the tokenizers library fails: WordLevel error"):
        text.encode("c")


def test_panics_are_errors_and_all_else_is_raised():
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(TextError, match=r"^line one and two$"), refusing(TextError):
        raise panic("line one\n and  two")
    for other in (KeyboardInterrupt, MemoryError, AssertionError):
        with pytest.raises(other), refusing(TextError):
            raise other
