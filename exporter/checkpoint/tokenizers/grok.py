"""tokenizer.tok.json: Grok 2. Tokens are lists of bytes, ids are ranks; which tokens a text may
spell is what SGLang and vLLM, the runtimes of the release, let it."""

from typing import Any

from lmcast.exporter.checkpoint.strict_json import parse_object
from lmcast.exporter.checkpoint.tokenizers.given import Converted, Given
from lmcast.exporter.checkpoint.tokenizers.parts import QWEN2
from lmcast.exporter.checkpoint.tokenizers.ranks import Special, require_pattern, tokenizer

KEYS = {
    "regular_tokens", "special_tokens", "word_split", "pat_str", "vocab_size",
    "default_allowed_special",
}  # fmt: skip
WORD_SPLITS = {"V1": QWEN2}
ROLES = {"eos_token": "<|eos|>", "pad_token": "<|pad|>"}
ALLOWED = {
    "<|pad|>",
    "<|eos|>",
    "<|separator|>",
    *(f"<|reserved_{i}|>" for i in range(3, 128)),
    *(f"<|control{i}|>" for i in range(1, 705)),
}


def convert(given: Given) -> Converted:
    """Return the tokenizer.json of a tokenizer.tok.json; raises CheckpointError."""
    raw = parse_object(given.data, given.shown)
    if unread := sorted(raw.keys() - KEYS):
        raise given.error(f"sets {', '.join(unread)}, which nothing reads")
    word_split = raw.get("word_split")
    if not isinstance(word_split, str) or word_split not in WORD_SPLITS:
        raise given.error(f"word_split is {word_split!r:.80}; accepted: {', '.join(WORD_SPLITS)}")
    pattern = require_pattern(raw.get("pat_str", WORD_SPLITS[word_split]), given.shown, "pat_str")
    regular = _tokens(given, raw, "regular_tokens")
    first = min(regular)
    if sorted(regular) != list(range(first, first + len(regular))):
        raise given.error("the ids of regular_tokens have gaps; accepted: one after the other")
    listed = raw.get("default_allowed_special") or []
    if not isinstance(listed, list):
        raise given.error(f"default_allowed_special is {listed!r:.80}; accepted: a list")
    allowed = ALLOWED | {_text(given, _bytes(given, item)) for item in listed}
    special = [
        Special(text, id, matched=text in allowed)
        for id, text in sorted(
            (id, _text(given, token)) for id, token in _tokens(given, raw, "special_tokens").items()
        )
    ]
    ids = {token.content: token.id for token in special}
    own = {role: content for role, content in ROLES.items() if content in ids}
    around = given.around(own, ids, bos=False)
    ranks = [regular[id] for id in sorted(regular)]
    content = tokenizer(ranks, first, special, pattern, around, given.shown)
    return Converted(content, given.shown, own)


def _tokens(given: Given, raw: dict[str, Any], key: str) -> dict[int, bytes]:
    listed = raw.get(key)
    if not isinstance(listed, list) or not listed:
        raise given.error(f"{key} is {listed!r:.80}; accepted: a list of {{token, bytes}}")
    tokens: dict[int, bytes] = {}
    for item in listed:
        id = item.get("token") if isinstance(item, dict) else None
        if type(id) is not int or not 0 <= id < 1 << 24 or id in tokens:
            raise given.error(f"{key} has {item!r:.200}; accepted: an id of its own, as 'token'")
        tokens[id] = _bytes(given, item.get("bytes"))
    return tokens


def _bytes(given: Given, item: object) -> bytes:
    try:
        if isinstance(item, list):
            return bytes(item)
    except (TypeError, ValueError):
        pass
    raise given.error(f"has the bytes {item!r:.200}; accepted: a list of numbers from 0 to 255")


def _text(given: Given, token: bytes) -> str:
    try:
        return token.decode()
    except UnicodeDecodeError:
        raise given.error(f"the special token {token!r:.80} is not UTF-8") from None
