"""tokenizer.json, chat template and special tokens, rebuilt from the metadata of a GGUF file."""

import json
from collections import Counter
from typing import Any

from lmcast.exporter.checkpoint.chat_templates import check_name
from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.gguf.metadata import Metadata
from lmcast.exporter.checkpoint.gguf.pre_tokenizers import PRE
from lmcast.exporter.checkpoint.tensors import Texts
from lmcast.exporter.checkpoint.tokenizers import parts
from lmcast.exporter.checkpoint.tokenizers.parts import (
    ESCAPE,
    LONGEST_TOKEN,
    MOST_CHARACTERS,
    PREPEND,
    Kind,
    Named,
    Part,
)

ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
ENDS = ("eos", "eot", "eom")  # tokens that end a text, a turn, a message
NO_TOKENIZER = ("none", "no_vocab")


def hugging_face_texts(metadata: Metadata, vocab_size: int) -> Texts:
    """Return what the file says about text; of a tokenizer that cannot be rebuilt, why not.

    `vocab_size` is the number of embeddings; the file may have fewer tokens, not more.
    """
    templates, generation = _chat_templates(metadata), _generation(metadata, vocab_size)
    try:
        tokenizer, special = _rebuilt(metadata, vocab_size)
        unread = metadata.unread("tokenizer")
        if tokenizer is not None and unread is not None:
            raise unread
    except CheckpointError as error:
        return Texts(chat_templates=templates, generation=generation, problem=str(error))
    return Texts(tokenizer, templates, special, generation)


def _rebuilt(metadata: Metadata, vocab_size: int) -> tuple[bytes | None, dict[str, str]]:
    """Return tokenizer.json, None if the file has none, and the special tokens by role."""
    model = metadata.text("tokenizer.ggml.model", "none")
    if model in NO_TOKENIZER:
        return None, {}
    builders = {"gpt2": _byte_level, "llama": _sentence_piece}
    if model not in builders:
        raise metadata.error(
            f"tokenizer.ggml.model is {model!r}; accepted: {', '.join(builders)}. Use the original"
            " Hugging Face checkpoint instead"
        )
    tokens, kinds = _vocabulary(metadata, vocab_size)
    content = builders[model](metadata, tokens, kinds)
    content["post_processor"] = _post_processor(metadata, model, tokens)
    data = json.dumps(content, ensure_ascii=False).encode()
    return data, _special_tokens(metadata, tokens)


def _special_tokens(metadata: Metadata, tokens: list[str]) -> dict[str, str]:
    ids = {
        role: metadata.token(f"tokenizer.ggml.{theirs}_token_id", len(tokens))
        for role, theirs in ROLES.items()
    }
    return {f"{role}_token": tokens[i] for role, i in ids.items() if i is not None}


def _chat_templates(metadata: Metadata) -> dict[str, str]:
    """Return the default template and those with names."""
    default = metadata.text("tokenizer.chat_template", "")
    prefix = "tokenizer.chat_template."
    names = [key.removeprefix(prefix) for key in metadata.values if key.startswith(prefix)]
    named = {name: metadata.text(prefix + name, "") for name in names}
    for name in names:
        check_name(name, str(metadata.path))
    return {n: t for n, t in (named | ({"default": default} if default else {})).items() if t}


def _generation(metadata: Metadata, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        f"{role}_token_id": metadata.token(f"tokenizer.ggml.{ROLES[role]}_token_id", count)
        for role in ("bos", "pad")
    }
    ends = [metadata.token(f"tokenizer.ggml.{name}_token_id", count) for name in ENDS]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    found["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    return {key: value for key, value in found.items() if value is not None}


def _vocabulary(metadata: Metadata, vocab_size: int) -> tuple[list[str], list[int]]:
    """Return the tokens by id and the type of each."""
    tokens = metadata.items("tokenizer.ggml.tokens", str)
    kinds = metadata.items("tokenizer.ggml.token_type", int, [int(Kind.NORMAL)] * len(tokens))
    if len(kinds) != len(tokens):
        raise metadata.error(
            f"tokenizer.ggml.token_type has {len(kinds)} items, tokenizer.ggml.tokens {len(tokens)}"
        )
    if strange := set(kinds) - set(Kind):
        raise metadata.error(
            f"tokenizer.ggml.token_type has {min(strange)}; accepted: {min(Kind)} to {max(Kind)}"
        )
    if not 0 < len(tokens) <= vocab_size:
        raise metadata.error(
            f"tokenizer.ggml.tokens has {len(tokens)} items; the model has {vocab_size} embeddings"
        )
    if max(map(len, tokens)) > LONGEST_TOKEN or sum(map(len, tokens)) > MOST_CHARACTERS:
        raise metadata.error(
            f"tokenizer.ggml.tokens holds a token of over {LONGEST_TOKEN} characters, or over"
            f" {MOST_CHARACTERS} characters in all; no real vocabulary does"
        )
    if "" in tokens or len(set(tokens)) < len(tokens):
        twice = Counter(["", *tokens]).most_common(1)[0][0]
        raise metadata.error(f"tokenizer.ggml.tokens has {twice!r} twice, or an empty token")
    return tokens, kinds


def _added(tokens: list[str], kinds: list[int]) -> list[Part]:
    """Return the control and user-defined tokens, which match in raw text."""
    return [
        parts.added_token(index, token, special=kind != Kind.USER_DEFINED)
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (Kind.UNKNOWN, Kind.CONTROL, Kind.USER_DEFINED)
    ]


def _byte_level(metadata: Metadata, tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    pre = metadata.text("tokenizer.ggml.pre")
    if pre not in PRE:
        raise metadata.error(
            f"tokenizer.ggml.pre is {pre!r}; accepted: {', '.join(PRE)}. Use the original"
            " Hugging Face checkpoint instead"
        )
    metadata.flag("tokenizer.ggml.add_space_prefix", False)  # llama.cpp reads it for no BPE
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = _listed_merges(metadata, tokens)
    known = PRE[pre]
    pre_tokenizer, decoder = parts.byte_level(known.splits)
    return parts.whole(
        parts.byte_pairs(vocab, merges, ignore_merges=known.ignore_merges),
        _added(tokens, kinds),
        normalizer={"type": "NFC"} if known.nfc else None,
        pre_tokenizer=pre_tokenizer,
        decoder=decoder,
    )


def _listed_merges(metadata: Metadata, tokens: list[str]) -> list[tuple[str, str]]:
    known, merges = set(tokens), []
    for merge in metadata.items("tokenizer.ggml.merges", str):
        left, _, right = merge.partition(" ")
        if left not in known or right not in known or left + right not in known:
            raise metadata.error(f"tokenizer.ggml.merges has {merge!r}, which is not of two tokens")
        merges.append((left, right))
    return merges


def _sentence_piece(metadata: Metadata, tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    metadata.text("tokenizer.ggml.pre", "default")  # says nothing here
    unknown = metadata.token("tokenizer.ggml.unknown_token_id", len(tokens))
    prefix = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    model = parts.byte_pairs(
        {token: index for index, token in enumerate(tokens)},
        _scored_merges(metadata, tokens, kinds),
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=Kind.BYTE in kinds,
    )
    return parts.whole(
        model,
        _added(tokens, kinds),
        normalizer=parts.sequence("normalizers", [PREPEND, ESCAPE] if prefix else [ESCAPE]),
        decoder=parts.piece_decoder(prefix, kinds),
    )


def _scored_merges(
    metadata: Metadata, tokens: list[str], kinds: list[int]
) -> list[tuple[str, str]]:
    """Return the merges that SentencePiece makes: of all pairs the one whose token scores best."""
    scores = metadata.items("tokenizer.ggml.scores", float)
    if len(scores) != len(tokens):
        raise metadata.error(
            f"tokenizer.ggml.scores has {len(scores)} items, tokenizer.ggml.tokens {len(tokens)}"
        )
    pieces = {
        token: index
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (Kind.NORMAL, Kind.UNUSED)
    }
    return parts.scored_merges(pieces, scores)


def _post_processor(metadata: Metadata, model: str, tokens: list[str]) -> dict[str, Any] | None:
    """Return the step that adds bos and eos, None if the file asks for neither."""
    pre = PRE.get(metadata.text("tokenizer.ggml.pre", ""))
    # llama.cpp's own defaults, which its converter relied on.
    wanted = {
        "bos": metadata.flag(
            "tokenizer.ggml.add_bos_token", model == "llama" or (pre is not None and pre.bos)
        ),
        "eos": metadata.flag("tokenizer.ggml.add_eos_token", False),
    }
    found: list[Named | None] = []
    for role, is_wanted in wanted.items():
        token = metadata.token(f"tokenizer.ggml.{role}_token_id", len(tokens))
        if is_wanted and token is None:
            raise metadata.error(
                f"tokenizer.ggml.{role}_token_id is missing, but every text gets that token"
            )
        found.append(None if token is None or not is_wanted else Named(tokens[token], token))
    bos, eos = found
    return parts.around(bos, eos)
