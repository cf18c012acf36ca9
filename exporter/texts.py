"""What an engine holds of a checkpoint's texts: checked against the model, and where they end."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.identity import SourceFile
from lmcast.exporter.checkpoint.tensors import Checkpoint, Texts
from lmcast.exporter.checkpoint.tokenizer_trial import try_tokenizer
from lmcast.exporter.engine.names import GENERATION, TEMPLATE, TEMPLATES, TOKENIZER
from lmcast.exporter.progress import Progress
from lmcast.exporter.runtime.chat import Chat, Messages, TextError, render_chats
from lmcast.exporter.runtime.text import Text

SHOWN = 5  # tokens that a message names
# Messages of the chats that show how a template ends an answer.
QUESTION = {"role": "user", "content": "QUESTION"}
ANSWER = {"role": "assistant", "content": "ANSWER"}
NEXT = {"role": "user", "content": "NEXT"}
THOUGHT = "THOUGHT"


def settle_texts(source: Checkpoint, rows: int, progress: Progress) -> list[int]:
    """Return the ids that end a text, ascending; warn of what texts lack or say twice.

    rows: the size of the model's vocabulary. Raises CheckpointError for ends that are no ids.
    """
    found = ends(source)
    _, added = beyond(source, rows)
    notes = [*source.texts.notes, *found.notes]
    if added:
        notes.append(
            f"tokenizer: {shown(added)} lie behind the model's vocabulary of {rows}; a text that"
            " spells one of them is refused"
        )
    if strange := [id for id in found.ids if not 0 <= id < rows]:
        raise CheckpointError(f"{source.path}: ends of text: {no_ids(strange, rows)}")
    if strings := source.texts.generation.get("stop_strings"):
        notes.append(
            f"{GENERATION}: stop_strings is {strings!r:.80}; give --stop where you want it"
        )
    for note in notes:
        progress.warn(note)
    return list(found.ids)


def without_texts(source: Checkpoint) -> Checkpoint:
    """Return a checkpoint without tokenizer and templates, for an engine that takes token ids."""
    kept = source.texts
    return replace(source, texts=Texts(generation=kept.generation, processors=kept.processors))


def check_vocabulary(source: Checkpoint, rows: int) -> None:
    """Refuse a tokenizer that gives a plain text ids from `rows` on, which have no embedding, or
    that the tokenizers library fails with; and ends of text that are no ids of the model.

    Added tokens may lie there, as only a text that spells one has it: Gemma 3's text models have
    a token for images there.
    """
    if of_any_text := beyond(source, rows)[0]:
        raise CheckpointError(
            f"{source.path}: the tokenizer has {shown(of_any_text)}, but the model's vocabulary"
            f" ends at {rows - 1}; this is the tokenizer of another model: take that of this one,"
            " or pass --no-tokenizer for an engine that takes token ids"
        )
    if strange := [id for id in stated(source) if not 0 <= id < rows]:
        raise CheckpointError(f"{source.path}: eos_token_id: {no_ids(strange, rows)}")
    if (text := text_of(source)) is not None:
        try:
            try_tokenizer(text, rows, source.path)
        except TextError as error:
            raise CheckpointError(f"{source.path}: {error}") from None


def no_ids(strange: Sequence[int], rows: int) -> str:
    """Say that ends of text are not in the vocabulary, and what to do."""
    listed = ", ".join(map(str, strange[:SHOWN]))
    return (
        f"{listed} is no token of the model, whose vocabulary has {rows}, so no answer would end"
        " there; correct generation_config.json, or config.json where that states none"
    )


def shown(tokens: dict[int, str]) -> str:
    """Name a few tokens with their ids."""
    some = ", ".join(f"{content!r:.60} ({id})" for id, content in sorted(tokens.items())[:SHOWN])
    return f"{some} and {len(tokens) - SHOWN} more tokens" if len(tokens) > SHOWN else some


def beyond(source: Checkpoint, rows: int) -> tuple[dict[int, str], dict[int, str]]:
    """Return the tokens with ids from `rows` on: those of any text, and added ones."""
    if source.texts.tokenizer is None:
        return {}, {}
    content = json.loads(source.texts.tokenizer)
    vocabulary = content["model"]["vocab"]
    pairs = (
        ((id, token) for token, id in vocabulary.items())
        if isinstance(vocabulary, dict)
        else enumerate(piece for piece, _ in vocabulary)  # of Unigram, with scores
    )
    every = {id: token for id, token in pairs if id >= rows}
    added = {t["id"]: t["content"] for t in content.get("added_tokens") or () if t["id"] >= rows}
    around = set(numbers(content.get("post_processor")))  # put around every text
    every = {id: token for id, token in every.items() if id not in added}
    every |= {id: token for id, token in added.items() if id in around}
    return every, {id: token for id, token in added.items() if id not in around}


def numbers(value: Any) -> Iterator[int]:
    """Yield the integers in a JSON value."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)


class Ends:
    """The ids that end a text, ascending, and what to warn of."""

    def __init__(self, ids: Sequence[int]):
        self.ids = tuple(sorted(set(ids)))
        self.notes: list[str] = []


def ends(source: Checkpoint) -> Ends:
    """Return where texts end.

    generation_config.json says it, else config.json (a multimodal one: its own, else that of its
    text_config). To these come, with a warning, the tokenizer's eos_token, as in vLLM, and what the
    chat template writes after the last answer: a chat fine-tune of a base model often has only
    these right.
    """
    found = Ends(stated(source))
    text = text_of(source)
    if text is None:
        return found
    others: dict[int, str] = {}
    eos = text.special_tokens.get("eos_token")
    if eos is not None and (id := text.id_of(eos)) is not None:
        others[id] = f"the tokenizer's eos_token {eos!r} ({id})"
    if "default" in text.chat_templates:
        try:
            plain = rendered(text, [QUESTION, ANSWER])
            if (closing := answer_end(text, plain, {*found.ids, *others})) is not None:
                others[closing[0]] = (
                    f"{closing[1]!r} ({closing[0]}), which the chat template writes"
                )
                others[closing[0]] += " after an answer"
            if lost := left_out(text, plain):
                found.notes.append(lost)
        except TextError as error:
            found.notes.append(f"a plain chat cannot be rendered: {error}")
    given = found.ids
    if more := {id: what for id, what in others.items() if id not in given}:
        found.ids = tuple(sorted({*given, *more}))
        said = f"the files say {list(given)}" if given else "neither config says"
        found.notes.append(f"ends of text: {said}; taken too: {' and '.join(more.values())}")
    if text.chat_templates and not found.ids:
        found.notes.append(
            "ends of text: there is none in generation_config.json, config.json, tokenizer or chat"
            " template: an answer runs to --max-new-tokens"
        )
    return found


def stated(source: Checkpoint) -> list[int]:
    """Return the ids that generation_config.json states, else config.json; null states none."""
    places: list[Any] = [source.texts.generation, source.config, source.config.get("text_config")]
    values = [place.get("eos_token_id") for place in places if isinstance(place, dict)]
    given = next((value for value in values if value not in (None, [])), None)
    ids = given if isinstance(given, list) else [given]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids if i is not None):
        raise CheckpointError(f"{source.path}: eos_token_id is {given!r:.80}; accepted: integers")
    return [i for i in ids if i is not None]


def text_of(source: Checkpoint) -> Text | None:
    """Return tokenizer and chat templates of a checkpoint, None if it has none."""
    texts = source.texts
    if texts.tokenizer is None:
        return None
    return Text(texts.tokenizer, texts.chat_templates, texts.special_tokens)


def answer_end(text: Text, plain: str, ends: Iterable[int]) -> tuple[int, str] | None:
    """Return the added token that the default template writes after the last answer, if any.

    plain: what it makes of a question and an answer; ends: the ids of known ends.

    What it writes between turns would not do: GLM begins a turn with a token and ends none. Nor
    does a token that ends a part of an answer: one that stands between reasoning and answer too
    (gpt-oss), or after which one of `ends` follows in any case (Command A's <|END_RESPONSE|>).
    """
    _, shown, rest = plain.rpartition(ANSWER["content"])
    found = max(
        ((id, t) for id, t in text.added_tokens().items() if t and rest.lstrip().startswith(t)),
        key=lambda pair: len(pair[1]),
        default=None,
    )
    if not shown or found is None or found[0] in ends:
        return found if shown else None
    try:
        thought = rendered(text, [QUESTION, {**ANSWER, "reasoning_content": THOUGHT}])
        longer = rendered(text, [QUESTION, ANSWER, NEXT])
    except TextError:  # a template for one turn, or without reasoning
        return found
    within = thought.partition(THOUGHT)[2].rpartition(ANSWER["content"])[0]
    after = longer.rpartition(ANSWER["content"])[2].partition(NEXT["content"])[0]
    followed = any(t in after for id, t in text.added_tokens().items() if id in ends)
    return None if followed or found[1] in within else found


def left_out(text: Text, plain: str) -> str:
    """Say that the default template leaves out what a user says, '' where it does not.

    plain: what it makes of a question and an answer.
    Those of some multimodal models take lists of parts alone, and are silent about texts.
    """
    said = QUESTION["content"]
    if said in plain:
        return ""
    parts = [{"type": "text", "text": said}]
    with suppress(TextError):
        if said in rendered(text, [{**QUESTION, "content": parts}]):
            return (
                "chat template: it leaves out a content that is a text; give a list of parts,"
                ' [{"type": "text", "text": ...}]'
            )
    return "chat template: it leaves out, or changes, what a user says"


def rendered(text: Text, messages: Messages) -> str:
    """Return a chat in the default template."""
    chat = Chat(messages)
    return render_chats(text.chat_templates, text.special_tokens, [chat], answer=False)[0]


def generation(given: Mapping[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """Return a generation_config.json as other programs read it too: with all ends of text, and
    without a kind of cache, which is of a model's code and not of this engine."""
    made = {key: value for key, value in given.items() if key != "cache_implementation"}
    stated = made.get("eos_token_id")
    if ids and {*ids} != {*(stated if isinstance(stated, list) else [stated])}:
        made["eos_token_id"] = list(ids)
    return made


def write_texts(
    source: Checkpoint,
    directory: Path,
    identities: Sequence[SourceFile],
    rows: int,
    progress: Progress,
) -> dict[str, Any]:
    """Write what the engine takes as it is, after all else was read; return fields of engine.json.

    Raises CheckpointError for what has changed since it was read.
    """
    for file in identities:
        file.check()
    texts = source.texts
    if texts.tokenizer is not None:
        (directory / TOKENIZER).write_bytes(texts.tokenizer)
    for name, template in texts.chat_templates.items():
        path = directory / (TEMPLATE if name == "default" else f"{TEMPLATES}/{name}.jinja")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(template.encode())
    ids = settle_texts(source, rows, progress)
    if texts.generation:
        text = json.dumps(generation(texts.generation, ids), indent=1, sort_keys=True) + "\n"
        (directory / GENERATION).write_text(text, encoding="utf-8")
    return {
        "eos_ids": ids,
        "special_tokens": dict(texts.special_tokens),
    }
