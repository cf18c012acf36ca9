"""What the tokenizers library does to a text: its panics as errors, and a trial at export."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from lmcast.exporter.checkpoint.errors import CheckpointError

# One text a script or kind of text; the first has what single bytes spell, the last a long word.
TEXTS = (
    "".join(map(chr, range(256))), "", " ", "\n\n\t  \r\n", "Hello, world! 3.14159 == x[0];",
    "Größe naïve œuvre", "Ελληνικά", "Русский язык", "עברית", "العربية", "हिन्दी क्षेत्र",
    "ไทยไม่มีช่องว่าง", "ქართული", "Հայերեն", "አማርኛ", "தமிழ்", "မြန်မာ", "ភាសាខ្មែរ", "བོད་ཡིག",
    "日本語カタカナ", "简体中文繁體", "한국어 가나다", "👩‍👩‍👧‍👦 🏳️‍🌈 🇯🇵", "e\u0301\u0323 a\u0308",
    "\ufeff\ufffd\u200b\u2028\u202e", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 \U0010ffff", "<s> </s> <unk> [INST] <|im_end|>",
    "<0x00><0xFF>", "abc" * 400,
)  # fmt: skip
SPECIAL = 64  # added tokens that are tried, of thousands


class Tried(Protocol):
    """What a trial needs of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def added_tokens(self) -> dict[int, str]: ...


@contextmanager
def refusing(say: Callable[[str], Exception]) -> Iterator[None]:
    """Raise say(what the library said) where the tokenizers library fails.

    It raises plain Exception, and Rust's PanicException, which derives from BaseException alone.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise say(" ".join(str(error).split())[:300]) from None


def try_tokenizer(tokenizer: Tried, rows: int, path: Path) -> None:
    """Encode and decode a few texts, of every script and with added tokens, and all ids.

    rows: the size of the model's vocabulary. Added tokens behind it are tried by no text. Raises
    InputError where the library fails, CheckpointError where a text has ids without an embedding.
    """
    added = sorted((id, token) for id, token in tokenizer.added_tokens().items() if id < rows)
    for text in (*TEXTS, "".join(token for _, token in added[:SPECIAL])):
        ids = tokenizer.encode(text)
        if strange := [id for id in ids if id >= rows]:
            raise CheckpointError(
                f"{path}: the tokenizer gives the text {text[:20]!r} the id {strange[0]}, but the"
                f" model's vocabulary ends at {rows - 1}; this is the tokenizer of another model:"
                " take that of this one, or pass --no-tokenizer for an engine that takes token ids"
            )
        tokenizer.decode(ids)
    tokenizer.decode(range(rows))
