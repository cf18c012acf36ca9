"""tiktoken.model: Moonshot's Kimi K2, K2.5, Linear and Moonlight.

The file has ranks alone. The expression that splits texts and the number of reserved tokens are in
the code that is released with it, which is never run: they are facts of the class that
tokenizer_config.json names, and known here for that class alone.
"""

import base64
import binascii

from lmcast.exporter.checkpoint.tokenizers.given import Converted, Given
from lmcast.exporter.checkpoint.tokenizers.ranks import Special, tokenizer

# The class, and the modules of the releases that define it so.
CLASSES = {"TikTokenTokenizer": ("tokenization_kimi", "tokenization_moonshot")}
HAN = r"&&[^\p{Han}]"
UPPER = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{HAN}]"
LOWER = rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{HAN}]"
BEFORE, AFTER = r"[^\r\n\p{L}\p{N}]?", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
KIMI = "|".join(
    (
        r"[\p{Han}]+",
        f"{BEFORE}{UPPER}*{LOWER}+{AFTER}",
        f"{BEFORE}{UPPER}+{LOWER}*{AFTER}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
RESERVED = 256  # ids after the ranks, named or not


def convert(given: Given) -> Converted:
    """Return the tokenizer.json of a tiktoken.model; raises CheckpointError."""
    given.require_class(CLASSES, "the file does not say how texts are split")
    ranks = _ranks(given)
    special = _special(given, len(ranks))
    ids = {token.content: token.id for token in special}
    around = given.around({}, ids, bos=False)
    content = tokenizer(ranks, 0, special, KIMI, around, given.shown)
    return Converted(content, given.shown, {})


def _ranks(given: Given) -> list[bytes]:
    """Return the tokens by rank of a file of lines: base64, a space, the rank."""
    ranks: list[bytes] = []
    for number, line in enumerate(given.data.splitlines(), 1):
        if not line:
            continue
        token, _, rank = line.partition(b" ")
        try:
            ranks.append(base64.b64decode(token, validate=True))
        except binascii.Error:
            raise given.error(f"line {number} does not begin with base64") from None
        if rank != b"%d" % (len(ranks) - 1):
            raise given.error(
                f"line {number} has the rank {rank.decode(errors='replace')!r:.40}; accepted: the"
                f" ranks in order, here {len(ranks) - 1}"
            )
    if not ranks:
        raise given.error("is empty")
    return ranks


def _special(given: Given, first: int) -> list[Special]:
    """Return the reserved tokens: those that added_tokens_decoder names, and the rest."""
    listed = given.config.get("added_tokens_decoder")
    if not isinstance(listed, dict) or not listed:
        raise given.setting(
            "added_tokens_decoder is missing, which says what the special tokens of"
            f" {given.shown.name} are called"
        )
    special = {id: Special(f"<|reserved_token_{id}|>", id) for id in range(first, first + RESERVED)}
    for key, token in listed.items():
        id = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else -1
        content = token.get("content") if isinstance(token, dict) else None
        if id not in special or not isinstance(content, str):
            raise given.setting(
                f"added_tokens_decoder has {key!r:.40}: {token!r:.200}; accepted: the ids {first}"
                f" to {first + RESERVED - 1}, each an object with a string 'content'"
            )
        for name in ("lstrip", "rstrip", "single_word", "normalized"):
            if token.get(name):
                raise given.setting(
                    f"added_tokens_decoder asks {name} for {content!r}, which tiktoken has not"
                )
        special[id] = Special(content, id, special=bool(token.get("special", True)))
    return list(special.values())
