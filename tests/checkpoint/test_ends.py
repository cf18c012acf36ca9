"""Where a text ends: what the files state, and what tokenizer and chat template add to it."""

from pathlib import Path
from typing import Any

import pytest
from tiny.llama import DROP, config, edit_json, tiny_llama, write

from lmcast.exporter import export
from lmcast.exporter.checkpoint import CheckpointError, open_checkpoint
from lmcast.exporter.progress import Progress
from lmcast.exporter.texts import check_vocabulary, ends, settle_texts, stated

GENERATION, TOKENIZER_CONFIG = "generation_config.json", "tokenizer_config.json"
# eos_token_id of config.json and of generation_config.json -> the ids. Both files are released, and
# differ: chat models end a turn by ids that the second alone names.
STATED: list[tuple[Any, Any, list[int]]] = [
    (DROP, DROP, []),
    (None, None, []),
    (7, DROP, [7]),
    ([9, 7, 9], DROP, [9, 7, 9]),
    (DROP, 5, [5]),
    (7, 5, [5]),
    (7, [96, 5], [96, 5]),
    ([7, 8], 5, [5]),
    (7, None, [7]),
    (7, [], [7]),
    ([None, 7], DROP, [7]),
]


@pytest.mark.parametrize(("of_config", "of_generation", "ids"), STATED)
def test_ids_of_generation_config_come_first(of_config, of_generation, ids, tmp_path: Path):
    tiny_llama(tmp_path)
    config(eos_token_id=of_config)(tmp_path)
    edit_json(GENERATION, eos_token_id=of_generation)(tmp_path)
    assert stated(open_checkpoint(tmp_path)) == ids


@pytest.mark.parametrize("file", ["config.json", GENERATION])
@pytest.mark.parametrize("given", [True, "</s>", [1, 2.0]])
def test_ids_that_are_no_integers_are_refused(file: str, given: Any, tmp_path: Path):
    tiny_llama(tmp_path)
    edit_json(GENERATION, eos_token_id=DROP)(tmp_path)
    edit_json(file, eos_token_id=given)(tmp_path)
    with pytest.raises(CheckpointError, match=r"eos_token_id is .* accepted: integers"):
        stated(open_checkpoint(tmp_path))


# How families end an answer; the ids of "!" (3), "#" (5) and "{" (93) stand for their tokens.
CHATML = (
    "{% for m in messages %}#{{ m.role }} {{ m.content }}!\n{% endfor %}"
    "{% if add_generation_prompt %}#assistant {% endif %}"
)
ROLES = (  # a turn begins with a token, and ends with none
    "{% for m in messages %}{{ '#' if m.role == 'user' else '{' }}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '{' }}{% endif %}"
)
REASONS = (  # between turns a token that does not end the answer
    "{% for m in messages %}{{ m.content }}{{ '!' if loop.last else '#' }}{% endfor %}"
)
# Between reasoning and answer too, as gpt-oss has, but for its last answer.
PARTS = (
    "{% for m in messages %}{% if m.thinking %}{{ m.thinking }}!{% endif %}{{ m.content }}!"
    "{% endfor %}"
)
CLOSED = (  # a part of the answer ends, and then the answer
    "{% for m in messages %}{{ m.content }}{{ '!\n#' if m.role == 'assistant' else '#' }}"
    "{% endfor %}"
)
LAST = CHATML + "{% if not add_generation_prompt %}</s>{% endif %}"  # no end of a turn
QUESTIONS = "{{ bos_token }}!{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
LISTS = (
    "!{% for m in messages %}{% for part in m.content if part.text %}{{ part.text }}"
    "{% endfor %}{% endfor %}"
)
SHOUTS = "{% for m in messages %}{{ m.content | lower }}!{% endfor %}"
STRICT = "{{ raise_exception('no plain chats') }}"
# Template, eos_token of the tokenizer, ids that the files state -> ids, what is said of them.
CASES: list[tuple[str | None, str | None, list[int] | None, list[int], str]] = [
    (None, "</s>", [1], [1], ""),
    (None, None, None, [], ""),
    (None, "</s>", None, [1], "neither config says; taken too: the tokenizer's eos_token '</s>'"),
    (None, "</s>", [7], [1, 7], "the files say [7]; taken too: the tokenizer's eos_token '</s>'"),
    (CHATML, "</s>", None, [1, 3], "eos_token '</s>' (1) and '!' (3), which the chat template"),
    (CHATML, "!", [1], [1, 3], "the files say [1]; taken too: '!' (3)"),
    (CHATML, None, [1], [1, 3], "taken too: '!' (3), which the chat template writes after"),
    (CHATML, None, [1, 3], [1, 3], ""),
    (ROLES, "</s>", [1], [1], ""),
    (ROLES, None, None, [], "ends of text: there is none in generation_config.json, config.json"),
    (REASONS, None, [3], [3], ""),
    (PARTS, "</s>", [1], [1], ""),
    (CLOSED, "#", [5], [5], ""),
    (CLOSED, "#", None, [5], "neither config says; taken too: the tokenizer's eos_token '#' (5)"),
    (CLOSED, "</s>", [1], [1, 3], "taken too: '!' (3)"),
    (LAST, "</s>", [1], [1, 3], "taken too: '!' (3)"),
    (QUESTIONS, "</s>", [1], [1], ""),
    (LISTS, "</s>", [1], [1], 'a content that is a text; give a list of parts, [{"type": "text"'),
    (SHOUTS, "</s>", [1], [1], "it leaves out, or changes, what a user says"),
    (STRICT, None, [1], [1], "a plain chat cannot be rendered: chat template: no plain chats"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "eos", "given", "ids", "said"), CASES)
def test_ends_of_tokenizer_and_template(template, eos, given, ids, said, tmp_path: Path):
    tiny_llama(tmp_path)
    edit_json(GENERATION, eos_token_id=given)(tmp_path)
    tokens = {i: {"content": t, "special": True} for i, t in ((3, "!"), (5, "#"), (93, "{"))}
    edit_json(TOKENIZER_CONFIG, chat_template=template, eos_token=eos, added_tokens_decoder=tokens)(
        tmp_path
    )
    found = ends(open_checkpoint(tmp_path))
    assert list(found.ids) == ids
    assert said in " ".join(found.notes)
    assert len(found.notes) == bool(said)


class Heard(Progress):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def test_an_export_warns_of_texts(tmp_path: Path):
    tiny_llama(tmp_path)
    edit_json(GENERATION, eos_token_id=[1, 20], stop_strings=["END"])(tmp_path)
    edit_json(TOKENIZER_CONFIG, chat_template="C", pad_token="<pad>")(tmp_path)
    write("chat_template.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}</s>")(tmp_path)
    heard = Heard()
    assert settle_texts(open_checkpoint(tmp_path), 97, heard) == [1, 20]
    said = [
        "tokenizer_config.json has a different one (default), which is left out",
        "pad_token '<pad>' is in no file with an id; it is 97",
        "'<pad>' (97) lie behind the model's vocabulary of 97",
        "generation_config.json: stop_strings is ['END']; give --stop",
    ]
    assert len(heard.warnings) == len(said)
    for warning, text in zip(heard.warnings, said, strict=True):
        assert text in warning


@pytest.mark.parametrize("file", ["config.json", GENERATION])
@pytest.mark.parametrize("given", [97, -1, [1, 200], 1 << 40])
def test_ends_that_are_no_tokens_are_refused(file: str, given: Any, tmp_path: Path):
    tiny_llama(tmp_path)
    edit_json(GENERATION, eos_token_id=DROP)(tmp_path)
    edit_json(file, eos_token_id=given)(tmp_path)
    for check in (
        lambda source: check_vocabulary(source, 97),
        lambda source: settle_texts(source, 97, Heard()),
    ):
        with pytest.raises(CheckpointError, match="no token of the model, whose vocabulary has 97"):
            check(open_checkpoint(tmp_path))


def test_an_engine_ends_where_generation_config_says(tmp_path: Path):
    source = tmp_path / "checkpoint"
    tiny_llama(source)
    config(eos_token_id=2)(source)
    edit_json(GENERATION, eos_token_id=[0, 1])(source)
    first = export(source, tmp_path / "first", parity=False)
    assert first.eos_ids == {0, 1}
    (whole,) = first.generate([[5, 6, 7]], max_new_tokens=6)
    ids = list(whole.ids)
    edit_json(GENERATION, eos_token_id=ids[2])(source)
    (cut,) = export(source, tmp_path / "second", parity=False).generate(
        [[5, 6, 7]], max_new_tokens=6
    )
    assert list(cut.ids) == ids[: ids.index(ids[2]) + 1]
