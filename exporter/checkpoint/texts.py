"""What a Hugging Face directory says about text, in the precedence of transformers 5.23."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lmcast.exporter.checkpoint.added_tokens import Tokens, complete, read_tokens
from lmcast.exporter.checkpoint.chat_templates import read_chat_templates
from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import Folder
from lmcast.exporter.checkpoint.processors import read_processors
from lmcast.exporter.checkpoint.strict_json import parse_object
from lmcast.exporter.checkpoint.tensors import Texts
from lmcast.exporter.checkpoint.tokenizer_ids import require_one_each
from lmcast.exporter.checkpoint.tokenizer_trial import refusing
from lmcast.exporter.checkpoint.tokenizers import converted
from lmcast.exporter.checkpoint.tokenizers.beside import more_ids

TOKENIZER_BYTES = 256 << 20  # 256 MiB; the largest in use have about 35
JSON_BYTES = 16 << 20
# Keys of tokenizer_config.json that change what transformers encodes -> what happens here.
UNREAD = {
    "split_special_tokens": "special tokens in a text stay whole",
    "fast_tokenizer_files": "tokenizer.json is read for all versions",
    "fix_mistral_regex": "tokenizer.json counts as it is; save the tokenizer once loaded so",
}


def read_texts(folder: Folder) -> Texts:
    """Read tokenizer, chat templates, special tokens and generation settings; all are optional.

    Raises CheckpointError for a file that is present and unusable, or contradicts another; of a
    tokenizer that cannot be converted into a tokenizer.json, Texts has the problem.
    """
    config = _object(folder, "tokenizer_config.json")
    templates, notes = read_chat_templates(folder, config)
    tokens = read_tokens(folder, config)
    notes += tokens.notes
    special_tokens = {name: token.content for name, token in tokens.named.items()}
    loaded, problem = _tokenizer(folder), None
    if loaded is None:
        loaded, special_tokens, problem = _converted(folder, config, special_tokens)
    data = None
    if loaded is not None:
        data, tokenizer = loaded
        changed, more = complete(tokenizer, tokens, folder)
        notes += more + _unread(config, tokenizer, tokens) + _split_otherwise(folder, tokenizer)
        notes += more_ids(folder, tokenizer.get_vocab_size(), TOKENIZER_BYTES)
        data = tokenizer.to_str().encode() if changed else data
    return Texts(
        tokenizer=data,
        problem=problem,
        chat_templates=templates,
        special_tokens=special_tokens,
        generation=_object(folder, "generation_config.json"),
        notes=notes,
        processors=read_processors(folder),
    )


def _unread(config: dict[str, Any], tokenizer: Tokenizer, tokens: Tokens) -> tuple[str, ...]:
    """Name what tokenizer_config.json says of encoding and tokenizer.json does not do.

    transformers 5 follows tokenizer.json too, except in what UNREAD lists.
    """
    notes = []
    ids = tokenizer.encode("").ids  # what is put around any text
    for key, name, end in (("add_bos_token", "bos_token", 0), ("add_eos_token", "eos_token", -1)):
        if (token := tokens.named.get(name)) is None or not isinstance(config.get(key), bool):
            continue
        puts = bool(ids) and ids[end] == tokenizer.token_to_id(token.content)
        if puts != config[key]:
            notes.append(
                f"tokenizer_config.json: {key} is {str(config[key]).lower()}; tokenizer.json, which"
                f" counts, puts {token.content if puts else 'none'} there"
            )
    notes += [
        f"tokenizer_config.json: {key} is set, which is not done: {instead}"
        for key, instead in UNREAD.items()
        if config.get(key)
    ]
    return tuple(notes)


def _split_otherwise(folder: Folder, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Name a tekken.json that divides text into words otherwise than a tokenizer.json beside it.

    Some of Mistral's released tokenizer.json have a wrong expression for that.
    """
    data = folder.read("tekken.json", TOKENIZER_BYTES)
    settings = {} if data is None else parse_object(data, folder.root / "tekken.json").get("config")
    pattern = settings.get("pattern") if isinstance(settings, dict) else None
    steps = tokenizer.pre_tokenizer
    # Its state is its part of tokenizer.json.
    if pattern is None or (steps and pattern in _values(json.loads(steps.__getstate__()))):
        return ()
    return (
        "tokenizer.json divides text into words otherwise than tekken.json, the maker's own; it is"
        " used, as transformers does; remove it to use tekken.json",
    )


def _values(value: Any) -> Iterator[Any]:
    """Yield what a JSON value holds, at any depth, that is neither object nor list."""
    if not isinstance(value, dict | list):
        yield value
        return
    for item in value.values() if isinstance(value, dict) else value:
        yield from _values(item)


def _object(folder: Folder, name: str) -> dict[str, Any]:
    data = folder.read(name, JSON_BYTES)
    return {} if data is None else parse_object(data, folder.root / name)


def _text(data: bytes, folder: Folder, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{folder.root / name}: is not UTF-8 text") from None


def _tokenizer(folder: Folder) -> tuple[bytes, Tokenizer] | None:
    data = folder.read("tokenizer.json", TOKENIZER_BYTES)
    if data is None:
        return None
    text = _text(data, folder, "tokenizer.json")
    return data, _loaded(text, folder.root / "tokenizer.json")


def _converted(
    folder: Folder, config: dict[str, Any], special_tokens: dict[str, str]
) -> tuple[tuple[bytes, Tokenizer] | None, dict[str, str], str | None]:
    """Return the tokenizer.json of a tokenizer in another file, the special tokens with those that
    the file itself names, and why there is none."""
    try:
        found = converted(folder, config, special_tokens)
        if found is None:
            return None, special_tokens, None
        text = json.dumps(found.content, ensure_ascii=False)
        tokenizer = _loaded(text, found.shown)
    except CheckpointError as error:
        return None, special_tokens, str(error)
    return (text.encode(), tokenizer), {**found.special_tokens, **special_tokens}, None


def _loaded(text: str, shown: Path) -> Tokenizer:
    with refusing(
        lambda said: CheckpointError(f"{shown}: the tokenizers library refuses it: {said}")
    ):
        tokenizer = Tokenizer.from_str(text)
        # Of training: no text is cut or filled up, and a length may be beyond all memory.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode("")  # what it puts around a text may be no token
    whole = parse_object(text.encode(), shown)
    if chance := whole["model"].get("dropout"):
        raise CheckpointError(
            f"{shown}: model.dropout is {chance}, so that one text has other tokens every time;"
            " accepted: null, as training alone drops merges"
        )
    require_one_each(whole, tokenizer, shown)
    return tokenizer
