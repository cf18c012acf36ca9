"""Tokens that a Hugging Face directory has beside tokenizer.json, as transformers 5.23 reads them.

Special tokens with a name, further special ones, and added tokens with their ids, of
tokenizer_config.json or of the older special_tokens_map.json and added_tokens.json; and a
tokenizer.json that holds all of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import Folder
from lmcast.exporter.checkpoint.strict_json import parse_object

JSON_BYTES = 16 << 20
STANDARD = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
FLAGS = {"single_word", "lstrip", "rstrip", "normalized", "special"}
CONFIG, MAP, LIST = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
DIGITS = 9  # of an id, at most; the largest in use have 7
SHOWN = 3  # tokens that are warned of


@dataclass(frozen=True)
class Tokens:
    """What a directory says about tokens beside tokenizer.json."""

    named: Mapping[str, AddedToken]  # bos_token, ..., image_token; all of them special
    extra: tuple[AddedToken, ...]  # special ones without a name
    ids: Mapping[int, AddedToken]  # with the ids that the file below gives them
    file: str
    left_out: Mapping[str, object]  # of added_tokens.json, where that does not count
    notes: tuple[str, ...]


def read_tokens(folder: Folder, config: dict[str, Any]) -> Tokens:
    """Read the tokens beside tokenizer.json; config: tokenizer_config.json.

    The older files count where `added_tokens_decoder` is missing; where they count not and say
    something else, a note names that. Raises CheckpointError for what is no token.
    """
    older = _object(folder, MAP)
    listed = _object(folder, LIST)
    decoder = config.get("added_tokens_decoder")
    named = _named(folder, config, {} if decoder is not None else older)
    if decoder is None:
        extra = _extra(folder, config, older)
        special = {t.content for t in (*named.values(), *extra)}
        return Tokens(named, extra, _of_list(folder, listed, special), LIST, {}, ())
    where = f"{folder.root / CONFIG}: added_tokens_decoder"
    if not isinstance(decoder, dict) or not all(
        id.isdecimal() and len(id) <= DIGITS and isinstance(value, dict)
        for id, value in decoder.items()
    ):
        raise CheckpointError(f"{where} is {decoder!r:.80}; an object by token id is accepted")
    ids = {int(id): _token(value, f"{where}: {id}") for id, value in decoder.items()}
    notes = [
        f"{MAP}: {name} is {theirs!r}, not {content!r} as in {CONFIG}, which is used"
        for name in STANDARD
        if (theirs := _content(older.get(name)))
        and theirs != (content := named[name].content if name in named else None)
    ]
    return Tokens(named, _extra(folder, config, {}), ids, CONFIG, listed, tuple(notes))


def complete(tokenizer: Tokenizer, tokens: Tokens, folder: Folder) -> tuple[bool, tuple[str, ...]]:
    """Put all tokens into a tokenizer; return whether that changed it, and warnings.

    Raises CheckpointError where an id is given to two tokens.
    """
    before = tokenizer.get_added_tokens_decoder()
    size = tokenizer.get_vocab_size()
    known = dict(tokens.ids)
    if tokens.file == LIST:  # tokenizer.json is newer than that
        known |= before
    special = {token.content for token in tokens.named.values()}
    adding = [_special(t) if t.content in special else t for _, t in sorted(known.items())]
    present = {token.content for token in (*before.values(), *adding)}
    unplaced = [
        (name, token)
        for name, token in (*tokens.named.items(), *(("a special token", t) for t in tokens.extra))
        if token.content not in present
    ]
    tokenizer.add_tokens([*adding, *(token for _, token in unplaced)])
    for id, token in tokens.ids.items():
        if tokenizer.token_to_id(token.content) != id:
            raise CheckpointError(_contradiction(folder, tokens.file, id, token, tokenizer))
    notes = [
        f"{name} {token.content!r} is in no file with an id; it is {new}, behind all others"
        for name, token in unplaced
        if (new := tokenizer.token_to_id(token.content)) is not None and new >= size
    ]
    notes += [
        f"{LIST}: {content!r} is {id!r:.80}, not {found} as in {CONFIG} and tokenizer.json, which"
        " count"
        for content, id in tokens.left_out.items()
        if (found := tokenizer.token_to_id(content)) != id
    ][:SHOWN]
    after = tokenizer.get_added_tokens_decoder()
    same = {id: repr(t) for id, t in before.items()} == {id: repr(t) for id, t in after.items()}
    return not same, tuple(notes)


def _contradiction(
    folder: Folder, file: str, id: int, token: AddedToken, tokenizer: Tokenizer
) -> str:
    there, given = tokenizer.id_to_token(id), tokenizer.token_to_id(token.content)
    return (
        f"{folder.root / file}: has {token.content!r} as token {id};"
        f" in tokenizer.json {id} is {'no token' if there is None else repr(there)} and"
        f" {token.content!r} would be {given}; make the two files agree (save_pretrained of the"
        " tokenizer writes both)"
    )


def _object(folder: Folder, name: str) -> dict[str, Any]:
    data = folder.read(name, JSON_BYTES)
    return {} if data is None else parse_object(data, folder.root / name)


def _content(value: object) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _token(value: object, where: str, special: bool = False) -> AddedToken:
    """Return a token given as its text, then special, or as an object with flags."""
    content = _content(value)
    flags = {} if isinstance(value, str) else {k: v for k, v in _flags(value) if k in FLAGS}
    if content is None or not all(isinstance(flag, bool) for flag in flags.values()):
        raise CheckpointError(
            f"{where} is {value!r:.120}; a string or an object with a string 'content' and true or"
            f" false as {', '.join(sorted(FLAGS))} is accepted"
        )
    if special or isinstance(value, str):
        flags["special"] = True
    return AddedToken(content, **flags)


def _flags(value: object) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, dict) else ()


def _special(token: AddedToken) -> AddedToken:
    """Return the token as a special one; its other flags stay."""
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=True,
    )


def _named(folder: Folder, config: dict[str, Any], older: dict[str, Any]) -> dict[str, AddedToken]:
    """Return the special tokens with names: the standard ones, and a model's own such as
    image_token, which are those that end in _token, and those of an object of further ones."""
    found = {key: (CONFIG, config.get(key)) for key in STANDARD}
    found |= {key: (MAP, older[key]) for key in STANDARD if key in older}
    own = {
        key: (CONFIG, value)
        for key, value in config.items()
        if _own(key, value) and (isinstance(value, str) or value.get("__type") == "AddedToken")
    }
    own |= {key: (MAP, value) for key, value in older.items() if _own(key, value)}
    own |= {key: (CONFIG, v) for key, v in config.items() if _own(key, v) and isinstance(v, str)}
    for file, given in ((CONFIG, config), (MAP, older)):
        further = given.get("extra_special_tokens") or given.get("additional_special_tokens")
        for listed in (given.get("model_specific_special_tokens"), further):
            if isinstance(listed, dict):
                own |= {key: (file, value) for key, value in listed.items()}
    return {
        key: _token(value, f"{folder.root / file}: {key}", special=True)
        for key, (file, value) in (found | own).items()
        if value is not None
    }


def _own(key: str, value: object) -> bool:
    return key.endswith("_token") and key not in STANDARD and _content(value) is not None


def _extra(folder: Folder, config: dict[str, Any], older: dict[str, Any]) -> tuple[AddedToken, ...]:
    """Return the special tokens without names; additional_special_tokens is the older word."""
    for file, given in ((CONFIG, config), (MAP, older)):
        for field in ("extra_special_tokens", "additional_special_tokens"):
            value = given.get(field)
            if not value or isinstance(value, dict):
                continue
            where = f"{folder.root / file}: {field}"
            if not isinstance(value, list):
                raise CheckpointError(f"{where} is {value!r:.80}; a list of tokens is accepted")
            # An object says by itself whether it is special, but for the older file.
            return tuple(_token(item, where, special=file == MAP) for item in value)
    return ()


def _of_list(folder: Folder, listed: Mapping[str, Any], special: set[str]) -> dict[int, AddedToken]:
    """Return the tokens of added_tokens.json, which maps their texts to ids."""
    found: dict[int, AddedToken] = {}
    for content, id in listed.items():
        if type(id) is not int or not 0 <= id < 10**DIGITS or id in found:
            raise CheckpointError(
                f"{folder.root / LIST}: {content!r} is {id!r:.80}; an id of its own is accepted"
            )
        is_special = content in special
        found[id] = AddedToken(content, normalized=not is_special, special=is_special)
    return found
