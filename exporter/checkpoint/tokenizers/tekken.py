"""tekken.json: Mistral's tokenizer since Nemo (Small 3 and 4, Large 3, Devstral, Ministral 3).

Special tokens come first, then the tokens by rank, as many as default_vocab_size leaves room for.
"""

import base64
import binascii
import re
from typing import Any

from lmcast.exporter.checkpoint.strict_json import parse_object
from lmcast.exporter.checkpoint.tokenizers.given import Converted, Given
from lmcast.exporter.checkpoint.tokenizers.ranks import Special, require_pattern, tokenizer

KEYS = {"config", "vocab", "special_tokens", "version", "type", "image", "multimodal", "audio"}
SETTINGS = {
    "pattern", "num_vocab_tokens", "default_vocab_size", "default_num_special_tokens", "version",
}  # fmt: skip
TOKEN = {"rank", "token_bytes", "token_str"}
VERSION = re.compile(r"v(\d{1,3})")
LISTED = 8  # the version from which on a file has its special tokens itself
FORMER = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]",
    "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)  # fmt: skip
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def convert(given: Given) -> Converted:
    """Return the tokenizer.json of a tekken.json; raises CheckpointError."""
    raw = parse_object(given.data, given.shown)
    settings = raw.get("config")
    if not isinstance(settings, dict):
        raise given.error(f"config is {settings!r:.80}; accepted: an object")
    unread = [*(raw.keys() - KEYS), *(f"config.{key}" for key in settings.keys() - SETTINGS)]
    if unread:
        raise given.error(f"sets {', '.join(sorted(unread))}, which nothing reads")
    pattern = require_pattern(settings.get("pattern"), given.shown, "config.pattern")
    reserved = _count(given, settings, "default_num_special_tokens")
    size = _count(given, settings, "default_vocab_size")
    special = _special(given, raw.get("special_tokens"), settings.get("version"), reserved)
    ranks = _ranks(given, raw.get("vocab"), size - reserved)
    ids = {token.content: token.id for token in special}
    own = {role: content for role, content in ROLES.items() if content in ids}
    around = given.around(own, ids, bos=True)
    content = tokenizer(ranks, reserved, special, pattern, around, given.shown)
    return Converted(content, given.shown, own)


def _count(given: Given, settings: dict[str, Any], name: str) -> int:
    value = settings.get(name)
    if type(value) is not int or not 0 < value < 1 << 24:
        raise given.error(f"config.{name} is {value!r:.80}; accepted: a positive integer")
    return value


def _special(given: Given, listed: object, version: object, reserved: int) -> list[Special]:
    """Return the special tokens by id, with names for those that have none."""
    match = VERSION.fullmatch(version) if isinstance(version, str) else None
    if match is None:
        raise given.error(f"config.version is {version!r:.80}; accepted: v3, v7, v11, v13 ...")
    former = listed is None and int(match[1]) < LISTED
    names = list(FORMER) if former else _names(given, listed)
    if len(names) > reserved:
        raise given.error(
            f"has {len(names)} special tokens; config.default_num_special_tokens is {reserved}"
        )
    names += [f"<SPECIAL_{id}>" for id in range(len(names), reserved)]
    return [Special(name, id) for id, name in enumerate(names)]


def _names(given: Given, listed: object) -> list[str]:
    if not isinstance(listed, list):
        raise given.error(f"special_tokens is {listed!r:.80}; accepted: a list")
    names = []
    for id, token in enumerate(listed):
        if (
            not isinstance(token, dict)
            or token.get("rank") != id
            or not isinstance(token.get("token_str"), str)
        ):
            raise given.error(
                f"special_tokens has {token!r:.200}; accepted: the ranks in order, here {id}, each"
                " with a string token_str"
            )
        names.append(token["token_str"])
    return names


def _ranks(given: Given, listed: object, count: int) -> list[bytes]:
    if not isinstance(listed, list) or not 0 < count <= len(listed):
        found = f"{len(listed)} tokens" if isinstance(listed, list) else repr(listed)[:80]
        raise given.error(
            f"vocab has {found}; config.default_vocab_size without the special tokens is {count}"
        )
    ranks = []
    for rank, token in enumerate(listed[:count]):
        try:
            if token["rank"] != rank or token.keys() != TOKEN:
                raise ValueError
            ranks.append(base64.b64decode(token["token_bytes"], validate=True))
        except (TypeError, KeyError, ValueError, AttributeError, binascii.Error):
            raise given.error(
                f"vocab has {token!r:.200}; accepted: the ranks in order, here {rank}, each with"
                " token_bytes in base64 and token_str alone"
            ) from None
    for byte, token in enumerate(ranks[:256]):
        if token != bytes([byte]):  # as Mistral's library demands
            raise given.error(
                f"vocab has {token!r:.80} at the rank {byte}; accepted: the 256 bytes in order"
            )
    return ranks
